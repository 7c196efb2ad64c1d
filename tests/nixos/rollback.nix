# A generation whose settings are well-formed and cannot work is switched to, seen to be bad, and left again. What the
# program cannot even read never becomes a generation: `lares-bad-settings` in default.nix shows that.
{
  nodes.machine = {
    imports = [ ./upstream.nix ];
    # Nothing answers on the database's other socket.
    specialisation.broken.configuration.services.lares = {
      settings.store.url = "postgresql:///lares?host=/run/nowhere";
    };
  };

  testScript =
    { nodes, ... }:
    ''
      machine.wait_for_unit("lares-coordinator.service", timeout=300)
      machine.wait_for_unit("lares-ralph.service", timeout=300)
      machine.succeed("as-lares lares key create laptop --role client --file /var/lib/lares/laptop.key")
      good = "${nodes.machine.system.build.toplevel}"

      with subtest("the bad generation is seen to be bad"):
          # Its exit code says that units failed, which is what an administrator sees too.
          machine.execute(f"{good}/specialisation/broken/bin/switch-to-configuration test")
          machine.wait_until_fails("curl --fail --silent http://127.0.0.1:8092/ready", timeout=60)

      with subtest("the good one is taken back"):
          machine.succeed(f"{good}/bin/switch-to-configuration test")
          machine.wait_until_succeeds("curl --fail --silent http://127.0.0.1:8092/ready", timeout=120)
          machine.wait_until_succeeds("curl --fail --silent http://127.0.0.1:8098/ready", timeout=120)

      with subtest("nothing was lost"):
          machine.succeed(
              "curl --fail --silent http://127.0.0.1:8092/v1/models"
              " -H \"Authorization: Bearer $(cat /var/lib/lares/laptop.key)\""
          )
    '';
}
