#!/usr/bin/env python3
"""A service to break: an HTTP server with the ways to fail of real ones, each with the words real ones use.

    victim PORT [--says TEXT] [--slow SECONDS] [--file PATH] [--needs PORT] [--patient] [--database PATH]
                [--lock PATH] [--clears PATH] [--writes PATH] [--refuses PATH] [--crashes PATH] [--orphan] [--child]

VICTIM_PORT in the environment takes the place of PORT.
"""

import argparse
import http.server
import os
import socket
import sqlite3
import sys
import time
import urllib.parse

# Exit status of a program that refuses its configuration.
EX_CONFIG = 78

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("--says", default="ok", help="what it answers")
parser.add_argument("--slow", type=float, default=0, help="seconds it takes before it listens")
parser.add_argument("--file", help="a file it reads first")
parser.add_argument("--needs", type=int, help="a port of 127.0.0.1 it has to reach first")
parser.add_argument("--patient", action="store_true", help="tries until it reaches that port")
parser.add_argument("--database", help="an SQLite database it writes to first")
parser.add_argument("--lock", help="a lock file: it ends while that is there")
parser.add_argument("--clears", help="a lock file that it removes, as a database does that recovers")
parser.add_argument("--writes", help="a file it writes to first")
parser.add_argument("--refuses", help="it refuses its configuration while this file is there")
parser.add_argument("--crashes", help="it crashes for an unknown reason while this file is there")
parser.add_argument("--orphan", action="store_true", help="leaves a child behind that holds the port")
parser.add_argument("--child", action="store_true", help="has a worker that is a child of nobody")
arguments = parser.parse_args()
port = int(os.environ.get("VICTIM_PORT", arguments.port))


def say(text):
    print(text, file=sys.stderr, flush=True)


def end(text, status=1):
    say(text)
    sys.exit(status)


def ready():
    """Tells systemd, if it wants to be told."""
    place = os.environ.get("NOTIFY_SOCKET")
    if place:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
            door.sendto(b"READY=1", "\0" + place[1:] if place.startswith("@") else place)


if arguments.refuses and os.path.exists(arguments.refuses):
    end("the configuration is refused: unknown key `prot`", EX_CONFIG)
if arguments.crashes and os.path.exists(arguments.crashes):
    end("assertion failed: the invariant of the queue does not hold")
if arguments.clears and os.path.exists(arguments.clears):
    os.remove(arguments.clears)
if arguments.lock and os.path.exists(arguments.lock):
    with open(arguments.lock) as file:
        end(f"database is locked by process {file.read().strip()} ({arguments.lock})")
if arguments.file:
    try:
        with open(arguments.file, "rb") as file:
            if file.read(4) != b"GGUF":
                end(f"gguf_init_from_file_impl: invalid magic characters: '????', expected 'GGUF' in {arguments.file}")
    except FileNotFoundError:
        end(f"gguf_init_from_file: failed to open GGUF file '{arguments.file}' (No such file or directory)")
    except PermissionError as error:
        end(f"PermissionError: [Errno 13] Permission denied: '{error.filename}'")
if arguments.writes:
    try:
        with open(arguments.writes, "wb") as file:
            file.write(bytes(1 << 16))
    except OSError as error:
        end(f"OSError: [Errno {error.errno}] {error.strerror}: '{arguments.writes}'")
while arguments.needs:
    try:
        socket.create_connection(("127.0.0.1", arguments.needs), 1).close()
        break
    except OSError:
        if not arguments.patient:
            end(f"connect to 127.0.0.1 port {arguments.needs} failed: Connection refused")
        say(f"127.0.0.1:{arguments.needs}: Connection refused, retrying in 1 s")
        time.sleep(1)
if arguments.database:
    try:
        connection = sqlite3.connect(arguments.database, timeout=0.3)
        connection.execute("CREATE TABLE IF NOT EXISTS seen (at REAL)")
        connection.execute("INSERT INTO seen VALUES (?)", (time.time(),))
        connection.commit()
        connection.close()
    except sqlite3.OperationalError as error:
        end(f"sqlite3.OperationalError: {error}")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/say?"):
            # What a client sends ends up in the log, as in any access log.
            say(urllib.parse.unquote(self.path.removeprefix("/say?")))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(arguments.says.encode())

    def log_message(self, *_):
        pass


time.sleep(arguments.slow)
try:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
except OSError:
    end(f"bind() to 127.0.0.1:{port} failed (98: Address already in use)")
if arguments.orphan and os.fork() == 0:
    # Outlives its parent with the listening socket, as a worker does that missed the signal.
    time.sleep(3600)
if arguments.child and os.fork() == 0:
    server.server_close()
    if os.fork() == 0:
        time.sleep(3600)
    os._exit(0)
say(f"listening on 127.0.0.1:{port}")
ready()
server.serve_forever()
