# PostgreSQL goes away and comes back: the daemons say that they are not ready, lose nothing, and go on by themselves.
{
  nodes.machine.imports = [ ./upstream.nix ];

  testScript = ''
    machine.wait_for_unit("lares-coordinator.service", timeout=300)
    machine.wait_for_unit("lares-ralph.service", timeout=300)
    machine.wait_for_unit("lares-tools.service", timeout=300)
    key = machine.succeed("cat /var/lib/lares/keys/admin.key").strip()
    chat = (
        "curl --fail --silent --max-time 60 http://127.0.0.1:8092/v1/chat/completions"
        f" -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json'"
        " -d '{\"model\": \"scripted\", \"messages\": [{\"role\": \"user\", \"content\": \"hello\"}]}'"
    )
    machine.succeed(chat)
    ralph = machine.succeed("systemctl show -p InvocationID --value lares-ralph.service")

    with subtest("not ready, and saying why"):
        machine.succeed("systemctl stop postgresql.service")
        for port in [8091, 8092, 8098]:
            machine.wait_until_succeeds(
                f"curl --silent http://127.0.0.1:{port}/ready | jq -e '.status == \"not-ready\"'", timeout=60
            )
            machine.succeed(f"curl --fail --silent http://127.0.0.1:{port}/health")

    with subtest("known keys still open the door to the models"):
        assert "hello" in machine.succeed(chat)

    with subtest("back, without anybody's help"):
        machine.succeed("systemctl start postgresql.target || systemctl start postgresql.service")
        for port in [8091, 8092, 8098]:
            machine.wait_until_succeeds(
                f"curl --silent http://127.0.0.1:{port}/ready | jq -e '.status == \"ready\"'", timeout=120
            )
        machine.wait_until_succeeds("lares task list", timeout=60)
        same = machine.succeed("systemctl show -p InvocationID --value lares-ralph.service")
        print("ralph was restarted" if same != ralph else "ralph ran on")
  '';
}
