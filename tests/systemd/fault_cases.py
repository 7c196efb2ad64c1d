"""The thirty faults of services: how each is broken, what mends its cause, and what the right answer is.

Each breaks `victim.service`, an HTTP server on port 9000, or what it needs.
"""

import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from boxes import Failure, until  # noqa: E402
from fault_bench import (  # noqa: E402
    Story, asked, decided, either, full, held, nothing_done, outcome, resumed, silent, told, untold,
)

PROBE = {"interval": "500ms", "timeout": "1s", "threshold": 3}
HTTP = {"probe": PROBE | {"http": "http://127.0.0.1:9000/"}}
DATABASE = {"probe": PROBE | {"tcp": "127.0.0.1:9001"}}
FAULTS = []


class Fault:
    """What is done, and what is expected of it.

    `heals`: keys of `healer.units`, by unit; the victim has its probe in any case. `touches`: how often the right answer
    starts and stops a unit, or a pair of both numbers; what is not named must not be touched.
    """

    def __init__(self, number, title, answer, break_it, expect, heals, settings, touches, recoverable, compare, within,
                 quiet, works, more, quick):
        self.number, self.title, self.answer, self.break_it = number, title, answer, break_it
        self.expect, self.heals, self.settings, self.touches = expect, heals, settings, touches
        self.recoverable, self.within, self.quiet, self.quick = recoverable, within, quiet, quick
        self.compare = recoverable if compare is None else compare
        self.works = works or (lambda bench: bench.works())
        self.more = more or (lambda bench, story, account: [])

    def healed(self):
        return {full(name): HTTP | keys if name == "victim" else keys for name, keys in self.heals.items()}

    def may_touch(self, unit):
        allowed = next((n for name, n in self.touches.items() if full(name) == unit), 0)
        return allowed if isinstance(allowed, tuple) else (allowed, allowed)

    def problems(self, story: Story):
        return [problem for problem in (check(story) for check in self.expect) if problem]


def fault(number, title, answer, expect=(), heals=None, settings=None, touches=None, recoverable=False, compare=None,
          within=None, quiet=None, works=None, more=None, quick=False):
    """Its function breaks it, and may give what mends the cause later."""

    def register(break_it):
        FAULTS.append(Fault(
            number, title, answer, break_it, list(expect), {"victim": {}} | (heals or {}), settings or {}, touches or {},
            recoverable, compare, within, quiet, works, more, quick,
        ))
        return break_it

    return register


def restarted(unit="victim"):
    """It was restarted once, and that helped."""
    return [decided("restart", unit=unit), outcome("healed", unit)]


def reported(reason, text=""):
    """Nothing was done, for this reason, and a person was told."""
    return [decided(), held(reason), told(text), outcome(None)]


@fault("1", "killed, Restart=on-failure", "systemd restarts it; record", quick=True, recoverable=True,
       expect=[nothing_done, held("left_to_manager"), outcome("came_back"), untold])
def killed(bench):
    bench.unit("victim", "9000", "Restart=on-failure")
    bench.ready()
    bench.kill()


@fault("2", "killed, no Restart= of its own", "restart", quick=True, recoverable=True,
       expect=restarted(), touches={"victim": 1})
def killed_for_good(bench):
    bench.unit("victim", "9000")
    bench.ready()
    bench.kill()


@fault("3", "hangs", "restart", quick=True, recoverable=True, expect=restarted(), touches={"victim": 1})
def hangs(bench):
    bench.unit("victim", "9000")
    bench.ready()
    bench.kill(which="STOP")


@fault("4", "killed for its memory once", "restart once; alert", recoverable=True,
       expect=[*restarted(), told("memory")], touches={"victim": 1})
def out_of_memory(bench):
    bench.unit("victim", "9000")
    bench.ready()
    bench.out_of_memory()


@fault("5", "a child killed for memory, OOMPolicy=continue", "probe; it is well: record",
       expect=[nothing_done, held("child_killed"), outcome("came_back"), untold])
def child_out_of_memory(bench):
    bench.unit("victim", "9000 --child", "OOMPolicy=continue")
    bench.ready()
    group, main = bench.group(), bench.pid()
    bench.killed_for_memory(group)
    bench.breaks()
    bench.box.run("sh", "-c", f"grep -v '^{main}$' {group}/cgroup.procs | xargs kill -KILL")


def killed_for_memory_twice(bench):
    bench.ready()
    bench.out_of_memory()
    time.sleep(0.3)
    until("systemd has it back", bench.works, 10)
    time.sleep(1)
    if bench.story().remedies():
        raise Failure(f"it was acted on though once is not again and again: {bench.story().told()}")
    bench.out_of_memory()


@fault("6", "killed for memory again and again", "stop; propose a limit", touches={"victim": (0, 1)}, quiet=8,
       expect=[decided("stop"), held("memory_ceiling"), told("MemoryMax"), outcome(None)],
       more=lambda bench, story, account: [] if bench.state() in ("inactive", "failed") else ["it still runs"])
def out_of_memory_again(bench):
    bench.unit("victim", "9000", "Restart=on-failure\nMemoryMax=64M")
    killed_for_memory_twice(bench)


def raised(bench, story, account):
    limit = int(bench.box.show("victim.service", "MemoryMax")["MemoryMax"])
    return [] if 64 << 20 < limit <= 96 << 20 else [f"MemoryMax is {limit}"]


@fault("6b", "the same, and it may have more", "raise its limit to the ceiling at most; alert", recoverable=True,
       heals={"victim": {"memory_max": "96 MiB"}}, touches={"victim": 1}, more=raised,
       expect=[decided("raise_memory"), outcome("healed"), told("MemoryMax")])
def memory_to_raise(bench):
    bench.unit("victim", "9000", "Restart=on-failure\nMemoryMax=64M")
    killed_for_memory_twice(bench)


@fault("7", "port held by an orphan of its own", "end the orphan, start", quick=True, recoverable=True,
       expect=[decided("end_orphan"), outcome("healed")], touches={"victim": 1})
def orphan(bench):
    bench.unit("victim", "9000 --orphan", "KillMode=process\nRestart=on-failure\nRestartSec=100ms")
    bench.ready()
    bench.kill()


def holder_takes_the_port(bench):
    bench.unit("holder", "9000 --says holder")
    bench.ready()
    bench.stop("victim")
    bench.breaks()
    bench.start("holder")
    until("the holder has the port", lambda: bench.get() == "holder", 10)
    bench.guard(bench.pid("holder"), "the holder of the port")
    bench.start("victim")


@fault("8", "port held by another service", "do not touch the holder; alert", quick=True,
       expect=[nothing_done, held("port_held"), told("holder.service"), outcome(None)])
def holder(bench):
    bench.unit("victim", "9000")
    holder_takes_the_port(bench)


@fault("8b", "the same, and it may move", "give it another port", recoverable=True, compare=True,
       heals={"victim": {"ports": [9010, 9011], "port_variable": "VICTIM_PORT"}}, touches={"victim": 1},
       works=lambda bench: bench.works(9010) or bench.works(9000),
       expect=[decided("reassign_port"), outcome("healed")])
def holder_and_room(bench):
    bench.unit("victim", "9000")
    holder_takes_the_port(bench)


# Either of the two may be looked at first; what counts is that each is started once, the database first.
CHAIN = either(
    [decided("restart_dependencies"), decided(unit="database")],
    [decided("restart", unit="database"), decided("restart")],
    [decided("restart", unit="database"), decided()],
)


def database_first(bench, story, account):
    order = sorted((when, unit) for unit in ("database.service", "victim.service")
                   for when in account.runs(unit).values())
    first = [unit for _, unit in order]
    up = account.runs("database.service")
    problems = [] if len(up) == 1 else [f"the database was started {len(up)} times"]
    return problems if not order or first[-1] == "victim.service" else [*problems, f"started in the order {first}"]


@fault("9", "its dependency was killed", "the dependency, verified, then it", quick=True, recoverable=True,
       heals={"victim": {"dependencies": ["database.service"]}, "database": DATABASE},
       touches={"victim": 1, "database": 1}, more=database_first, expect=[CHAIN, untold])
def dependency(bench):
    bench.unit("database", "9001", "Restart=no")
    bench.unit("victim", "9000 --needs 9001", "Restart=on-failure", "After=database.service")
    bench.start("database.service")
    until("the database works", lambda: bench.works(9001), 15)
    bench.ready()
    bench.kill("database")
    bench.kill()


@fault("9b", "the same, and it is not restarted either", "the dependency, verified, then it", recoverable=True,
       heals={"victim": {"dependencies": ["database.service"]}, "database": DATABASE},
       touches={"victim": 1, "database": 1}, more=database_first, expect=[CHAIN, untold])
def dependency_and_victim(bench):
    bench.unit("database", "9001")
    bench.unit("victim", "9000 --needs 9001", "", "After=database.service")
    bench.start("database.service")
    until("the database works", lambda: bench.works(9001), 15)
    bench.ready()
    pids = [bench.pid("database"), bench.pid()]
    bench.breaks()
    bench.box.run("kill", "-KILL", *pids)


@fault("10", "its dependency is slow, and it tries again itself", "wait", recoverable=True,
       heals={"victim": {"dependencies": ["database.service"]}, "database": DATABASE},
       expect=[nothing_done, outcome("came_back"), untold])
def dependency_slow(bench):
    slow = "Type=notify\nRestart=on-failure"
    bench.unit("database", "9001", slow)
    # Not ordered after it, or systemd itself would wait.
    bench.unit("victim", "9000 --needs 9001 --patient", "Restart=on-failure")
    bench.start("database.service")
    bench.ready()
    # From its next start on.
    bench.unit("database", "9001 --slow 8", slow)
    pids = [bench.pid("database"), bench.pid()]
    bench.breaks()
    bench.box.run("kill", "-KILL", *pids)


@fault("10b", "its own start is slow, and systemd cannot tell", "wait: it does not hang", recoverable=True, compare=False,
       expect=[nothing_done, untold])
def slow_itself(bench):
    bench.unit("victim", "9000")
    bench.ready()
    # From its next start on.
    bench.unit("victim", "9000 --slow 6")
    bench.restart("victim")


@fault("11", "its dependency failed to start, and then started", "start it once the dependency is up", recoverable=True,
       heals={"victim": {"dependencies": ["database.service"]}, "database": {}},
       # Its file is back: the healer may have seen that before the person starts it.
       touches={"victim": 1, "database": (0, 1)}, expect=restarted())
def dependency_later(bench):
    bench.model("/run/database.gguf")
    bench.unit("database", "9001 --file /run/database.gguf")
    bench.unit("victim", "9000", unit="Requires=database.service\nAfter=database.service")
    bench.ready()
    bench.stop("victim.service", "database.service")
    bench.box.run("rm", "/run/database.gguf")
    # A start whose job fails with "dependency": nothing of the victim ever ran.
    bench.unit("database", "9001 --file /run/database.gguf", "Type=exec\nExecStartPost=/bin/sleep 0.5")
    bench.breaks()
    bench.own_starts["database.service"] = 1
    bench.box.run("systemctl", "start", "victim.service", check=False)

    def mend():
        bench.model("/run/database.gguf")
        bench.box.run("systemctl", "reset-failed", "database.service", check=False)
        bench.start("database.service")

    return mend


@fault("12", "start limit hit, the cause gone", "reset-failed, one start", recoverable=True, within=45,
       expect=[held("model_missing"), *restarted()], touches={"victim": 1})
def start_limit(bench):
    bench.model()
    bench.unit(
        "victim", "9000 --file /run/model.gguf", "Restart=on-failure\nRestartSec=100ms",
        "StartLimitBurst=3\nStartLimitIntervalSec=30",
    )
    bench.ready()
    bench.place("/run/away.gguf")
    bench.box.run("mv", "/run/model.gguf", "/run/away.gguf")
    bench.kill()
    bench.failed()
    return lambda: bench.box.run("mv", "/run/away.gguf", "/run/model.gguf")


@fault("13", "crashes at once, again and again", "circuit open, alert", quiet=8, expect=reported("crash_loop"))
def crash_loop(bench):
    bench.unit("victim", f"9000 --crashes {bench.place('/run/crash')}", "Restart=on-failure\nRestartSec=100ms")
    bench.ready()
    bench.box.run("touch", "/run/crash")
    bench.kill()


@fault("14", "its model is missing", "alert with the path; no restarts", quick=True, compare=True,
       expect=reported("model_missing", "/run/model.gguf"))
def model_missing(bench):
    bench.model()
    bench.unit("victim", "9000 --file /run/model.gguf")
    bench.ready()
    bench.box.run("rm", "/run/model.gguf")
    bench.restart("victim")


@fault("15", "its model is damaged", "alert: damaged, not missing", expect=reported("model_unreadable", "/run/model.gguf"))
def model_damaged(bench):
    bench.model()
    bench.unit("victim", "9000 --file /run/model.gguf")
    bench.ready()
    bench.model(magic="torn")
    bench.restart("victim")


@fault("16", "it may not read its file", "alert: path, owner, mode, the fix; no restarts", compare=True,
       expect=reported("permission_denied", "/run/model.gguf"))
def permission(bench):
    bench.model()
    bench.unit("victim", "9000 --file /run/model.gguf", "DynamicUser=yes")
    bench.ready()
    bench.box.run("chmod", "600", "/run/model.gguf")
    bench.restart("victim")


@fault("17", "its database is locked by somebody who is working", "wait", recoverable=True, within=45,
       heals={"victim": {"database": "database.service", "database_file": "/run/victim.db"}, "database": DATABASE},
       expect=[held("lock_held"), *restarted()], touches={"victim": 1})
def locked(bench):
    bench.place("/run/victim.db")
    bench.unit("database", "9001")
    bench.unit("victim", "9000 --database /run/victim.db")
    bench.start("database.service")
    bench.ready()
    bench.box.run(
        "systemd-run", "--quiet", "--unit=migration", "python3", "-c",
        "import sqlite3,time; c=sqlite3.connect('/run/victim.db',isolation_level=None);"
        "c.execute('BEGIN EXCLUSIVE'); end=time.monotonic()+12\n"
        "while time.monotonic()<end: sum(range(20000)); time.sleep(0.002)",
    )
    bench.own_starts["migration.service"] = 1
    time.sleep(0.5)
    migration = bench.pid("migration")
    bench.restart("victim")
    bench.failed()
    time.sleep(4)

    def mend():
        bench.guard(migration, "who is working on the database")
        harm = bench.harm(bench.account())
        bench.guarded.clear()
        if harm:
            raise Failure(f"while the lock was held: {harm}")
        until("the work is done", lambda: bench.state("migration") == "inactive", 20)

    return mend


@fault("18", "a database lock left by the dead", "restart the database, then its clients", recoverable=True,
       heals={
           "victim": {"database": "database.service", "database_file": "/run/victim.lock"},
           "database": DATABASE,
       },
       expect=[decided("restart_database"), decided(unit="database"), outcome("healed")],
       touches={"victim": 1, "database": 1}, more=database_first)
def lock_of_the_dead(bench):
    bench.place("/run/victim.lock")
    bench.unit("database", "9001 --clears /run/victim.lock")
    bench.unit("victim", "9000 --lock /run/victim.lock")
    bench.start("database.service")
    bench.ready()
    # A process that was and is no more.
    bench.box.run("sh", "-c", "sh -c 'echo $$' >/run/victim.lock")
    bench.restart("victim")


@fault("19", "its disk is full", "alert; no restarts", expect=reported("disk_full", "/var/lib/full"),
       heals={"victim": {"database_file": "/var/lib/full/data"}})
def disk_full(bench):
    bench.place("/var/lib/full")
    bench.box.run("mkdir", "/var/lib/full")
    bench.box.run("mount", "-t", "tmpfs", "-o", "size=20m", "full", "/var/lib/full")
    bench.unit("victim", "9000 --writes /var/lib/full/data")
    bench.ready()
    bench.box.run("sh", "-c", "head -c 30000000 /dev/zero >/var/lib/full/other; rm /var/lib/full/data", check=False)
    bench.box.run("sh", "-c", "head -c 1000000 /dev/zero >>/var/lib/full/more", check=False)
    bench.restart("victim")


@fault("20", "it refuses its configuration (exit status 78)", "alert; no restarts",
       expect=reported("bad_configuration"))
def configuration(bench):
    bench.unit("victim", f"9000 --refuses {bench.place('/run/refuse')}")
    bench.ready()
    bench.box.run("touch", "/run/refuse")
    bench.restart("victim")


@fault("20b", "systemd refuses its unit file (bad-setting)", "alert; no restarts", expect=reported("bad_configuration"))
def bad_setting(bench):
    bench.unit("victim", "9000")
    bench.ready()
    pid = bench.pid()
    bench.box.write("/run/systemd/system/victim.service", "[Service]\nType=simple\n")
    bench.box.run("systemctl", "daemon-reload")
    bench.breaks()
    bench.box.run("kill", "-KILL", pid)


# No incident is as good as one that says why nothing was done.
def left_alone(reason):
    return [nothing_done, untold, either([silent], [held(reason), outcome("left_alone")])]


@fault("21", "an operator stopped it", "nothing", quick=True, compare=True, expect=left_alone("operator_stopped"))
def operator(bench):
    bench.unit("victim", "9000")
    bench.ready()
    bench.breaks()
    bench.stop("victim.service")


@fault("22", "it is masked", "nothing", expect=left_alone("masked"))
def masked(bench):
    bench.unit("victim", "9000")
    bench.ready()
    pid = bench.pid()
    bench.box.run("rm", "/run/systemd/system/victim.service")
    bench.box.run("systemctl", "mask", "--runtime", "victim.service")
    bench.breaks()
    bench.box.run("kill", "-KILL", pid)


@fault("23", "killed during maintenance", "log only", quick=True, expect=[nothing_done, untold, held("paused")])
def maintenance(bench):
    bench.unit("victim", "9000")
    bench.ready()
    if bench.healer:
        bench.box.run("lares", "heal", "pause", "victim.service", "--for", "10m", "--reason", "maintenance")
    bench.kill()


def generations(bench, changed):
    """A profile whose newest generation came just now and changed these units, or none."""
    bench.place("/nix")
    text = ""
    for number in (7, 8):
        units = f"/nix/store/{number}-system/etc/systemd/system"
        text += f"mkdir -p {units} /nix/var/nix/profiles; "
        text += f"ln -s /nix/store/{number}-system /nix/var/nix/profiles/system-{number}-link; "
        for unit in ("victim", "sibling"):
            closure = f"/nix/store/{number if changed else 7}-unit-{unit}"
            text += f"mkdir -p {closure}; echo >{closure}/{unit}.service; "
            text += f"ln -s {closure}/{unit}.service {units}/{unit}.service; "
    bench.box.run("sh", "-c", text + "ln -s system-8-link /nix/var/nix/profiles/system")


def two_fail_after_a_switch(bench, changed):
    bench.unit("victim", "9000")
    bench.unit("sibling", "9002")
    bench.start("sibling.service")
    generations(bench, changed)
    bench.ready()
    pids = [bench.pid(), bench.pid("sibling")]
    bench.breaks()
    bench.box.run("kill", "-KILL", *pids)


@fault("25", "two units fail right after a switch that changed them", "propose rollback once", heals={"sibling": {}},
       expect=[nothing_done, asked("rollback")])
def bad_generation(bench):
    two_fail_after_a_switch(bench, True)


@fault("26", "the same, and the switch did not change them", "no rollback: restart", heals={"sibling": {}},
       recoverable=True, compare=False, touches={"victim": 1, "sibling": 1},
       works=lambda bench: bench.works() and bench.works(9002),
       expect=[asked("rollback", 0), *restarted(), *restarted("sibling")])
def other_generation(bench):
    two_fail_after_a_switch(bench, False)


def in_the_middle(bench):
    """Killed, and the healer has begun to start it, which takes a while."""
    bench.unit("victim", "9000 --slow 5", "Type=notify")
    bench.ready()
    bench.kill()
    until("the remedy is under way", lambda: bench.state() == "activating", 15)
    time.sleep(1)


@fault("27", "the healer is killed in the middle of a remedy", "resume, act once, say so", quick=True, recoverable=True,
       compare=False, expect=[*restarted(), resumed], touches={"victim": 1})
def healer_killed(bench):
    in_the_middle(bench)
    bench.box.run("kill", "-KILL", bench.healer.pid())


@fault("27b", "PostgreSQL is killed in the middle of a remedy", "act once, lose nothing", recoverable=True,
       compare=False, expect=restarted(), touches={"victim": 1})
def database_killed(bench):
    in_the_middle(bench)
    cluster = bench.box.run("systemctl", "list-units", "--plain", "--no-legend", "postgresql@*").split()[0]
    bench.box.run("systemctl", "kill", "--signal=KILL", cluster)
    time.sleep(4)
    bench.box.run("systemctl", "reset-failed", cluster, check=False)
    bench.box.run("systemctl", "start", cluster)


@fault("28", "dbus-daemon is killed in the middle of a remedy", "reconnect, act once", recoverable=True, compare=False,
       expect=restarted(), touches={"victim": 1})
def bus_killed(bench):
    in_the_middle(bench)
    bench.box.run("systemctl", "kill", "--signal=KILL", "dbus.service")


@fault("28b", "systemd is executed anew in the middle of a remedy", "resynchronise, act once", recoverable=True,
       compare=False, expect=restarted(), touches={"victim": 1})
def manager_executed(bench):
    in_the_middle(bench)
    bench.box.run("systemctl", "daemon-reexec")


@fault("28c", "killed while dbus-daemon is down", "reconnect, notice, restart", recoverable=True, compare=False,
       expect=restarted(), touches={"victim": 1})
def bus_down(bench):
    bench.unit("victim", "9000")
    bench.ready()
    pid = bench.pid()
    bench.box.run("sh", "-c", f"systemctl kill --signal=KILL dbus.service; kill -KILL {pid}")
    bench.breaks()


WORKERS = [f"worker@{number:02}" for number in range(50)]
BUDGET = 30


def all_work(bench):
    said = bench.box.run("systemctl", "is-active", *(full(name) for name in WORKERS), check=False)
    return said.split() == ["active"] * len(WORKERS)


def bounded(bench, story, account):
    """Nobody was started twice, the budget of a minute was kept, and the incidents name what they have in common."""
    problems = []
    times = sorted(time for unit in account.units() for time in account.runs(unit).values())
    most = max((sum(begin <= other < begin + 60 for other in times) for begin in times), default=0)
    if most > BUDGET + 1:
        problems.append(f"{most} starts within a minute, {BUDGET} are allowed")
    if account.starts("database.service") != 1:
        problems.append(f"the database was started {account.starts('database.service')} times")
    missing = [unit for unit in WORKERS if not story.of(unit)]
    if missing:
        problems.append(f"no incident for {missing}")
    shared = [entry["shared"] for entry in story.entries("considered") if entry.get("shared")]
    if not shared or any(one != {"shared": "dependency", "unit": "database.service"} for one in shared):
        problems.append(f"in common: {shared[:3]} …")
    return problems


@fault("29", "50 units fail with what they all need", "the dependency once, the others within the budget",
       recoverable=True, heals={"victim": {}, "database": DATABASE}
       | {name: {"dependencies": ["database.service"]} for name in WORKERS},
       settings={"max_per_minute": BUDGET}, touches={"database": 1} | {name: 1 for name in WORKERS}, within=150,
       works=all_work, more=bounded, expect=[untold])
def fifty(bench):
    bench.unit("victim", "9000")
    bench.unit("database", "9001")
    restart = "Restart=on-failure\n" if bench.kind == "systemd" else ""
    bench.made |= {full(name) for name in WORKERS}
    bench.place("/run/systemd/system/worker@.service")
    bench.box.write(
        "/run/systemd/system/worker@.service",
        "[Unit]\nAfter=database.service\n[Service]\nExecStartPre=/usr/bin/curl -sf -m 1 http://127.0.0.1:9001/\n"
        f"ExecStart=/bin/sleep infinity\n{restart}",
    )
    bench.box.run("systemctl", "daemon-reload")
    bench.start("database.service")
    until("the database works", lambda: bench.works(9001), 15)
    bench.start(*WORKERS)
    bench.ready()
    bench.breaks()
    bench.box.run("systemctl", "kill", "--signal=KILL", "database.service", "worker@*.service")


@fault("30", "a client makes a healthy unit log a failure", "nothing", quick=True, expect=[silent])
def forged(bench):
    bench.unit("victim", "9000")
    bench.ready()
    for line in (
        "bind()%20to%20127.0.0.1:9000%20failed%20(98:%20Address%20already%20in%20use)",
        "database%20is%20locked",
        "Out%20of%20memory:%20Killed%20process%201%20(victim)",
    ):
        for _ in range(3):
            bench.get(9000, f"/say?{line}")
