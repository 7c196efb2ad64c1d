#!/usr/bin/env python3
"""A service to break: an HTTP server with the ways to fail of real ones, each with the words real ones use.

    victim PORT [--says TEXT] [--file PATH] [--needs PORT] [--patient] [--database PATH] [--orphan]
"""

import argparse
import http.server
import os
import socket
import sqlite3
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("--says", default="ok", help="what it answers")
parser.add_argument("--file", help="a file it reads first")
parser.add_argument("--needs", type=int, help="a port of 127.0.0.1 it has to reach first")
parser.add_argument("--patient", action="store_true", help="tries until it reaches that port")
parser.add_argument("--database", help="an SQLite database it writes to first")
parser.add_argument("--orphan", action="store_true", help="leaves a child behind that holds the port")
arguments = parser.parse_args()


def say(text):
    print(text, file=sys.stderr, flush=True)


def end(text):
    say(text)
    sys.exit(1)


if arguments.file:
    try:
        with open(arguments.file, "rb") as file:
            if file.read(4) != b"GGUF":
                end(f"gguf_init_from_file_impl: invalid magic characters: '????', expected 'GGUF' in {arguments.file}")
    except FileNotFoundError:
        end(f"gguf_init_from_file: failed to open GGUF file '{arguments.file}' (No such file or directory)")
    except PermissionError as error:
        end(f"PermissionError: [Errno 13] Permission denied: '{error.filename}'")
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
        connection = sqlite3.connect(arguments.database, timeout=1)
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
            say(self.path.removeprefix("/say?"))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(arguments.says.encode())

    def log_message(self, *_):
        pass


try:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler)
except OSError:
    end(f"bind() to 127.0.0.1:{arguments.port} failed (98: Address already in use)")
if arguments.orphan and os.fork() == 0:
    # Outlives its parent with the listening socket, as a worker does that missed the signal.
    time.sleep(3600)
say(f"listening on 127.0.0.1:{arguments.port}")
server.serve_forever()
