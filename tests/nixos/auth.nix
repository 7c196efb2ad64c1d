# No request without a key, no request with a key of too low a role.
{
  nodes.machine.imports = [ ./upstream.nix ];

  testScript = ''
    machine.wait_for_unit("lares-coordinator.service", timeout=300)
    machine.wait_for_unit("lares-ralph.service", timeout=300)
    machine.wait_for_unit("lares-tools.service", timeout=300)

    coordinator, ralph, tools = "http://127.0.0.1:8092", "http://127.0.0.1:8098", "http://127.0.0.1:8091"


    def status(url, key=None, post=None):
        header = f"-H 'Authorization: Bearer {key}'" if key else ""
        body = f"-H 'Content-Type: application/json' -d '{post}'" if post else ""
        return machine.succeed(f"curl --silent --output /dev/null -w '%{{http_code}}' {header} {body} {url}").strip()


    def make(name, role):
        return machine.succeed(f"as-lares lares key create {name} --role {role} 2>/dev/null").strip()


    def expect(found, wanted):
        assert found == wanted, f"status {found}, expected {wanted}"


    with subtest("health is open, everything else is not"):
        for url in [coordinator, ralph, tools]:
            expect(status(f"{url}/health"), "200")
            expect(status(f"{url}/metrics"), "401")
        expect(status(f"{coordinator}/v1/models"), "401")
        expect(status(f"{coordinator}/v1/chat/completions", post="{}"), "401")
        expect(status(f"{ralph}/tasks"), "401")
        expect(status(f"{ralph}/tasks", post="{}"), "401")
        expect(status(f"{tools}/api/v1/tools"), "401")
        expect(status(f"{tools}/mcp", post="{}"), "401")
        expect(status(f"{coordinator}/v1/models", key="lares_wrong"), "401")

    with subtest("a role opens its own doors"):
        viewer, client, operator = make("v", "viewer"), make("c", "client"), make("o", "operator")
        machine.wait_until_succeeds(
            f"curl --fail --silent -H 'Authorization: Bearer {operator}' {coordinator}/v1/models", timeout=60
        )
        expect(status(f"{coordinator}/v1/models", key=client), "200")
        expect(status(f"{coordinator}/v1/models", key=viewer), "403")
        expect(status(f"{ralph}/tasks", key=viewer), "200")
        expect(status(f"{ralph}/tasks", key=client, post="{}"), "403")
        expect(status(f"{tools}/api/v1/tools", key=viewer), "200")
        expect(status(f"{tools}/mcp", key=viewer, post="{}"), "403")
        expect(status(f"{tools}/api/v1/tools/discover", key=client, post="{}"), "403")
        # Past the gate: refused for what it says, no longer for who says it.
        expect(status(f"{ralph}/tasks", key=operator, post="{}"), "422")

    with subtest("a key that was revoked opens nothing"):
        machine.succeed("as-lares lares key revoke c")
        machine.wait_until_succeeds(
            f"test $(curl --silent --output /dev/null -w '%{{http_code}}' -H 'Authorization: Bearer {client}'"
            f" {coordinator}/v1/models) = 401",
            timeout=60,
        )

    with subtest("who has no key file cannot act as if they had"):
        machine.fail("runuser -u nobody -- lares task list")
        machine.fail("runuser -u nobody -- lares key create mine --role admin")
  '';
}
