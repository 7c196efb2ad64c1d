"""A small MCP server, of the protocol's revision 2025-11-25.

    mcp.py NAME [DESCRIPTION-FILE]                 on standard input and output
    mcp.py NAME [DESCRIPTION-FILE] --port PORT     over HTTP, at /mcp on loopback

Its tool `greet` says hello; what it says of itself is in the description file, read for every list. `around` tells what
the server's process sees of the machine, and `pid` which one it is.
"""

import argparse
import http.server
import json
import os
import socket
import sys

parser = argparse.ArgumentParser()
parser.add_argument("name")
parser.add_argument("description", nargs="?")
parser.add_argument("--port", type=int)
options = parser.parse_args()

TEXT = {"type": "object", "properties": {"name": {"type": "string", "description": "Who is greeted"}}}
NOTHING = {"type": "object", "properties": {}}


def description():
    try:
        with open(options.description or "") as file:
            return file.read().strip()
    except OSError:
        return "Says hello to somebody"


def tools():
    return [
        {"name": "greet", "description": description(), "inputSchema": TEXT | {"required": ["name"]}},
        {"name": "around", "description": "Tells what this process sees of the machine", "inputSchema": NOTHING},
        {"name": "pid", "description": "Tells the number of this process", "inputSchema": NOTHING},
    ]


def readable(path):
    try:
        with open(path) as file:
            return bool(file.read())
    except OSError:
        return False


def reachable(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
        return True
    except OSError:
        return False


def around():
    return {
        "keys": readable("/var/lib/lares/keys/admin.key"),
        "daemon": reachable(8091),
        "environment": sorted(os.environ),
        "token": os.environ.get("TOKEN"),
    }


def call(name, arguments):
    if name == "greet":
        return f"Hello, {arguments['name']}, says {options.name}"
    if name == "around":
        return json.dumps(around())
    return str(os.getpid())


def answer(message):
    """The answer to a request; None for what takes none."""
    if "id" not in message or "method" not in message:
        return None
    method, params = message["method"], message.get("params") or {}
    reply = {"jsonrpc": "2.0", "id": message["id"]}
    if method == "initialize":
        reply["result"] = {
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": options.name, "version": "1"},
        }
    elif method == "ping":
        reply["result"] = {}
    elif method == "tools/list":
        reply["result"] = {"tools": tools()}
    elif method == "tools/call":
        text = call(params["name"], params.get("arguments") or {})
        reply["result"] = {"content": [{"type": "text", "text": text}]}
    else:
        reply["error"] = {"code": -32601, "message": f"there is no method {method}"}
    return reply


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body=b""):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply(405)

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/mcp":
            return self.reply(404)
        said = answer(message)
        return self.reply(200, json.dumps(said).encode()) if said else self.reply(202)


if options.port:
    http.server.ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()
for line in sys.stdin:
    said = answer(json.loads(line))
    if said:
        print(json.dumps(said), flush=True)
