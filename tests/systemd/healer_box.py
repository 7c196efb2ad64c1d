"""A box with the healer in it as NixOS would set it up: a user of its own, an exact polkit rule, the helper, PostgreSQL."""

import ctypes
import json
import os
import pathlib
import re
import signal
import sys
import threading
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "nix")]

from bed import toml  # noqa: E402
from boxes import Box, Failure, NoRoot, until  # noqa: E402

POLICY = HERE.parents[1] / "nixos-modules/polkit/org.lares.healer.policy"
SERVICE = "lares-healer.service"
# What the daemon and its helper do for those units, and nothing else.
VERBS = ["start", "stop", "restart", "reset-failed", "ref"]
HELPER_ACTIONS = ["holder", "end-process", "set-memory-max", "set-port", "roll-back"]
UNITS = {
    SERVICE: """\
[Unit]
After=postgresql.service
[Service]
Type=notify
ExecStart=/usr/bin/lares --config /etc/lares/config.toml serve healer
User=lares-healer
SupplementaryGroups=systemd-journal
StateDirectory=lares
Restart=always
RestartSec=100ms
WatchdogSec=30s
OOMScoreAdjust=-500
""",
    "lares-healer-helper.socket": """\
[Socket]
ListenStream=/run/lares/helper.sock
SocketMode=0600
SocketUser=lares-healer
RemoveOnStop=true
""",
    "lares-healer-helper.service": """\
[Service]
ExecStart=/usr/bin/lares --config /etc/lares/config.toml serve helper
""",
}
RULE = """\
polkit.addRule(function (action, subject) {
  if (subject.user !== "lares-healer") return;
  if (%(actions)s.indexOf(action.id) >= 0) return polkit.Result.YES;
  if (action.id === "org.freedesktop.systemd1.manage-units"
      && %(units)s.indexOf(action.lookup("unit")) >= 0
      && %(verbs)s.indexOf(action.lookup("verb")) >= 0) return polkit.Result.YES;
});
"""
TABLES = "incidents, incident_events, remedy_stats, pauses, healer_leases, generations_bad, failures"
CLONE_NEWNET = 0x40000000


def missing():
    """What there is too little of to run, or nothing."""
    binary, roots = os.environ.get("LARES_TEST_BIN"), os.environ.get("LARES_TEST_ROOTS")
    if not binary or not os.path.isfile(binary) or not roots:
        return "LARES_TEST_BIN and LARES_TEST_ROOTS are not set"
    if os.geteuid() != 0:
        return "it takes root to start systemd in a box"
    if not POLICY.is_file():
        return f"{POLICY} is not there"
    return None


def new_box(suite):
    shown = [(str(HERE / "victim.py"), "/usr/local/bin/victim")]
    if os.environ.get("LARES_TEST_BIN"):
        shown.append((os.path.realpath(os.environ["LARES_TEST_BIN"]), "/usr/bin/lares"))
    return Box(suite, os.path.realpath(os.environ["LARES_TEST_ROOTS"]), shown)


def enter_network(box):
    """From now on this thread's sockets are the box's."""
    boxes = os.environ.get("BOX_STATE") or os.path.join(os.environ.get("TMPDIR", "/tmp"), "lares-boxes")
    pid = pathlib.Path(boxes, box.name, "pid").read_text().strip()
    with open(f"/proc/{pid}/ns/net", "rb") as network:
        if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "the network of the box cannot be entered")


def measure(name, suite, work):
    """Prints what `work(box)` finds out, as JSON. Exit code 1 if there are `problems` among it."""
    lacking = missing()
    found = {}

    def inside():
        box = None
        try:
            box = new_box(suite)
            enter_network(box)
            found.update(work(box))
        except NoRoot as none:
            found["skip"] = str(none)
        except Failure as failure:
            found["problems"] = [str(failure)]
        finally:
            if box:
                box.down()

    if not lacking:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        # A thread of its own: it stays in the box's network.
        worker = threading.Thread(target=inside)
        worker.start()
        worker.join()
        lacking = found.get("skip")
    if lacking:
        print(f"SKIP {name}: {lacking}")
        return 0
    print(json.dumps(found, indent=1))
    return 1 if found.get("problems", ["it ended early"]) else 0


class Healer:
    """The healer in a box, from the side of whoever looks after it."""

    def __init__(self, box):
        self.box, self.key = box, None

    def install(self):
        """All that stays the same whatever is healed."""
        box = self.box
        # Another way to find out whether something has been healed.
        box.run("systemctl", "stop", "monit.service", check=False)
        box.run("useradd", "--system", "--home-dir", "/var/lib/lares", "--shell", "/bin/sh", "lares-healer")
        box.write("/usr/share/polkit-1/actions/org.lares.healer.policy", POLICY.read_text())
        for name, text in UNITS.items():
            box.write(f"/etc/systemd/system/{name}", text)
        box.run("systemctl", "daemon-reload")
        until("PostgreSQL answers", lambda: "accepting" in box.run("pg_isready", check=False), 30)
        box.run("createuser", "lares-healer", user="postgres")
        box.run("createdb", "--owner=lares-healer", "lares", user="postgres")
        box.run("install", "-d", "-o", "lares-healer", "-g", "lares-healer", "/var/lib/lares")
        self.write_config({}, {})
        box.run("lares", "--config", "/etc/lares/config.toml", "setup", user="lares-healer")
        self.key = box.run("cat", "/var/lib/lares/keys/admin.key")

    def write_config(self, units, settings):
        """These units, each with its keys, and keys of the section itself."""
        # A window of the tests' own length; everything else is as it comes.
        healer = {"verify_hold": "2s"} | settings | {"units": units}
        config = {
            "state_dir": "/var/lib/lares",
            "store": {"url": "postgresql:///lares?host=/run/postgresql"},
            "healer": healer,
        }
        self.box.write("/etc/lares/config.toml", toml.document(config))
        actions = [f"org.lares.healer.{action}" for action in HELPER_ACTIONS]
        rule = RULE % {key: json.dumps(value) for key, value in
                       {"actions": actions, "units": sorted(units), "verbs": VERBS}.items()}
        self.box.write("/etc/polkit-1/rules.d/50-lares-healer.rules", rule)

    def stop(self):
        self.box.run(
            "systemctl", "stop", SERVICE, "lares-healer-helper.socket", "lares-healer-helper.service", check=False
        )

    def forget(self):
        """Nothing that it did before counts any more: cooldowns, budgets, lessons."""
        self.box.run("psql", "--quiet", "--dbname=lares", f"--command=TRUNCATE {TABLES} CASCADE", user="postgres")
        self.box.run("find", "/var/lib/lares", "-mindepth", "1", "-maxdepth", "1", "!", "-name", "keys",
                     "-exec", "rm", "-rf", "{}", "+")

    def start(self, units, settings):
        self.write_config(units, settings)
        self.box.run("systemctl", "reset-failed", SERVICE, "polkit.service", check=False)
        # It may take a moment to see a new rule by itself.
        self.box.run("systemctl", "restart", "polkit.service")
        self.box.run("systemctl", "start", "lares-healer-helper.socket")
        self.box.run("systemctl", "start", SERVICE, check=False)
        if self.box.show(SERVICE, "ActiveState")["ActiveState"] != "active":
            raise Failure(f"the healer does not start:\n{self.log(30)}")
        until("the healer acts", lambda: self.get("/api/v1/units").get("acting"), 20)

    def pid(self):
        return self.box.show(SERVICE, "MainPID")["MainPID"]

    def log(self, lines=200):
        return self.box.run("journalctl", "--unit", SERVICE, "--no-pager", f"--lines={lines}", "--output=short-precise",
                            check=False)

    def get(self, path):
        """What it answers; the thread has to be in the box's network. Empty when it does not."""
        request = urllib.request.Request(
            f"http://127.0.0.1:8099{path}", headers={"Authorization": f"Bearer {self.key}"}
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Failure(f"{path}: {error.code} {error.read().decode(errors='replace')}") from error
        except (OSError, ValueError):
            return {}

    def incidents(self):
        """Every incident with its timeline, oldest first; nothing while it does not answer."""
        listed = []
        before = ""
        while True:
            page = self.get(f"/api/v1/incidents?limit=500{before}")
            listed += page.get("incidents", [])
            if not page.get("next_before"):
                break
            before = f"&before={page['next_before']}"
        found = [self.get(f"/api/v1/incidents/{incident['id']}") for incident in listed]
        return sorted((incident for incident in found if incident), key=lambda incident: incident["id"])

    def usage(self):
        """Processor time in ms, memory in KiB, and the context switches of each thread so far."""
        pid = self.pid()
        # The name, in parentheses, may hold anything.
        times = self.box.run("cat", f"/proc/{pid}/stat").rpartition(") ")[2].split()
        memory = self.box.run("cat", f"/proc/{pid}/status")
        # A thread may end between its being listed and read.
        said = self.box.run("sh", "-c", f"grep -H ctxt_switches /proc/{pid}/task/*/status 2>/dev/null", check=False)
        switches = {}
        for thread, count in re.findall(r"/task/(\d+)/status:\w+:\s+(\d+)", said):
            switches[thread] = switches.get(thread, 0) + int(count)
        kib = {name: int(n) for name, n in re.findall(r"(VmRSS|VmHWM|RssAnon):\s+(\d+) kB", memory)}
        return {
            "cpu_ms": (int(times[11]) + int(times[12])) * 1000 // os.sysconf("SC_CLK_TCK"),
            "rss_kib": kib["VmRSS"],
            "anonymous_kib": kib["RssAnon"],
            "peak_kib": kib["VmHWM"],
            "switches": switches,
        }


def switched(before, after):
    """Context switches between two usages; those of threads that began and ended in between are not known."""
    return sum(count - before["switches"].get(thread, 0) for thread, count in after["switches"].items())
