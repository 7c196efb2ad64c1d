# Something else has the coordinator's port: the log says so by name, nothing else suffers, and the coordinator takes
# the port as soon as it is free.
{
  nodes.machine =
    { lib, pkgs, ... }:
    {
      imports = [ ./upstream.nix ];
      systemd.services.intruder = {
        wantedBy = [ "multi-user.target" ];
        before = [ "lares-coordinator.service" ];
        serviceConfig.ExecStart = "${lib.getExe pkgs.python3Minimal} -m http.server --bind 127.0.0.1 8092";
      };
    };

  testScript = ''
    machine.wait_for_unit("intruder.service")
    machine.wait_for_open_port(8092)
    machine.wait_until_succeeds("journalctl --unit lares-coordinator.service | grep -i '127.0.0.1:8092'", timeout=120)
    machine.fail("systemctl is-active lares-coordinator.service")

    with subtest("it keeps trying, ever more slowly"):
        machine.wait_until_succeeds(
            "test $(systemctl show -p NRestarts --value lares-coordinator.service) -ge 3", timeout=120
        )
        assert machine.succeed("systemctl show -p ActiveState --value lares-coordinator.service").strip() != "failed"

    with subtest("ralph does not mind"):
        machine.wait_for_unit("lares-ralph.service", timeout=120)

    with subtest("the port is free again"):
        machine.succeed("systemctl stop intruder.service")
        machine.wait_for_unit("lares-coordinator.service", timeout=120)
        machine.wait_until_succeeds("curl --fail --silent http://127.0.0.1:8092/ready", timeout=60)
  '';
}
