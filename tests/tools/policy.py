"""What callers may do and what reaches the servers: rules, toolsets, keys, addresses, headers, no shell."""

import ipaddress
import json
import socket

from bed import Failure
from client import Api, Mcp
from faults import lie
from house import found, section
from servers import declared
import web

SECRETS = ["cookie-of-the-caller", "secret-of-the-caller", "trace-of-the-caller"]


class Policy:
    """Before the daemon is up it says what has to be declared, afterwards it looks."""

    def __init__(self, parts, servers, place):
        self.parts, self.directory, self.lies = parts, place("policy"), place("lies/wary")
        self.time = next((server for server in servers if server.name == "time"), None)
        self.recorder, self.target, self.named = web.recorder(), web.recorder(), web.recorder()
        self.leading = web.leading_to(self.target.url())
        self.away = web.leading_to("http://169.254.169.254/latest/meta-data")
        # Whoever it is written for may do anything here.
        self.directory.chmod(0o777)
        self.touched = [self.directory / name for name in ("semicolon", "dollar", "pipe")]
        (self.directory / "upstream-key").write_text("key-of-the-upstream")

    def host(self):
        """A name that is none of loopback's own and resolves to an address that is not public."""
        name = socket.gethostname()
        try:
            address = ipaddress.ip_address(socket.gethostbyname(name))
        except (OSError, ValueError):
            return None
        return None if address.is_global or name == "localhost" else name

    def configuration(self):
        semicolon, dollar, pipe = self.touched
        echo = f"/bin/echo; touch {semicolon}"
        others = {
            "meta": {"url": "http://169.254.169.254/"}, "private": {"url": "http://10.0.0.1/mcp"},
            "beside": {"url": self.target.url("/beside")},
        }
        if self.host():
            others["name"] = {"url": f"http://{self.host()}:{self.named.port}/mcp"}
        file = self.directory / "mcp.json"
        file.write_text(json.dumps({"mcpServers": others}))
        write = [str(self.directory)]
        http = {"trusted": True, "protocol": "sessions"}
        wary = {"tools.servers.wary": declared(self.time, self.parts, self.lies, trusted=False)} if self.time else {}
        return "".join([
            *(section(name, values) for name, values in wary.items()),
            section("tools.discovery", {"client_files": [str(file)], "units": False}),
            section("tools.servers.shell-one", {"command": [echo], "write": write}),
            section("tools.servers.shell-two", {
                "command": ["/bin/echo", f"; touch {semicolon}", f"$(touch {dollar})", f"| touch {pipe}"],
                "write": write,
            }),
            section("tools.servers.recorder", {
                **http, "url": self.recorder.url(),
                "header_files": {"x-upstream": str(self.directory / "upstream-key")},
            }),
            section("tools.servers.leading", {**http, "url": self.leading.url()}),
            section("tools.servers.away", {**http, "url": self.away.url()}),
            '[[tools.policy]]\ntools = ["everything__get-structured-*"]\naction = "ask"\n',
            '[[tools.policy]]\ntools = ["everything__get-tiny-image"]\naction = "deny"\n',
            section("tools.toolsets.found", {"tools": ["everything__*"], "mode": "search"}),
            section("tools.toolsets.direct", {"tools": ["everything__*"], "mode": "list"}),
            section("tools.toolsets.bound", {"tools": ["recorder__*"], "keys": ["tests-bound"], "mode": "list"}),
        ])

    def close(self):
        for server in self.recorder, self.target, self.named, self.leading, self.away:
            server.close()


def rules(house, _):
    """Allow, ask and deny, through `call_tool` and by a tool's own name."""
    key, problems, weather = house.caller("tests-caller"), [], {"location": "New York"}
    yes, no = {"action": "accept", "content": {"allow": True}}, {"action": "decline"}
    for path, direct in ("/mcp/found", False), ("/mcp/direct", True):
        def call(session, tool, arguments, direct=direct):
            try:
                failed, text, _ = (session.tool if direct else session.call)(f"everything__{tool}", arguments)
                return failed, text
            except Failure as failure:
                return True, str(failure)

        def expect(what, outcome, failed, said, path=path):
            if outcome[0] != failed or said not in outcome[1]:
                problems.append(f"{path}, {what}: {outcome[1][:200]!r}")

        asking, silent = Mcp(house.address, key, path, elicits=True), Mcp(house.address, key, path)
        expect("allow", call(silent, "echo", {"message": "ahoy"}), False, "ahoy")
        expect("ask nobody", call(silent, "get-structured-content", weather), True, "consent")
        asking.answers = [yes, no]
        expect("ask, yes", call(asking, "get-structured-content", weather), False, "temperature")
        expect("ask, no", call(asking, "get-structured-content", weather), True, "declined")
        if len(asking.asked) != 2 or "get-structured-content" not in asking.asked[0]["message"]:
            problems.append(f"{path}: a person was asked {asking.asked}")
        denied = call(silent, "get-tiny-image", {})
        if not denied[0]:
            problems.append(f"{path}: a denied tool was called")
        if direct:
            shown = [tool["name"] for tool in silent.request("tools/list", {})["tools"]]
            if "everything__echo" not in shown or not all(name.startswith("everything__") for name in shown):
                problems.append(f"the toolset shows {shown}")
        else:
            shown = silent.search("a tiny image, a logo picture")
        if "everything__get-tiny-image" in shown:
            problems.append(f"{path}: a denied tool is shown")
        for session in asking, silent:
            session.close()
    api = Api(house.address, key)
    for tool, arguments, confirmed, wanted in [
        ("echo", {"message": "ahoy"}, False, [200]), ("get-tiny-image", {}, True, [403, 404]),
        ("get-structured-content", weather, False, [409]), ("get-structured-content", weather, True, [200]),
    ]:
        body = {"arguments": arguments, "confirmed": confirmed}
        status, said = api.send("POST", f"/api/v1/tools/everything__{tool}/call", body)
        problems += [] if status in wanted else [f"{tool} over HTTP, confirmed {confirmed}: {status} {said}"]
    return problems


def toolsets(house, _):
    bound = house.caller("tests-bound")
    session = Mcp(house.address, bound)
    shown = [tool["name"] for tool in session.request("tools/list", {})["tools"]]
    problems = [] if shown == ["recorder__note"] else [f"a bound key sees {shown}"]
    for tool in "everything__echo", "call_tool":
        try:
            failed, text, _ = session.tool(tool, {"message": "ahoy", "name": "everything__echo"})
            problems += [] if failed else [f"a bound key calls {tool}: {text!r}"]
        except Failure:
            pass
    session.close()
    for path, key in ("/mcp/direct", bound), ("/mcp/bound", house.caller("tests-caller")), ("/mcp/none", bound):
        try:
            Mcp(house.address, key, path).close()
            problems.append(f"{path} is open to the wrong key")
        except Failure as failure:
            problems += [] if "404" in str(failure) else [f"{path}: {failure}"]
    api = Api(house.address, bound)
    status, _ = api.send("POST", "/api/v1/tools/everything__echo/call", {"arguments": {"message": "ahoy"}})
    problems += [] if status in (403, 404) else [f"a bound key calls over HTTP: {status}"]
    viewer = Api(house.address, house.caller("tests-viewer", "viewer"))
    status, _ = viewer.send("POST", "/api/v1/tools/everything__echo/call", {"arguments": {"message": "ahoy"}})
    problems += [] if status == 403 else [f"a viewer calls: {status}"]
    caller = Api(house.address, house.caller("tests-caller"))
    status, _ = caller.send("POST", "/api/v1/tools/everything__echo/quarantine", {})
    return problems + ([] if status == 403 else [f"a client decides: {status}"])


def strangers(house, _):
    """Pages of others, by `Origin` and by `Host`, and callers without a key."""
    problems = []
    key = house.caller("tests-caller")
    port = house.address.rpartition(":")[2]
    tries = [
        ({"origin": "http://evil.example"}, 403), ({"origin": "null"}, 403), ({"host": "evil.example"}, 421),
        ({"host": f"evil.example:{port}"}, 421), ({"authorization": ""}, 401), ({"authorization": "Bearer wrong"}, 401),
    ]
    for path in "/mcp", "/mcp/direct", "/api/v1/tools":
        for headers, wanted in tries:
            method = "GET" if path.startswith("/api") else "POST"
            body = {"jsonrpc": "2.0", "id": 1, "method": "ping"} if method == "POST" else None
            status, _ = Api(house.address, key).send(method, path, body, headers)
            problems += [] if status == wanted else [f"{path} with {headers}: {status}, not {wanted}"]
    return problems


def headers(house, policy):
    """Nothing of the caller's own reaches a server on HTTP, and what is configured for it does."""
    key = house.caller("tests-caller")
    cookie, secret, trace = SECRETS
    found("the server is up", lambda: is_up(house.admin.server("recorder")), 20)
    sent = {"cookie": f"session={cookie}", "x-secret": secret, "x-forwarded-for": "203.0.113.9", "traceparent": trace}
    session = Mcp(house.address, key, headers=sent)
    failed, text, _ = session.call("recorder__note", {"text": "ahoy"})
    session.close()
    problems = [] if not failed and text == "noted ahoy" else [f"{text!r}"]
    calls = [seen for seen in policy.recorder.seen if b"tools/call" in seen[2]]
    problems += [] if calls else ["the call did not arrive"]
    for _, shown, body in policy.recorder.seen:
        said = f"{shown} {body}"
        problems += [f"{what} reached the server" for what in [key, "203.0.113.9", *SECRETS] if what in said]
        names = {name.lower() for name, _ in shown}
        problems += [f"a header {name}" for name in names & {"authorization", "cookie", "x-secret", "traceparent"}]
        if ("x-upstream", "key-of-the-upstream") not in [(name.lower(), value) for name, value in shown]:
            problems.append("the configured header is missing")
    return problems[:5]


def addresses(house, policy):
    """What was only found is not connected to; names and redirects do not lead to private addresses."""
    admin, problems = house.admin, []
    for name in "meta", "private", "beside":
        shown = admin.server(name)
        if (shown["state"], shown["connections"]) != ("proposed", 0):
            problems.append(f"{name}: {shown['state']}, {shown['connections']} connections")
    for name in "leading", "away":
        shown = found(f"{name} failed", lambda name=name: has_failed(admin.server(name)), 20)
        if "redirect" not in shown["last_error"] and "307" not in shown["last_error"]:
            problems.append(f"{name}: the reason is {shown['last_error']!r}")
    if policy.host():
        admin.ask("POST", "/api/v1/servers/name/approve", {})
        shown = found("the name failed", lambda: has_failed(admin.server("name")), 20)
        if "nobody allowed" not in shown["last_error"] and "only if" not in shown["last_error"]:
            problems.append(f"name: the reason is {shown['last_error']!r}")
        admin.ask("POST", "/api/v1/servers/name/reject", {})
    for where, server in ("a redirect", policy.target), ("a name", policy.named):
        problems += [f"{where} led to {path}" for path, _, _ in server.seen[:1]]
    return problems


def is_up(shown):
    return shown["health"] == "up" and shown["approved"] == 1


def has_failed(shown):
    return shown if shown["health"] in ("down", "resting") and shown.get("last_error") else None


def shells(house, policy):
    problems = [f"a command made {path.name}" for path in policy.touched if path.exists()]
    for name in "shell-one", "shell-two":
        shown = found(f"{name} failed", lambda name=name: has_failed(house.admin.server(name)), 20)
        problems += [] if shown["last_error"] else [f"{name}: no reason"]
    return problems


def environment(house, _):
    """A server sees its own few variables, and nothing of the daemon's or the caller's."""
    session = Mcp(house.address, house.caller("tests-caller"))
    failed, text, _ = session.call("everything__get-env", {})
    session.close()
    if failed:
        return [text[:300]]
    extra = set(json.loads(text)) - {"PATH", "HOME", "TMPDIR", "LANG", "TZ"}
    return [f"it also sees {sorted(extra)}"] if extra else []


def network(house, policy):
    """A server without network reaches nothing, also when a tool of it would."""
    session = Mcp(house.address, house.caller("tests-caller"))
    given = {"name": "page.gz", "data": policy.target.url("/stolen"), "outputType": "resource"}
    failed, text, _ = session.call("everything__gzip-file-as-resource", given)
    session.close()
    problems = [] if failed else [f"it fetched: {text[:200]!r}"]
    return problems + ["it reached the address" for path, _, _ in policy.target.seen if path == "/stolen"]


def untrusted(house, policy):
    """Tools of a server that is not trusted wait; one that changes harmlessly after its approval waits again."""
    admin, problems = house.admin, []
    session = Mcp(house.address, house.caller("tests-caller"))
    tool, (_, arguments, right) = "wary__get_current_time", policy.time.lied

    def call(what, works):
        failed, text, _ = session.call(tool, arguments)
        if works != (not failed and right(text)):
            problems.append(f"{what}: {text[:200]!r}")

    call("before it is approved", False)
    admin.ask("POST", "/api/v1/servers/wary/approve", {"tools": True})
    call("approved with its server", True)
    before = admin.tool(tool)["hash"]
    lie(policy.lies, "rug-mild get_current_time")
    found(f"{tool} is quarantined", lambda: admin.tool(tool)["state"] == "quarantined", 5)
    call("changed", False)
    failed, text, _ = session.call("wary__convert_time", policy.time.arguments)
    problems += [] if not failed and policy.time.right(text) else [f"its other tool: {text[:200]!r}"]
    shown = admin.tool(tool)
    if [difference["field"] for difference in shown["differences"]] != ["description"]:
        problems.append(f"differences: {shown['differences']}")
    status, _ = admin.send("POST", f"/api/v1/tools/{tool}/approve", {"hash": before})
    problems += [] if status == 409 else [f"an approval of what it was: {status}"]
    admin.ask("POST", f"/api/v1/tools/{tool}/approve", {"hash": shown["hash"]})
    call("approved as it is now", True)
    session.close()
    return problems


CASES = [
    ("rules", rules, "everything"), ("toolsets-and-roles", toolsets, "everything"),
    ("origin-host-and-key", strangers, None), ("headers-of-the-caller", headers, None),
    ("addresses", addresses, None), ("no-shell", shells, None), ("environment", environment, "everything"),
    ("no-network", network, "everything"), ("untrusted", untrusted, "time"),
]
