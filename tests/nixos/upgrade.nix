# A newer generation, with other settings and another build of the program, keeps tasks, keys and the running model.
{
  nodes.machine =
    { lib, pkgs, ... }:
    {
      imports = [ ./upstream.nix ];
      services.lares.ralph.repositories = [ "/srv/app" ];
      systemd.tmpfiles.rules = [ "d /srv/app 0750 lares lares -" ];
      specialisation.newer.configuration.services.lares = {
        # The same program in another store path: what a new version looks like to systemd.
        package = lib.mkForce (
          pkgs.symlinkJoin {
            name = "lares-newer";
            paths = [ pkgs.lares ];
            meta.mainProgram = "lares";
          }
        );
        ralph.workers = 2;
        log.level = "debug";
      };
    };

  testScript =
    { nodes, ... }:
    ''
      machine.wait_for_unit("lares-coordinator.service", timeout=300)
      machine.wait_for_unit("lares-ralph.service", timeout=300)
      git = "as-lares git -C /srv/app -c user.name=Test -c user.email=test@example.org "
      machine.succeed(
          "printf 'no\\n' >/srv/app/answer.txt",
          "chown -R lares:lares /srv/app",
          git + "init --quiet --initial-branch main",
          git + "add .",
          git + "commit --quiet --message first",
          "printf 'answer.txt\\n```text\\nyes\\n```\\n' >/var/lib/scripted/answer",
      )
      machine.succeed("as-lares lares key create laptop --role operator --file /var/lib/lares/laptop.key")
      machine.succeed(
          "lares task submit --repo /srv/app --check 'grep yes answer.txt' 'write yes into answer.txt'", timeout=300
      )
      before = machine.succeed("lares --json task list | jq -r '.tasks[] | .id + .state + .result_commit'")
      database = machine.succeed("systemctl show -p InvocationID --value postgresql.service")

      machine.succeed("${nodes.machine.system.build.toplevel}/specialisation/newer/bin/switch-to-configuration test")
      machine.wait_until_succeeds("curl --fail --silent http://127.0.0.1:8092/ready", timeout=120)
      machine.wait_until_succeeds("curl --fail --silent http://127.0.0.1:8098/ready", timeout=120)

      with subtest("the new generation runs"):
          machine.succeed("systemctl show -p ExecStart lares-ralph.service | grep lares-newer")
          machine.succeed("lares --json config show --changed | jq -e '.[] | select(.key == \"ralph.workers\").value == 2'")

      with subtest("tasks and keys are as they were"):
          after = machine.succeed("lares --json task list | jq -r '.tasks[] | .id + .state + .result_commit'")
          assert before == after, f"{before} became {after}"
          machine.succeed("LARES_API_KEY_FILE=/var/lib/lares/laptop.key lares task list")
          assert database == machine.succeed("systemctl show -p InvocationID --value postgresql.service")

      with subtest("and after a reboot into the old one too"):
          machine.shutdown()
          machine.start()
          machine.wait_for_unit("lares-ralph.service", timeout=300)
          machine.wait_until_succeeds("lares task list", timeout=60)
          assert before == machine.succeed("lares --json task list | jq -r '.tasks[] | .id + .state + .result_commit'")
    '';
}
