"""One line a test, and a count of them at the end."""

import sys


class Report:
    def __init__(self, wanted):
        self.wanted = wanted
        self.counts = {"ok": 0, "FAIL": 0, "SKIP": 0}

    def wants(self, name):
        """Whether a test was asked for, by its beginning. Without names all of them are."""
        return not self.wanted or any(name.startswith(want) or want.startswith(name + "/") for want in self.wanted)

    def _line(self, kind, name, reason=""):
        if self.wanted and not any(name.startswith(want) for want in self.wanted):
            return
        self.counts[kind] += 1
        print(f"{kind} {name}" + (f": {reason}" if reason else ""), flush=True)

    def ok(self, name, note=""):
        self._line("ok", name, note)

    def fail(self, name, reason):
        self._line("FAIL", name, reason)

    def skip(self, name, reason):
        self._line("SKIP", name, reason)

    def result(self, name, problems, note=""):
        """ok, or one FAIL with everything that is wrong."""
        if problems:
            self.fail(name, "".join(f"\n    {problem}" for problem in problems))
        else:
            self.ok(name, note)

    def summary(self):
        counts = self.counts
        print(f"{counts['ok']} ok, {counts['FAIL']} failed, {counts['SKIP']} skipped")
        return 1 if counts["FAIL"] else 0


def note(text):
    """Something to read that is no test."""
    print(text, file=sys.stdout, flush=True)
