"""The clients of the tests: one of the HTTP interface, one that speaks MCP 2025-11-25 at /mcp."""

import http.client
import json
import threading
import time

from bed import Failure

PATIENCE = 15
# A connection that was not used for so long, in seconds, may be closed by the daemon just when it is used again.
IDLE = 5


class Api:
    """The HTTP interface of the daemon, with one key."""

    def __init__(self, address, key):
        self.address, self.key = address, key

    def send(self, method, path, body=None, headers=()):
        """Status and body, as JSON where it is."""
        connection = http.client.HTTPConnection(self.address, timeout=90)
        sent = {"authorization": f"Bearer {self.key}", "content-type": "application/json", **dict(headers)}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text

    def ask(self, method, path, body=None):
        status, answer = self.send(method, path, body)
        if status >= 300:
            raise Failure(f"{method} {path}: {status} {json.dumps(answer)[:500]}")
        return answer

    def get(self, path):
        return self.ask("GET", path)

    def server(self, name):
        return self.get(f"/api/v1/servers/{name}")

    def tool(self, tool):
        return self.get(f"/api/v1/tools/{tool}")


class Mcp:
    """A session at the gateway. It belongs to one thread; `answers` are given to elicitations, in turn."""

    def __init__(self, address, key, path="/mcp", elicits=False, headers=()):
        self.address, self.path = address, path
        self.headers = {
            "authorization": f"Bearer {key}", "content-type": "application/json",
            "accept": "application/json, text/event-stream", **dict(headers),
        }
        self.asked, self.answers, self.number, self.used = [], [], 0, time.monotonic()
        self.connection = http.client.HTTPConnection(address, timeout=PATIENCE)
        capabilities = {"elicitation": {}} if elicits else {}
        opened = self.request("initialize", {
            "protocolVersion": "2025-11-25", "capabilities": capabilities,
            "clientInfo": {"name": "tests", "version": "1"},
        })
        self.protocol = opened["protocolVersion"]
        self.headers["mcp-protocol-version"] = self.protocol
        self.post({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def request(self, method, params):
        """The result of a request; an error of the protocol is a failure."""
        self.number += 1
        answer = self.post({"jsonrpc": "2.0", "id": self.number, "method": method, "params": params})
        if answer is None:
            raise Failure(f"{method}: no answer")
        if "error" in answer:
            raise Failure(f"{method}: {answer['error'].get('message')}")
        return answer["result"]

    def post(self, message):
        if time.monotonic() - self.used > IDLE:
            self.connection.close()
        self.used = time.monotonic()
        try:
            self.connection.request("POST", self.path, json.dumps(message), self.headers)
            answer = self.connection.getresponse()
            self.headers.setdefault("mcp-session-id", answer.headers.get("mcp-session-id") or "")
            if answer.status >= 300:
                raise Failure(f"HTTP {answer.status}: {answer.read().decode()[:500]}")
            if not (answer.headers.get("content-type") or "").startswith("text/event-stream"):
                text = answer.read()
                return json.loads(text) if text else None
            return self.follow(answer, message.get("id"))
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            raise Failure(f"{type(error).__name__}: {error}") from error

    def follow(self, answer, number):
        """Reads a stream of events to its end, answering what is asked in it."""
        found = None
        while line := answer.readline():
            if not line.startswith(b"data:") or not line[5:].strip():
                continue
            message = json.loads(line[5:])
            if message.get("method") == "elicitation/create":
                self.asked.append(message["params"])
                given = {"jsonrpc": "2.0", "id": message["id"], "result": self.answers.pop(0)}
                threading.Thread(target=self.aside, args=(given,), daemon=True).start()
            elif message.get("id") == number and "method" not in message:
                found = message
        return found

    def aside(self, message):
        """The connection waits for the result of the call meanwhile."""
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE)
        try:
            connection.request("POST", self.path, json.dumps(message), self.headers)
            connection.getresponse().read()
        finally:
            connection.close()

    def tool(self, name, arguments):
        """A tool by its own name: whether it failed, its text and the whole result."""
        result = self.request("tools/call", {"name": name, "arguments": arguments})
        text = "\n".join(part.get("text", "") for part in result.get("content", []))
        return bool(result.get("isError")), text, result

    def call(self, tool, arguments):
        """A tool through `call_tool`."""
        return self.tool("call_tool", {"name": tool, "arguments": arguments})

    def search(self, query):
        """Names that `search_tools` finds, best first."""
        failed, text, result = self.tool("search_tools", {"query": query})
        if failed:
            raise Failure(text)
        return [hit["name"] for hit in result["structuredContent"]["tools"]]

    def close(self):
        try:
            self.connection.request("DELETE", self.path, headers=self.headers)
            self.connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            pass
        self.connection.close()
