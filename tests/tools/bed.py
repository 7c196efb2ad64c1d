"""A machine's worth of Lares for the tests of tools: `lares up` in a directory of its own, and what asks it."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

# Until every daemon is ready; initdb is most of it.
READY = 120
# The house stops within 10 s.
STOPS = 12


class Skip(Exception):
    """This cannot run here; says why."""


class Failure(Exception):
    """What was to be shown was not."""


def lares():
    """The binary under test."""
    path = pathlib.Path(os.environ.get("LARES_TEST_BIN", "target/debug/lares")).resolve()
    if not path.is_file():
        raise Skip(f"LARES_TEST_BIN: {path} is not there; `make build` makes it")
    return path


def servers():
    """The directory that `make tools-servers` fills."""
    path = pathlib.Path(os.environ.get("LARES_TEST_MCP", "/nonexistent")).resolve()
    if not path.is_dir():
        raise Skip("LARES_TEST_MCP names no directory; `make fixtures` fills one")
    return path


def node():
    """Node 22, which came with the servers."""
    path = servers() / "node_modules/node/bin/node"
    if not path.is_file():
        raise Skip(f"{path} is not there; `make fixtures` fetches it")
    return path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, seen, seconds, pause=0.1):
    """Waits until `seen()` is true; gives the seconds that took."""
    begun = time.monotonic()
    while not seen():
        if time.monotonic() - begun > seconds:
            raise Failure(f"{what}: not within {seconds} s")
        time.sleep(pause)
    return time.monotonic() - begun


class Bed:
    """`lares up` with further `configuration`, and `tools`, keys of `[tools]`; both TOML."""

    def __init__(self, configuration, tools="", embedding=None, environment=None):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="lares-tools-", dir="/tmp"))
        # PostgreSQL's own user walks down to its directory.
        self.directory.chmod(0o755)
        self.state = self.directory / "state"
        self.port = free_port()
        search = f'model = "{embedding}"' if embedding else 'embedding = "none"'
        quiet = "".join(f'[{daemon}]\nlisten = "127.0.0.1:0"\n' for daemon in ("coordinator", "healer", "ralph"))
        nothing = '[coordinator.upstreams.nowhere]\nurl = "http://127.0.0.1:9/v1"\nmodels = { none = "none" }\n'
        self.config = self.directory / "lares.toml"
        self.config.write_text(
            f'{quiet}{nothing}[tools]\nlisten = "127.0.0.1:{self.port}"\n{tools}\n[tools.search]\n{search}\n{configuration}'
        )
        own = {name: value for name, value in os.environ.items() if not name.startswith("LARES_")}
        self.out = self.directory / "up.out"
        with open(self.out, "wb") as out:
            self.process = subprocess.Popen(
                [*self.command(), "up"], stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**own, **(environment or {})}
            )

    def __enter__(self):
        try:
            until("the tools daemon", self.ready, READY)
        except Failure as failure:
            said = self.out.read_text(errors="replace") + self.log()
            self.stop()
            raise Failure(f"{failure}:\n{said[-3000:]}") from None
        return self

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def command(self):
        return [lares(), "--config", self.config, "--state-dir", self.state]

    def ready(self):
        if self.process.poll() is not None:
            raise Failure(f"lares up ended with {self.process.returncode}")
        try:
            return self.http("GET", "/health", key=None)[0] == 200
        except OSError:
            return False

    def log(self):
        """What the tools daemon wrote."""
        path = self.state / "logs/tools.log"
        return path.read_text(errors="replace") if path.is_file() else ""

    def key(self, name="admin"):
        return (self.state / f"keys/{name}.key").read_text().strip()

    def pid(self):
        """The tools daemon's."""
        found = subprocess.run(["pgrep", "--parent", str(self.process.pid), "--full", "serve tools"], capture_output=True)
        return int(found.stdout.split()[0])

    def http(self, method, path, body=None, key="admin", headers=None, seconds=30):
        """Status and JSON (or text) of an answer."""
        headers = dict(headers or {})
        if key:
            headers.setdefault("Authorization", f"Bearer {self.key(key) if key in ('admin', 'agent') else key}")
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                status, said = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, said = error.code, error.read()
        try:
            return status, json.loads(said)
        except ValueError:
            return status, said.decode(errors="replace")

    def api(self, method, path, body=None):
        """The JSON of an answer that must be one of success."""
        status, said = self.http(method, f"/api/v1/{path}", body)
        if status >= 300:
            raise Failure(f"{method} {path}: {status} {said}")
        return said

    def cli(self, *arguments):
        """What `lares --json tools …` prints, and its exit code."""
        done = subprocess.run(
            [*self.command(), "--json", "tools", *arguments], capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout, done.stderr

    def stop(self):
        """Stops it as a person does; gives the seconds that took."""
        begun = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOPS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise Failure(f"lares up does not stop within {STOPS} s") from None
        return time.monotonic() - begun
