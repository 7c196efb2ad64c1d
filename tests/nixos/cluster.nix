# Two machines and one database: each task is worked on once, whichever machine it was given to, and when one machine
# goes away the other takes over what it had begun.
{
  nodes = {
    control = {
      imports = [ ./upstream.nix ];
      services.postgresql = {
        enableTCPIP = true;
        authentication = "host lares lares 192.168.1.0/24 scram-sha-256";
      };
      networking.firewall.allowedTCPPorts = [ 5432 ];
      services.lares.ralph = {
        repositories = [ "/srv/app" ];
        lease = "5s";
      };
      systemd.tmpfiles.rules = [ "d /srv/app 0750 lares lares -" ];
    };

    worker = {
      imports = [ ./upstream.nix ];
      # Everybody can read it here; a machine of yours has it from agenix or sops-nix. The address is that of the first
      # machine in the order of names.
      environment.etc."database.url".text = "postgresql://lares:secret@192.168.1.1/lares";
      services.lares = {
        database.createLocally = false;
        store.urlFile = "/etc/database.url";
        allowedAddresses = [ "192.168.1.0/24" ];
        ralph = {
          repositories = [ "/srv/app" ];
          lease = "5s";
        };
      };
      systemd.tmpfiles.rules = [ "d /srv/app 0750 lares lares -" ];
    };
  };

  testScript = ''
    import json

    start_all()
    control.wait_for_unit("postgresql.service")
    control.wait_for_unit("lares-setup.service", timeout=300)
    control.succeed("runuser -u postgres -- psql --command \"ALTER ROLE lares PASSWORD 'secret'\"")

    # The same commit at the same path on both: everything that goes into its hash is given.
    git = (
        "as-lares env GIT_AUTHOR_DATE='2026-01-01T00:00:00Z' GIT_COMMITTER_DATE='2026-01-01T00:00:00Z'"
        " git -C /srv/app -c user.name=Test -c user.email=test@example.org "
    )
    for machine in [control, worker]:
        machine.wait_for_unit("lares-ralph.service", timeout=300)
        machine.wait_until_succeeds("curl --fail --silent http://127.0.0.1:8098/ready", timeout=120)
        machine.succeed(
            "printf 'no\\n' >/srv/app/answer.txt",
            "chown -R lares:lares /srv/app",
            git + "init --quiet --initial-branch main",
            git + "add .",
            git + "commit --quiet --message first",
            "printf 'answer.txt\\n```text\\nyes\\n```\\n' >/var/lib/scripted/answer",
            "systemctl restart lares-ralph.service",
        )
        machine.wait_until_succeeds("curl --fail --silent http://127.0.0.1:8098/ready", timeout=120)

    with subtest("the keys of one machine work although the other has its own"):
        for machine in [control, worker]:
            machine.wait_until_succeeds("lares task list", timeout=60)

    with subtest("what one machine is given both work on, each task once"):
        submit = "lares task submit --detach --repo /srv/app --check 'sleep 1; grep yes answer.txt' 'write yes into answer.txt'"
        for _ in range(6):
            control.succeed(submit)
        control.wait_until_succeeds(
            "test $(lares --json task list --state succeeded | jq '.tasks | length') = 6", timeout=300
        )
        tasks = json.loads(worker.succeed("lares --json task list"))["tasks"]
        for task in tasks:
            log = control.succeed(f"lares --json task logs {task['id']}")
            assert log.count("taken by ") == 1, log
        print(control.succeed("lares task list"))

    with subtest("a machine goes away in the middle of a task"):
        slow = submit.replace("sleep 1", "sleep 20")
        worker.succeed("systemctl stop lares-ralph.service")
        control.succeed(slow)
        control.wait_until_succeeds("test $(lares --json task list --state running | jq '.tasks | length') = 1", timeout=60)
        worker.succeed("systemctl start lares-ralph.service")
        # Not a clean stop: it has no time to give its task back.
        control.succeed("systemctl kill --signal=KILL lares-ralph.service && systemctl stop lares-ralph.service")
        worker.wait_until_succeeds(
            "test $(lares --json task list --state succeeded | jq '.tasks | length') = 7", timeout=300
        )
  '';
}
