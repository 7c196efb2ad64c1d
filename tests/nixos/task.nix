# From a failing check to a commit: the built-in agent asks a scripted model, the check decides.
{
  nodes.machine =
    { pkgs, ... }:
    {
      imports = [ ./upstream.nix ];
      services.lares.ralph = {
        repositories = [ "/srv/app" ];
        path = [ pkgs.python3Minimal ];
      };
      systemd.tmpfiles.rules = [ "d /srv/app 0750 lares lares -" ];
    };

  testScript = ''
    machine.wait_for_unit("lares-coordinator.service", timeout=300)

    git = "as-lares git -C /srv/app -c user.name=Test -c user.email=test@example.org "
    # The check is a plain file: what a task may change is decided by the task, not by what looks like a test.
    machine.succeed(
        "printf 'def double(n):\\n    return n + n + 1\\n' >/srv/app/numbers_.py",
        "printf 'from numbers_ import double\\nassert double(4) == 8\\nprint(\"good\")\\n' >/srv/app/check.py",
        "chown -R lares:lares /srv/app",
        git + "init --quiet --initial-branch main",
        git + "add .",
        git + "commit --quiet --message first",
    )
    machine.succeed("systemctl restart lares-ralph.service")
    machine.wait_for_unit("lares-ralph.service")
    submit = "lares task submit --repo /srv/app --check 'python3 check.py' "

    with subtest("a model that cannot do it ends without success"):
        machine.succeed("echo 'I do not know.' >/var/lib/scripted/answer")
        code, output = machine.execute(submit + "--max-iterations 2 'make check.py pass in numbers_.py'")
        assert code == 3, f"exit code {code}: {output}"

    with subtest("a model that can ends with a commit"):
        machine.succeed(
            "printf 'numbers_.py\\n```python\\ndef double(n):\\n    return n + n\\n```\\n' >/var/lib/scripted/answer"
        )
        print(machine.succeed(submit + "'make check.py pass in numbers_.py'", timeout=300))
        state = machine.succeed("lares --json task list -n 1 | jq -r '.tasks[0].state'").strip()
        assert state == "succeeded", state

    with subtest("the working tree is as it was, the branch has the change"):
        machine.succeed(git + "diff --exit-code HEAD")
        machine.succeed("grep 'n + n + 1' /srv/app/numbers_.py")
        task = machine.succeed("lares --json task list -n 1 | jq -r '.tasks[0].id'").strip()
        assert "+    return n + n\n" in machine.succeed(f"lares task diff {task}")

    with subtest("it is merged when somebody says so"):
        machine.succeed(f"lares task merge {task}")
        assert "return n + n\n" in machine.succeed(git + "show main:numbers_.py")

    with subtest("a check sees neither the keys nor the network"):
        # A check that passes before anything is changed ends its task at once: these pass when they are refused.
        for refused in [
            "cat /var/lib/lares/keys/admin.key",
            "python3 -c \"import socket; socket.create_connection((\\\"127.0.0.1\\\", 8092))\"",
        ]:
            machine.succeed(f"lares task submit --repo /srv/app --max-iterations 1 --check '! {refused}' 'nothing'")
  '';
}
