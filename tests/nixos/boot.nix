# From power on to ready, with everything local: database, a model, coordinator, ralph, tools. And what must not be there:
# a port that others can reach, a secret that others can read.
{
  nodes.machine =
    { pkgs, ... }:
    {
      services.lares.models.coder = {
        path = import ./tiny-model.nix { inherit pkgs; };
        contextSize = 2048;
      };
    };

  testScript = ''
    machine.wait_for_unit("multi-user.target")
    # The target is not reached before every unit in it is ready.
    machine.wait_until_succeeds("systemctl start lares.target && systemctl is-active lares.target", timeout=300)

    with subtest("every unit runs and says so"):
        for unit in ["lares-setup", "lares-llama-coder", "lares-coordinator", "lares-ralph", "lares-tools", "lares-healer"]:
            machine.require_unit_state(f"{unit}.service", "active")
        for port in [8091, 8092, 8098, 8099]:
            machine.succeed(f"curl --fail --silent http://127.0.0.1:{port}/health")
            machine.succeed(f"curl --fail --silent http://127.0.0.1:{port}/ready | jq -e '.status == \"ready\"'")
        machine.fail("systemctl list-units 'lares*' --state=failed --no-legend | grep .")

    with subtest("nothing listens off loopback"):
        listening = machine.succeed("ss -Hltn | awk '{print $4}'")
        for address in listening.split():
            if address.rsplit(":", 1)[1] in ("8080", "8091", "8092", "8098", "8099", "5432"):
                assert address.startswith(("127.", "[::1]")), f"{address} is reachable from outside"

    with subtest("keys are for their owner alone"):
        for name in ["admin", "agent", "llama"]:
            mode = machine.succeed(f"stat --format %a /var/lib/lares/keys/{name}.key").strip()
            assert mode == "600", f"{name}.key has mode {mode}"
        machine.fail("runuser -u nobody -- cat /var/lib/lares/keys/admin.key")
        # Neither the configuration nor a command line has one in it. The keys are read from their files here, so that
        # this command line has none either.
        for name in ["admin", "agent", "llama"]:
            pattern = f"--fixed-strings --file /var/lib/lares/keys/{name}.key"
            machine.fail(f"grep -R {pattern} /etc/lares")
            machine.fail(f"cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep {pattern}")

    with subtest("an operator sees what is configured"):
        machine.succeed("lares config check /etc/lares/config.toml")
        machine.succeed("lares task list")

    with subtest("it stops, and starts again"):
        machine.succeed("systemctl stop lares.target")
        machine.wait_until_fails("systemctl is-active lares-ralph.service", timeout=60)
        machine.wait_until_fails("pgrep llama-server", timeout=60)
        machine.succeed("systemctl start lares.target")
        machine.wait_until_succeeds("curl --fail --silent http://127.0.0.1:8092/ready", timeout=120)

    with subtest("the exposure of every unit is small"):
        print(machine.succeed("systemd-analyze security --no-pager 'lares*.service' || systemd-analyze security --no-pager"))
        for unit in ["lares-setup", "lares-llama-coder", "lares-coordinator", "lares-ralph", "lares-tools", "lares-healer"]:
            machine.succeed(f"systemd-analyze security --no-pager --threshold=20 {unit}.service")
  '';
}
