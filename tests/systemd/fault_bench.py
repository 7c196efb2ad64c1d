"""One box with one kind of help in it, and the account of what happened there: taken from systemd's own journal, and from
the incidents of the healer, which are judged by it."""

import http.client
import json
import pathlib
import re
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from boxes import Failure, until  # noqa: E402
from healer_box import Healer, enter_network, new_box  # noqa: E402

# Longest that anything may take to repair a service; more than most people wait.
PATIENCE = 40
# How long it must work to count as working.
HOLD = 2
# How long nothing may happen where nothing is right.
QUIET = 5
# Between two looks at whether it works: recovery is measured this finely.
GLANCE = 0.02
# What systemd writes, by what it means. A unit whose start has two parts has a line for each.
STARTING, STARTED = "7d4958e842da4a758f6c1cdc7b36dcc5", "39f53479d3a045ac8e11786248231fbf"
STOPPING = "de5b426a63be47a7b6ac3eaac82e2f6f"
SCHEDULED = "5eb03494b6584870a536b337290809b3"
ENDED, FAILED = "98e322203f7a4ed290d09fe03c09fe15", "d9b373ed55a64feb8242e02dbe79a49c"
# Units that are there to look after others, or belong to the machine.
MACHINERY = re.compile(r"^(lares-healer|systemd-|dbus|polkit|user|session|init|monit|postgresql|run-|system-)")


def full(name):
    return name if "." in name else f"{name}.service"


class Account:
    """What systemd did since a moment, in its own words."""

    def __init__(self, box, cursor):
        said = box.run(
            "journalctl", "--output=json", "--no-pager", f"--after-cursor={cursor}", "_PID=1",
            "--output-fields=MESSAGE_ID,UNIT,INVOCATION_ID,_SOURCE_REALTIME_TIMESTAMP,MESSAGE", check=False,
        )
        self.lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]

    def of(self, *kinds):
        return [line for line in self.lines if line.get("MESSAGE_ID") in kinds and "UNIT" in line]

    def units(self):
        return sorted({line["UNIT"] for line in self.lines if "UNIT" in line and not MACHINERY.match(line["UNIT"])})

    def runs(self, unit):
        """Starts, each with its time in seconds."""
        seen = {}
        for line in self.of(STARTING, STARTED):
            if line["UNIT"] == unit:
                seen.setdefault(line.get("INVOCATION_ID", line["__CURSOR"]), at(line))
        return seen

    def starts(self, unit):
        return len(self.runs(unit))

    def automatic(self, unit):
        return sum(line["UNIT"] == unit for line in self.of(SCHEDULED))

    def stops(self, unit):
        return sum(line["UNIT"] == unit for line in self.of(STOPPING))

    def ends(self, unit):
        """When it failed, in seconds since the epoch."""
        return [at(line) for line in self.of(ENDED, FAILED) if line["UNIT"] == unit]


def at(line):
    return int(line.get("_SOURCE_REALTIME_TIMESTAMP") or line["__REALTIME_TIMESTAMP"]) / 1e6


class Bench:
    """One box with one kind of help in it."""

    def __init__(self, kind, suite):
        self.kind = kind
        self.box = new_box(suite)
        try:
            enter_network(self.box)
            self.healer = Healer(self.box) if kind == "healer" else None
            if self.healer:
                self.healer.install()
            elif kind != "monit":
                # Debian starts it where it is installed.
                self.box.run("systemctl", "stop", "monit.service", check=False)
        except BaseException:
            self.box.down()
            raise
        self.fault = None
        self.clear()

    def clear(self):
        """A new account is opened when the units work."""
        self.cursor, self.began, self.broken = None, None, None
        # What the test itself starts and stops while the account is open, by unit.
        self.own_starts, self.own_stops, self.guarded = {}, {}, {}
        self.places, self.made = set(), set()

    def prepare(self, fault):
        """For this fault, nothing left of the last one."""
        self.fault = fault

    def tidy(self):
        """Nothing of a fault is left: units, processes, files, memories of the healer."""
        if self.healer:
            self.healer.stop()
        names = " ".join(sorted(self.made))
        places = " ".join(sorted(self.places))
        self.box.run(
            "sh", "-c",
            f"test -z '{names}' || {{ systemctl kill --signal=KILL {names}; systemctl stop {names}; }};"
            # Not this shell, whose command line has the name in it as well.
            "pkill -KILL -f local/bin/[v]ictim;"
            f"for unit in {names}; do rm -rf /run/systemd/system/$unit /run/systemd/system/$unit.d"
            " /run/systemd/system.control/$unit.d; done;"
            f"for place in {places}; do umount -q $place; rm -rf $place; done;"
            "systemctl daemon-reload; systemctl reset-failed",
            check=False,
        )
        if self.healer:
            self.healer.forget()
        self.clear()

    # What a fault's function does

    def unit(self, name, command, more="", unit=""):
        """A service that runs the victim with these arguments."""
        restart = "Restart=on-failure\n" if self.kind == "systemd" and "Restart=" not in more else ""
        self.made.add(full(name))
        self.box.victim(name, command, restart + more, unit)

    def place(self, path):
        """A file or directory that goes away with the fault."""
        self.places.add(path)
        return path

    def model(self, path="/run/model.gguf", magic="GGUF"):
        """A file with the header of a model that holds nothing: magic, version 3, and counts of zero."""
        self.place(path)
        self.box.run("sh", "-c", f"printf '{magic}\\003\\0\\0\\0' >{path}; head -c 16 /dev/zero >>{path}")

    def _own(self, names, starts, stops):
        for name in names:
            if starts:
                self.own_starts[full(name)] = self.own_starts.get(full(name), 0) + 1
            if stops:
                self.own_stops[full(name)] = self.own_stops.get(full(name), 0) + 1

    def start(self, *names):
        self._own(names, True, False)
        self.box.run("systemctl", "start", *names, check=False)

    def stop(self, *names):
        self._own(names, False, True)
        self.box.run("systemctl", "stop", *names, check=False)

    def restart(self, *names):
        """Starts it afresh, as a person does who changed something."""
        self._own(names, True, True)
        if self.began:
            self.breaks()
        self.box.run("systemctl", "restart", *names, check=False)

    def get(self, port=9000, path="/"):
        """What it answers on this port, or nothing."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return ""
        finally:
            connection.close()

    def works(self, port=9000):
        return self.get(port) == "ok"

    def state(self, name="victim"):
        return self.box.show(full(name), "ActiveState")["ActiveState"]

    def failed(self, name="victim", seconds=15):
        until(f"{name} has failed", lambda: self.state(name) == "failed", seconds)

    def pid(self, name="victim"):
        pid = self.box.show(full(name), "MainPID")["MainPID"]
        if pid == "0":
            raise Failure(f"{name} does not run")
        return pid

    def kill(self, name="victim", which="KILL"):
        pid = self.pid(name)
        self.breaks()
        self.box.run("kill", f"-{which}", pid)

    def breaks(self):
        """From now on it is broken, if it was not before."""
        self.broken = self.broken or time.monotonic()

    def group(self, name="victim"):
        return "/sys/fs/cgroup" + self.box.show(full(name), "ControlGroup")["ControlGroup"]

    def killed_for_memory(self, group):
        """The marks by which systemd knows that it was for the memory: a box has no memory controller."""
        for attribute in ("oomd_ooms", "oomd_kill"):
            self.box.run("setfattr", "-n", f"user.{attribute}", "-v", "1", group)

    def out_of_memory(self, name="victim"):
        """What systemd sees when the kernel kills a service for its memory."""
        group = self.group(name)
        self.killed_for_memory(group)
        self.breaks()
        self.box.run("sh", "-c", f"echo 1 >{group}/cgroup.kill")

    def guard(self, pid, what):
        """This process must live as long as the fault lasts."""
        self.guarded[pid] = (self._started(pid), what)

    def _started(self, pid):
        return self.box.run("sh", "-c", f"sed 's/.*) //' /proc/{pid}/stat 2>/dev/null | cut -d' ' -f20", check=False)

    def watched(self):
        """Has whoever's turn it is look after the units, as they work."""
        if self.kind == "monit":
            self._monit()
        if self.healer:
            self.healer.start(self.fault.healed(), self.fault.settings)
            until("the healer sees it work", lambda: self._probe("victim.service") in ("green", "none", None), 10)
        self.own_starts, self.own_stops = {}, {}
        said = self.box.run("journalctl", "--no-pager", "--lines=0", "--show-cursor")
        self.cursor = said.partition("cursor: ")[2].strip()
        self.began = time.monotonic()

    def _probe(self, unit):
        units = self.healer.get("/api/v1/units").get("units", [])
        return next((found["probe"]["state"] for found in units if found["unit"] == unit), None)

    def _monit(self):
        checks = (
            'check process victim matching "local/bin/victim 9000"\n'
            '  start program = "/usr/bin/systemctl start victim.service"\n'
            '  stop program = "/usr/bin/systemctl stop victim.service"\n'
            "  if failed host 127.0.0.1 port 9000 protocol http with timeout 2 seconds then restart\n"
            "  if 5 restarts within 10 cycles then unmonitor\n"
        )
        for name in sorted(self.made - {"victim.service"}):
            checks += (
                f'check program {name.replace("@", "-")} with path "/usr/bin/systemctl is-active --quiet {name}"\n'
                f'  start program = "/usr/bin/systemctl start {name}"\n'
                f'  stop program = "/usr/bin/systemctl stop {name}"\n'
                "  if status != 0 then restart\n"
            )
        self.box.write(
            "/etc/monit/monitrc",
            "set daemon 5\nset log /var/log/monit.log\nset idfile /var/lib/monit/id\nset statefile /var/lib/monit/state\n"
            + checks,
            "600",
        )
        self.box.run("systemctl", "restart", "monit.service")
        # It learns what is there in its first round.
        time.sleep(6)

    def ready(self):
        """The victim works and is looked after."""
        self.start("victim.service")
        until("the victim works", self.works, 15)
        self.watched()

    # What came of it

    def story(self):
        return Story(self.healer.incidents() if self.healer else [])

    def account(self):
        return Account(self.box, self.cursor)

    def harm(self, account):
        """What was started, stopped or ended that the right answer does not contain."""
        harm = []
        for unit in account.units():
            starts, stops = self.fault.may_touch(unit)
            foreign = account.starts(unit) - account.automatic(unit) - self.own_starts.get(unit, 0)
            if foreign > starts:
                harm.append(f"{unit} was started {foreign} times, {starts} would have been right")
            foreign = account.stops(unit) - self.own_stops.get(unit, 0)
            if foreign > stops:
                harm.append(f"{unit} was stopped {foreign} times, {stops} would have been right")
        for pid, (started, what) in self.guarded.items():
            if self._started(pid) != started:
                harm.append(f"{what} (process {pid}) was ended")
        return harm


class Story:
    """The incidents of the healer since the fault."""

    def __init__(self, incidents):
        self.incidents = incidents

    def of(self, unit):
        return [incident for incident in self.incidents if incident["unit"] == full(unit)]

    def entries(self, kind, unit=None):
        """The data of every entry of this kind, of one unit or of all."""
        found = self.of(unit) if unit else self.incidents
        return [entry["data"] for incident in found for entry in incident["timeline"] if entry["kind"] == kind]

    def remedies(self, unit=None):
        """Names of what was done, each attempt once."""
        return [entry["remedy"]["kind"] for entry in self.entries("decided", unit)]

    def heard(self):
        """Microseconds from systemd's stamp until the healer heard, of each incident that began with a signal."""
        first = [incident["timeline"][0] for incident in self.incidents if incident["timeline"]]
        waits = [entry["data"].get("heard_after_us") for entry in first if entry["kind"] == "symptoms"]
        return [wait for wait in waits if wait is not None]

    def opened_ms(self, account):
        """Milliseconds from systemd's own line about the end of a unit to the first entry of its incident."""
        waits = []
        for incident in self.incidents:
            if not incident["timeline"]:
                continue
            began = timestamp(incident["timeline"][0]["at"])
            before = [end for end in account.ends(incident["unit"]) if end <= began]
            # Anything longer began with something else: a probe, or a later look.
            if before and began - before[-1] < 1:
                waits.append((began - before[-1]) * 1000)
        return waits

    def healed_ms(self, unit="victim"):
        """What the healer says it took."""
        done = [incident["recovered_ms"] for incident in self.of(unit) if incident.get("recovered_ms") is not None]
        return done[-1] if done else None

    def told(self):
        """Each incident in a line."""
        lines = []
        for incident in self.incidents:
            events = [f"+{entry['ms']} {entry['kind']}: {entry['message']}" for entry in incident["timeline"]]
            lines.append(f"{incident['unit']} {incident['state']} {incident.get('outcome')}: " + "; ".join(events))
        return lines


def timestamp(text):
    """Seconds since the epoch of `2026-11-23T16:30:00.123456789Z`."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    from calendar import timegm

    return timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction or 0}")


# What an answer is judged by: each gives what is not so, or nothing.

def decided(*names, unit="victim"):
    """These remedies were begun for the unit, in this order, and no other."""

    def check(story):
        done = story.remedies(unit)
        return None if done == list(names) else f"{unit}: did {done or 'nothing'}, not {list(names) or 'nothing'}"

    return check


def held(reason, unit="victim"):
    """Nothing was done for a while, for this reason."""

    def check(story):
        reasons = [entry["reason"] for entry in story.entries("held", unit)]
        return None if reason in reasons else f"{unit}: held for {reasons or 'nothing'}, not {reason}"

    return check


def outcome(wanted, unit="victim"):
    """How the last incident of the unit ended; `None`: it is open."""

    def check(story):
        found = story.of(unit)
        if not found:
            return f"{unit}: there is no incident"
        ended = found[-1].get("outcome")
        return None if ended == wanted else f"{unit}: the outcome is {ended}, not {wanted}"

    return check


def told(text="", unit="victim"):
    """A person was told, with these words."""

    def check(story):
        texts = [entry["text"] for entry in story.entries("handed_over", unit)]
        return None if any(text in said for said in texts) else f"{unit}: a person was told {texts or 'nothing'}"

    return check


def untold(story):
    texts = [entry["text"] for entry in story.entries("handed_over")]
    return f"a person was told {texts}" if texts else None


def asked(remedy, times=1):
    """A person was asked so often, all units together."""

    def check(story):
        found = [entry["remedy"]["kind"] for entry in story.entries("asked")]
        return None if found == [remedy] * times else f"asked for {found or 'nothing'}, not {times} times for {remedy}"

    return check


def silent(story):
    """There is no incident at all."""
    return f"there are incidents: {story.told()}" if story.incidents else None


def nothing_done(story):
    """No remedy was begun for any unit."""
    return f"did {story.remedies()}" if story.remedies() else None


def resumed(story):
    return None if story.entries("resumed") else "no incident says that it was resumed"


def either(*ways):
    """One of several lists of these holds."""

    def check(story):
        problems = [[problem for problem in (one(story) for one in way) if problem] for way in ways]
        return None if [] in problems else " | ".join("; ".join(problem) for problem in problems)

    return check


def once(bench, fault):
    """One run of one fault: what came of it, as a plain table."""
    bench.prepare(fault)
    mend = fault.break_it(bench)
    began = bench.broken or bench.began
    if mend:
        # What was wrong is put right by a person or by time; the service itself by nobody.
        time.sleep(3)
        mend()
        began = time.monotonic()
    else:
        # A service that had no time to notice still answers.
        time.sleep(0.1 if bench.kind == "healer" else 0.3)
    answered = worked = None
    patience = fault.within or PATIENCE
    looked = 0
    problems = ["not looked at"]
    while time.monotonic() - began < patience:
        now = time.monotonic()
        if not fault.works(bench):
            worked = None
        elif worked is None:
            worked = now
        if bench.healer and now - looked > 0.3:
            problems = fault.problems(bench.story())
            looked = time.monotonic()
            answered = None if problems else answered or looked
        steady = worked is not None and now - worked > HOLD
        if bench.healer and answered and (steady or not fault.recoverable):
            # Where holding still is right, it has to last.
            if fault.recoverable or now - answered > (fault.quiet or QUIET):
                break
        elif not bench.healer and steady:
            break
        time.sleep(GLANCE)
    account = bench.account()
    spent = account.starts("victim.service") - bench.own_starts.get("victim.service", 0)
    run = {
        "recovered": worked is not None and time.monotonic() - worked >= HOLD,
        "recover_s": None if worked is None else round(worked - began, 3),
        "starts": spent,
        "harmful": bench.harm(account),
    }
    if bench.healer:
        story = bench.story()
        run["problems"] = fault.problems(story) + fault.more(bench, story, account)
        if fault.recoverable and not run["recovered"]:
            run["problems"].append("it does not work again")
        run["right"] = not run["problems"]
        run["heard_us"], run["opened_ms"] = story.heard(), [round(ms, 2) for ms in story.opened_ms(account)]
        run["healed_ms"] = story.healed_ms()
        run["most_starts"] = max((account.starts(unit) for unit in account.units()), default=0)
        if not run["right"] or run["harmful"]:
            run["story"], run["log"] = story.told(), bench.healer.log(400)
    return run
