"""Calls that go on beside a fault: one thread and one session a server, so that none waits for another."""

import math
import threading
import time

from bed import Failure
from client import Mcp

# Between two calls of a thread, in seconds: enough calls to see a delay, and time left for the servers to start again.
PAUSE = 0.04
# No call beside a fault may take longer, in seconds.
LONGEST = 2.0


def quantile(times, part):
    return sorted(times)[max(0, math.ceil(part * len(times)) - 1)]


class Window:
    """The calls of a stretch of time."""

    def __init__(self, records):
        self.records = records
        self.times = [took for _, _, took, _ in records]

    @property
    def count(self):
        return len(self.times)

    @property
    def p50(self):
        return quantile(self.times, 0.5) * 1e3 if self.times else math.nan

    @property
    def longest(self):
        return max(self.times) * 1e3 if self.times else math.nan

    def numbers(self):
        return {"calls": self.count, "p50_ms": round(self.p50, 1), "max_ms": round(self.longest, 1)}

    def __str__(self):
        return f"{self.count} calls, p50 {self.p50:.0f} ms, max {self.longest:.0f} ms"

    def problems(self):
        """What no fault of another server may cause."""
        failed = [f"a call of {name} failed: {why}" for name, _, _, why in self.records if why]
        slow = [
            f"a call of {name} took {took:.2f} s" for name, _, took, _ in self.records if took > LONGEST
        ]
        none = [] if self.times else ["no call went on beside it"]
        return failed[:3] + slow[:3] + none


class Load:
    """Calls all `servers` in loops, from `start` to `stop`."""

    def __init__(self, servers, address, key):
        self.servers, self.address, self.key = servers, address, key
        self.records, self.lock = [], threading.Lock()
        self.paused, self.idle, self.ended = set(), {}, threading.Event()
        self.threads = []

    def start(self):
        for server in self.servers:
            self.idle[server.name] = threading.Event()
            thread = threading.Thread(target=self.loop, args=(server,), daemon=True)
            self.threads.append(thread)
            thread.start()
        return self

    def loop(self, server):
        session = None
        while not self.ended.is_set():
            if server.name in self.paused:
                self.idle[server.name].set()
                time.sleep(0.01)
                continue
            began = time.monotonic()
            try:
                session = session or Mcp(self.address, self.key)
                began = time.monotonic()
                failed, text, _ = session.call(server.id(server.tool), server.arguments)
                why = server.wrong(failed, text)
            except Failure as failure:
                why = str(failure)
            took = time.monotonic() - began
            with self.lock:
                self.records.append((server.name, began, took, why))
            time.sleep(PAUSE)
        if session:
            session.close()

    def pause(self, name):
        """No more calls of this server; returns when none is under way."""
        self.idle[name].clear()
        self.paused.add(name)
        self.idle[name].wait(10)

    def go_on(self, name):
        self.paused.discard(name)

    def window(self, began, ended, without=""):
        """Calls of all other servers that were under way between two times."""
        with self.lock:
            records = list(self.records)
        return Window([
            record for record in records
            if record[0] != without and record[1] < ended and record[1] + record[2] > began
        ])

    def stop(self):
        self.ended.set()
        for thread in self.threads:
            thread.join(20)
