# What the healer does for a unit that it is told of, what it leaves alone, and what its user may not do.
{
  nodes.machine =
    { lib, pkgs, ... }:
    let
      python = lib.getExe pkgs.python3Minimal;
      # What systemd does not bring back.
      server = port: {
        wantedBy = [ "multi-user.target" ];
        environment.PORT = toString port;
        script = ''exec ${python} -m http.server --bind 127.0.0.1 "$PORT"'';
      };
    in
    {
      imports = [ ./upstream.nix ];
      environment.systemPackages = [
        (pkgs.writeShellScriptBin "as-healer" ''exec runuser -u lares-healer -- "$@"'')
        (pkgs.writeShellScriptBin "ask-helper" ''
          exec ${python} -c '
          import socket, sys
          door = socket.socket(socket.AF_UNIX)
          door.settimeout(20)
          door.connect("/run/lares/helper.sock")
          door.sendall(sys.argv[1].encode() + b"\n")
          print(door.makefile().readline())
          ' "$1"
        '')
      ];
      systemd.services.app = server 3000;
      systemd.services.bystander = server 4000;
      systemd.services.intruder = server 3000 // {
        wantedBy = [ ];
      };

      services.lares.healer = {
        # One machine goes through much here in a minute.
        cooldown = "1s";
        maxPerHour = 30;
        verifyHold = "2s";
        units."app.service" = {
          probe.http = "http://127.0.0.1:3000/";
          ports = [ 13000 ];
          portVariable = "PORT";
          memoryMax = "512 MiB";
        };
      };
    };

  testScript = ''
    import json

    machine.wait_for_unit("lares-healer.service", timeout=300)
    for unit in ["app", "bystander", "lares-coordinator", "lares-ralph"]:
        machine.wait_for_unit(f"{unit}.service", timeout=300)
    machine.wait_for_open_port(3000)
    get = "curl --fail --silent -H \"Authorization: Bearer $(cat /var/lib/lares/keys/admin.key)\" http://127.0.0.1:8099"
    machine.wait_until_succeeds(f"{get}/api/v1/units | jq -e .acting", timeout=60)


    def show(unit, what):
        return machine.succeed(f"systemctl show --property {what} --value {unit}.service").strip()


    def last(unit):
        found = json.loads(machine.succeed(f"lares --json incident list --unit {unit}.service"))["incidents"]
        return found[0] if found else {}


    def closed(unit):
        machine.wait_until_succeeds(
            f"lares --json incident list --unit {unit}.service | jq -e '.incidents[0].state == \"closed\"'", timeout=60
        )
        return last(unit)


    def kill(*units):
        machine.succeed(f"systemctl kill --signal=KILL {' '.join(unit + '.service' for unit in units)}")


    with subtest("it watches what Lares runs and what it is told of, and nothing else"):
        watched = json.loads(machine.succeed(f"{get}/api/v1/units"))["units"]
        names = [unit["unit"] for unit in watched]
        for name in ["app", "lares-coordinator", "lares-ralph", "postgresql"]:
            assert f"{name}.service" in names, f"{name} is not watched: {names}"
        assert "bystander.service" not in names

    with subtest("what is killed is brought back, what nobody named is not"):
        before = show("app", "InvocationID")
        kill("app", "bystander")
        machine.wait_until_succeeds("systemctl is-active app.service && curl --fail --silent http://127.0.0.1:3000/")
        assert show("app", "InvocationID") != before
        machine.fail("systemctl is-active bystander.service")
        incident = closed("app")
        assert incident["outcome"] == "healed", incident
        print(machine.succeed(f"lares incident show {incident['id']}"))

    with subtest("what an operator stops stays stopped"):
        machine.succeed("systemctl stop app.service")
        machine.sleep(10)
        machine.fail("systemctl is-active app.service")
        machine.succeed("systemctl start app.service")
        machine.wait_for_open_port(3000)

    with subtest("what is paused is left alone"):
        machine.succeed("lares heal pause app --for 1h --reason 'the test says so'")
        kill("app")
        machine.sleep(10)
        machine.fail("systemctl is-active app.service")
        machine.succeed("lares heal resume app")
        machine.wait_until_succeeds("systemctl is-active app.service", timeout=60)
        machine.wait_for_open_port(3000)
        closed("app")

    with subtest("whose port is taken gets another one"):
        machine.succeed("systemctl stop app.service", "systemctl start intruder.service")
        machine.wait_for_open_port(3000)
        machine.execute("systemctl start app.service")
        machine.wait_for_open_port(13000)
        machine.wait_until_succeeds("systemctl is-active app.service", timeout=60)
        assert "PORT=13000" in show("app", "Environment")
        machine.require_unit_state("intruder.service", "active")

    manager = "org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager"
    with subtest("its user may restart what is named, and nothing more"):
        machine.succeed(f"as-healer busctl call {manager} RestartUnit ss app.service replace")
        machine.fail(f"as-healer busctl call {manager} StartUnit ss bystander.service replace")
        machine.fail(f"as-healer busctl call {manager} KillUnit ssi app.service all 15")
        machine.fail(
            f"as-healer busctl call {manager} StartTransientUnit 'ssa(sv)a(sa(sv))' app-2.service fail"
            " 1 ExecStart 'a(sasb)' 1 /bin/sh 1 /bin/sh false 0"
        )
        machine.fail("as-healer cat /var/lib/lares/keys/admin.key")

    with subtest("the helper does what the configuration allows, for nobody else"):
        ask = "{\"verb\": \"set_memory_max\", \"unit\": \"%s\", \"bytes\": %d}"
        machine.succeed("systemctl set-property --runtime app.service MemoryMax=256M")
        machine.succeed("as-healer ask-helper '" + ask % ("app.service", 512 << 20) + "'")
        assert show("app", "MemoryMax") == str(512 << 20), show("app", "MemoryMax")
        machine.succeed("as-healer ask-helper '" + ask % ("app.service", 1 << 30) + "'")
        machine.succeed("as-healer ask-helper '" + ask % ("bystander.service", 512 << 20) + "'")
        assert show("app", "MemoryMax") == str(512 << 20), "more than the configuration allows"
        assert show("bystander", "MemoryMax") == "infinity", "a unit that nobody named"
        machine.fail("as-lares ask-helper '" + ask % ("app.service", 512 << 20) + "'")

    with subtest("it is killed itself, and goes on"):
        before = show("lares-healer", "InvocationID")
        kill("lares-healer")
        machine.wait_until_succeeds(
            f"test \"$(systemctl show -p InvocationID --value lares-healer.service)\" != {before}"
            " && systemctl is-active lares-healer.service",
            timeout=60,
        )
        machine.wait_until_succeeds(f"{get}/api/v1/units | jq -e .acting", timeout=60)
        kill("app")
        machine.wait_until_succeeds("systemctl is-active app.service", timeout=60)

    with subtest("it works while the database is away"):
        machine.succeed("lares heal pause postgresql --for 1h --reason 'the test says so'")
        machine.succeed("systemctl stop postgresql.service")
        kill("app")
        machine.wait_until_succeeds("systemctl is-active app.service", timeout=60)
        machine.succeed("systemctl start postgresql.service")
        assert closed("app")["outcome"] == "healed"

    machine.succeed("systemd-analyze security --no-pager --threshold=20 lares-healer.service lares-healer-helper.service")
  '';
}
