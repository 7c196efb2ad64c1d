# Whatever is killed comes back by itself, and what was asked in between gets its answer.
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
    import json
    import time

    units = ["lares-llama-coder", "lares-coordinator", "lares-ralph", "lares-tools"]
    for unit in units:
        machine.wait_for_unit(f"{unit}.service", timeout=300)


    def show(unit, what):
        return machine.succeed(f"systemctl show --property {what} --value {unit}.service").strip()


    for unit in units:
        with subtest(f"{unit} is killed"):
            before = show(unit, "InvocationID")
            began = time.monotonic()
            machine.succeed(f"systemctl kill --kill-whom=main --signal=KILL {unit}.service")
            machine.wait_until_succeeds(
                f"test \"$(systemctl show -p InvocationID --value {unit}.service)\" != {before}"
                f" && systemctl is-active {unit}.service",
                timeout=120,
            )
            print(f"{unit} was back after {time.monotonic() - began:.1f} s")

    with subtest("the server below its unit is killed"):
        before = show("lares-llama-coder", "InvocationID")
        machine.succeed("pkill -KILL llama-server")
        machine.wait_until_succeeds(
            f"test \"$(systemctl show -p InvocationID --value lares-llama-coder.service)\" != {before}"
            " && systemctl is-active lares-llama-coder.service",
            timeout=120,
        )
        assert machine.succeed("pgrep --count llama-server").strip() == "1", "one server is left behind"

    with subtest("a server that hangs is found by its watchdog"):
        before = show("lares-llama-coder", "InvocationID")
        machine.succeed("pkill -STOP llama-server")
        machine.wait_until_succeeds(
            f"test \"$(systemctl show -p InvocationID --value lares-llama-coder.service)\" != {before}"
            " && systemctl is-active lares-llama-coder.service",
            timeout=300,
        )

    with subtest("a question asked while the model is away is answered"):
        body = {"model": "coder", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
        machine.succeed("pkill -KILL llama-server")
        machine.succeed(
            "curl --fail --silent --max-time 240 http://127.0.0.1:8092/v1/chat/completions"
            " -H 'Content-Type: application/json' -H \"Authorization: Bearer $(cat /var/lib/lares/keys/admin.key)\""
            f" -d '{json.dumps(body)}'"
        )
  '';
}
