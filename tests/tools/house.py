"""The bed as these tests use it, with keys for different callers, and what is looked up about its processes."""

import json
import os
import pathlib
import signal
import subprocess

from bed import Bed, Failure, until
from client import Api


def toml(value):
    """A value as TOML; tables inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(toml(one) for one in value) + "]"
    return json.dumps(value)


def section(name, values):
    return f"[{name}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in values.items())


def found(what, look, seconds):
    """Waits until `look` gives something true, and gives that."""
    last = []
    until(what, lambda: last.append(look()) or last[-1], seconds, 0.05)
    return last[-1]


class House(Bed):
    def __init__(self, configuration, tools, embedding):
        # What the environment of the daemon holds must not reach a tool server.
        super().__init__(configuration, tools, embedding, {"HOUSE_SECRET": "of-the-house"})
        self.address, self.keys = f"127.0.0.1:{self.port}", {}

    def __enter__(self):
        super().__enter__()
        self.daemon = self.pid()
        self.admin = Api(self.address, self.key())
        return self

    def caller(self, name, role="client"):
        """The key of this name, made when it is asked for first."""
        if name not in self.keys:
            line = [*self.command(), "--json", "key", "create", name, "--role", role]
            done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
            if done.returncode != 0:
                raise Failure(f"lares key create {name}: {done.stdout}{done.stderr}")
            self.keys[name] = json.loads(done.stdout)["key"]
            # The daemon hears of it a moment later.
            asks = Api(self.address, self.keys[name])
            found(f"the key {name} is known", lambda: asks.send("GET", "/api/v1/servers")[0] != 401, 5)
        return self.keys[name]


def kill(pid, number=signal.SIGKILL):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def words(pid):
    """The command line of a process."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def stat(pid):
    """State and parent of a process, or nothing."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[1])
    except (OSError, IndexError):
        return None


def pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def named(text):
    """Processes with `text` in their command line."""
    return [pid for pid in pids() if any(text in word for word in words(pid))]


def below(pid):
    """A process' children, theirs and so on; those that only wait to be collected left out."""
    parents = {}
    for one in pids():
        found = stat(one)
        if found and found[0] != "Z":
            parents.setdefault(found[1], []).append(one)
    all_of_them, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        all_of_them += children
        todo += children
    return all_of_them


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory(pid, field="VmHWM"):
    """Bytes of memory, at most so far unless another field is asked for."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0
