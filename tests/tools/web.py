"""HTTP servers of the tests, on loopback: a page, an MCP server that writes down what it is sent, one that leads away."""

import http.server
import json
import threading

PAGE = "<html><head><title>Pier</title></head><body><article><h1>Pier</h1><p>%s</p></article></body></html>"
SAYS = "The lamp on the northern pier was lit in 1871 and turns once in ten seconds."
ROBOTS = "User-agent: *\nDisallow: /secret\n"


class Server:
    """A server in a thread; `seen` has path, headers and body of each request."""

    def __init__(self, answer):
        self.seen = []
        seen = self.seen

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                seen.append((self.path, self.headers.items(), body))
                status, headers, answered = answer(self.command, self.path, body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(answered)))
                self.end_headers()
                self.wfile.write(answered)

            do_GET = do_POST = do_DELETE = handle_any

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        # A client that goes away is none of the test's business.
        self.server.handle_error = lambda *_: None
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, path="/mcp"):
        return f"http://127.0.0.1:{self.port}{path}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def page():
    def answer(_, path, __):
        if path == "/robots.txt":
            return 200, {"content-type": "text/plain"}, ROBOTS.encode()
        return 200, {"content-type": "text/html; charset=utf-8"}, (PAGE % SAYS).encode()

    return Server(answer)


def leading_to(target):
    """Answers everything with a redirect."""
    return Server(lambda *_: (307, {"location": target}, b""))


def recorder():
    """An MCP server of the revisions with `initialize`, with one tool."""

    def result(message):
        method = message.get("method")
        if method == "initialize":
            return {
                "protocolVersion": "2025-11-25", "capabilities": {"tools": {}},
                "serverInfo": {"name": "recorder", "version": "1"},
            }
        if method == "tools/list":
            schema = {"type": "object", "properties": {"text": {"type": "string"}}}
            return {"tools": [{"name": "note", "description": "Notes a line of text", "inputSchema": schema}]}
        if method == "tools/call":
            return {"content": [{"type": "text", "text": "noted " + message["params"]["arguments"]["text"]}]}
        return {} if method == "ping" else None

    def answer(method, _, body):
        if method != "POST":
            return 405, {}, b""
        message = json.loads(body)
        if "id" not in message:
            return 202, {}, b""
        given = result(message)
        outcome = {"error": {"code": -32601, "message": "no such method"}} if given is None else {"result": given}
        answered = {"jsonrpc": "2.0", "id": message["id"], **outcome}
        return 200, {"content-type": "application/json"}, json.dumps(answered).encode()

    return Server(answer)
