"""Each server killed, hung and made to lie in turn, while calls of all others go on."""

import signal
import threading
import time

from bed import Failure
from client import Mcp
from house import found, kill, memory, named, stat, words
from load import Load

# Longest call of a tool, in seconds, as the configuration of these tests has it.
CALL_TIMEOUT = 2
# A server that failed must give right answers again within so long, in seconds.
PATIENCE = 20
MIB = 1 << 20
# A result that is cut off must not cost as much memory as it would have had.
HUGE_COSTS = 48 * MIB
# How much later than its timeout a call may fail: the machine is busy.
LATE = 1.0


def lie(place, *what):
    """Has the liar that reads in `place` do this from now on; nothing: it passes on what it hears."""
    file = place / "lie"
    if what:
        # In one step: the liar may read at any time.
        fresh = place / "new"
        fresh.write_text("".join(one + "\n" for one in what))
        fresh.replace(file)
    else:
        file.unlink(missing_ok=True)


class Faults:
    def __init__(self, house, servers, lies, results):
        self.house, self.servers, self.results = house, servers, results
        self.lies = lies
        key = house.caller("tests-caller")
        self.session = Mcp(house.address, key)
        self.second = Mcp(house.address, key)
        self.load = Load(servers, house.address, key)

    # What is done to a server.

    def lie(self, server, *what):
        lie(self.lies(server.name), *what)

    def real(self, server):
        """The process of the real server behind the liar; nothing while there is none."""
        place = str(self.lies(server.name))
        liars = [pid for pid in named(place) if any(word.endswith("liar.py") for word in words(pid))]
        for pid in named(server.command[-1]):
            state = stat(pid)
            if state and state[1] in liars and pid not in liars and state[0] != "Z":
                return pid
        return None

    # What is asked of it.

    def call(self, server, session=None):
        """What is wrong with one call; empty if nothing is."""
        try:
            failed, text, _ = (session or self.session).call(server.id(server.tool), server.arguments)
            return server.wrong(failed, text)
        except Failure as failure:
            return str(failure) or "it failed"

    def recovered(self, server, since):
        """Seconds until it gives a right answer again."""
        wrong = ""
        while time.monotonic() - since < PATIENCE:
            wrong = self.call(server)
            if not wrong:
                return time.monotonic() - since
            time.sleep(0.05)
        raise Failure(f"no right answer {PATIENCE} s after the fault: {wrong}")

    # The faults: each gives what is wrong, and a note.

    def killed(self, server):
        before = self.house.admin.server(server.name)["connections"]
        pid = found("the server has a process", lambda: self.real(server), 10)
        began = time.monotonic()
        kill(pid)
        back = self.recovered(server, began)
        after = self.house.admin.server(server.name)["connections"]
        problems = [] if after == before + 1 else [f"connections went from {before} to {after}"]
        return problems, back, ""

    def hung(self, server):
        pid = found("the server has a process", lambda: self.real(server), 10)
        began = time.monotonic()
        kill(pid, signal.SIGSTOP)
        said, took = {}, {}

        def ask(number, session):
            begun = time.monotonic()
            said[number] = self.call(server, session)
            took[number] = time.monotonic() - begun

        beside = threading.Thread(target=ask, args=(1, self.second))
        beside.start()
        ask(0, self.session)
        beside.join()
        problems = ["a call of the hung server gave a right answer" for why in said.values() if not why]
        late = max(took.values())
        if not CALL_TIMEOUT * 0.9 < late < CALL_TIMEOUT + LATE:
            problems.append(f"its call failed after {late:.2f} s; its timeout is {CALL_TIMEOUT} s")
        back = self.recovered(server, began)
        # One that was replaced must not be left behind, stopped.
        found(f"the hung process {pid} is gone", lambda: stat(pid) is None or stat(pid)[0] == "Z", 5)
        return problems, back, f"its calls failed after {late:.2f} s"

    def lied(self, server):
        """Garbage between its messages, and a description that orders the model about."""
        admin = self.house.admin
        name, arguments, right = server.lied
        tool, problems = server.id(name), []
        before = admin.tool(tool)
        began = time.monotonic()
        self.lie(server, f"rug {name}", "garbage")
        found(f"{tool} is quarantined", lambda: admin.tool(tool)["state"] == "quarantined", 5)
        caught = time.monotonic() - began
        shown = admin.tool(tool)
        if not shown["findings"] or not shown["differences"]:
            problems.append(f"no findings or differences of {tool}")
        listed = admin.get(f"/api/v1/tools?state=quarantined&server={server.name}")["tools"]
        if [one["id"] for one in listed] != [tool]:
            problems.append(f"listed as quarantined: {[one['id'] for one in listed]}")
        failed, text, _ = self.session.call(tool, arguments)
        if not failed or right(text):
            problems.append(f"a quarantined tool was called: {text[:200]!r}")
        if tool in self.session.search(server.question):
            problems.append("a quarantined tool is found")
        if server.other:
            failed, text, _ = self.session.call(server.id(server.other[0]), server.other[1])
            if failed or not server.other[2](text):
                problems.append(f"another tool of the liar: {text[:200]!r}")
        admin.ask("POST", f"/api/v1/tools/{tool}/approve", {"hash": shown["hash"]})
        failed, text, _ = self.session.call(tool, arguments)
        if failed or not right(text):
            problems.append(f"an approved tool cannot be called: {text[:200]!r}")
        self.lie(server)
        back = self.recovered(server, time.monotonic())
        found(f"{tool} is what it was", lambda: self.same(admin.tool(tool), before), 5)
        return problems, back, f"quarantined after {caught:.2f} s"

    @staticmethod
    def same(now, before):
        # What is found in it can depend on other servers that came meanwhile.
        return all(now[name] == before[name] for name in ("state", "hash", "approved_hash", "differences"))

    def huge(self, server):
        before = self.house.admin.server(server.name)["connections"]
        held = memory(self.house.daemon)
        self.lie(server, "huge")
        why = self.call(server)
        self.lie(server)
        back = self.recovered(server, time.monotonic())
        more = memory(self.house.daemon) - held
        after = self.house.admin.server(server.name)["connections"]
        problems = [] if "tools.max_result" in why else [f"a result of 100 MB: {why!r}"]
        problems += [] if more < HUGE_COSTS else [f"it cost {more / MIB:.0f} MiB"]
        problems += [] if after == before else [f"connections went from {before} to {after}"]
        return problems, back, f"{more / MIB:.1f} MiB more memory"

    def misnamed(self, server):
        self.lie(server, "id")
        begun = time.monotonic()
        why = self.call(server)
        took = time.monotonic() - begun
        self.lie(server)
        back = self.recovered(server, time.monotonic())
        problems = [] if why else ["an answer with another id was taken"]
        problems += [] if took < CALL_TIMEOUT + LATE else [f"it took {took:.2f} s"]
        return problems, back, f"failed after {took:.2f} s"

    def halved(self, server):
        self.lie(server, "half")
        begun = time.monotonic()
        why = self.call(server)
        took = time.monotonic() - begun
        self.lie(server)
        back = self.recovered(server, begun)
        problems = [] if why else ["half an answer was taken"]
        problems += [] if took < CALL_TIMEOUT + LATE else [f"its call failed after {took:.2f} s only"]
        return problems, back, f"its call failed after {took:.2f} s"

    def run(self):
        """All of them; what the others did meanwhile is judged each time."""
        kinds = [
            ("killed", self.killed), ("garbage-and-rug-pull", self.lied), ("100-MB-result", self.huge),
            ("dies-in-a-message", self.halved), ("wrong-id", self.misnamed), ("hung", self.hung),
        ]
        kinds = [(kind, fault) for kind, fault in kinds if self.results.wants(f"faults/{kind}")]
        self.load.start()
        began = time.monotonic()
        time.sleep(5)
        # The first calls of all open their sessions.
        before = self.load.window(began + 2, time.monotonic())
        self.results.number("faults/before", before.numbers())
        self.results.result("faults/before", before.problems(), f"all others and itself: {before}")
        for kind, fault in kinds:
            for server in self.servers:
                self.one(kind, server, fault)
        self.load.stop()
        took = time.monotonic() - began
        self.results.number("faults/seconds", round(took, 1))
        for session in self.session, self.second:
            session.close()

    def one(self, kind, server, fault):
        name = f"faults/{kind}/{server.name}"
        if not self.results.wants(name):
            return
        self.load.pause(server.name)
        began, back, note = time.monotonic(), None, ""
        try:
            problems, back, note = fault(server)
        except Failure as failure:
            problems = [str(failure)]
        finally:
            self.lie(server)
        beside = self.load.window(began, time.monotonic(), server.name)
        self.load.go_on(server.name)
        if len(self.servers) > 1:
            problems = problems + beside.problems()
        self.results.number(name, {"back_s": back and round(back, 2), "beside": beside.numbers()})
        said = ", ".join(part for part in (note, f"right again after {back or 0:.2f} s", f"beside it {beside}") if part)
        self.results.result(name, problems, said)
