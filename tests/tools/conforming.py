"""The server behind the daemon that the conformance suite asks about, and the door by which it reaches the daemon."""

import http.client
import http.server
import subprocess
import threading

# Longest answer of a stream that the suite listens to.
LONGEST = 120

CONFIGURATION = """
[tools.servers.fixture]
url = "{url}"
trusted = true
protocol = "{era}"
[tools.toolsets.conformance]
tools = ["fixture__*"]
mode = "list"
namespaces = false
"""


class Door(http.server.BaseHTTPRequestHandler):
    """Adds a key to what the suite sends, which has no way to carry one; everything else goes through as it is."""

    protocol_version = "HTTP/1.1"
    daemon = None
    key = None
    own = {"authorization", "connection", "transfer-encoding", "keep-alive"}

    def log_message(self, *_):
        pass

    def through(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        there = http.client.HTTPConnection(*self.daemon, timeout=LONGEST)
        there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in self.own:
                there.putheader(name, value)
        there.putheader("authorization", f"Bearer {self.key}")
        there.endheaders(body or None)
        answer = there.getresponse()
        self.close_connection = True
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in self.own:
                self.send_header(name, value)
        self.send_header("connection", "close")
        self.end_headers()
        try:
            while piece := answer.read1(65536):
                self.wfile.write(piece)
                self.wfile.flush()
        except OSError:
            pass
        finally:
            there.close()

    do_GET = do_POST = do_DELETE = do_OPTIONS = do_PUT = through


def door(daemon, key):
    """Opens a door to `daemon`; gives its port."""
    handler = type("Door", (Door,), {"daemon": daemon, "key": key})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def fixture(binary):
    """Starts the server that goes behind; gives its process and URL."""
    process = subprocess.Popen([binary, "127.0.0.1:0", "list"], stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()
