"""Throw-away machines with systemd as PID 1, from a test's side."""

import itertools
import os
import pathlib
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent
NUMBERS = itertools.count(1)


class Box:
    def __init__(self, suite, roots, shown):
        made = subprocess.run([HERE / "root", suite, roots], stdout=subprocess.PIPE, text=True)
        if made.returncode != 0:
            raise NoRoot(f"there is no Debian {suite} root")
        self.name = f"lares-{os.getpid()}-{next(NUMBERS)}"
        environment = os.environ | {
            "BOX_SHOW": " ".join(f"{outside}:{inside}" for outside, inside in shown),
            "BOX_SIZE": "2g",
        }
        subprocess.run([HERE / "box", "up", self.name, made.stdout.strip()], check=True, env=environment)

    def run(self, *command, timeout=120, check=True, user=None):
        before = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
        done = subprocess.run(
            [HERE / "box", "run", self.name, *before, *command], capture_output=True, text=True, timeout=timeout
        )
        if check and done.returncode != 0:
            raise Failure(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def write(self, path, text, mode="644"):
        subprocess.run([HERE / "box", "copy", self.name, "/dev/stdin", path, mode], input=text, text=True, check=True)

    def show(self, unit, *properties):
        said = self.run("systemctl", "show", unit, *(f"--property={name}" for name in properties))
        return dict(line.split("=", 1) for line in said.splitlines())

    def http(self, path, *more, key=None):
        """Status and body."""
        authorization = ["-H", f"Authorization: Bearer {key}"] if key else []
        said = self.run(
            "curl", "--silent", "--max-time", "60", "--write-out", "\n%{http_code}", *authorization, *more,
            f"http://127.0.0.1:{path}", check=False,
        )
        body, _, status = said.rpartition("\n")
        return int(status), body

    def victim(self, name, arguments, service="", unit=""):
        """Makes a unit of `victim.py` with these arguments and further lines of its sections."""
        self.write(
            f"/run/systemd/system/{name}.service",
            f"[Unit]\n{unit}\n[Service]\nExecStart=/usr/bin/python3 /usr/local/bin/victim {arguments}\n{service}\n",
        )
        self.run("systemctl", "daemon-reload")

    def down(self):
        """Ends it, unless LARES_TEST_KEEP_BOX is set."""
        if os.environ.get("LARES_TEST_KEEP_BOX"):
            print(f"the box stays: {HERE / 'box'} run {self.name} bash; {HERE / 'box'} down {self.name}")
            return
        subprocess.run([HERE / "box", "down", self.name], check=False)


class NoRoot(Exception):
    """There is nothing to start a box from."""


class Failure(Exception):
    """What was expected and did not come."""


def until(what, holds, seconds):
    """Waits for it; gives the seconds it took."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > seconds:
            raise Failure(f"not within {seconds} s: {what}")
        time.sleep(0.1)
    return time.monotonic() - began


def parts():
    """The files to run with, or what is missing."""
    found = {}
    for name in ("LARES_TEST_BIN", "LARES_TEST_MODEL", "LARES_TEST_LLAMA_SERVER", "LARES_TEST_ROOTS"):
        path = os.environ.get(name, "")
        if not path or (name != "LARES_TEST_ROOTS" and not os.path.isfile(path)):
            return None, f"{name} names nothing"
        found[name] = os.path.realpath(path)
    if os.geteuid() != 0:
        return None, "it takes root to start systemd in a box"
    return found, None
