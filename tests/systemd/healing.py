"""What the healer does with the rights that its unit and polkit's rule give it, as the modules render them."""

import json
import time

from boxes import Failure, until

HELPER = "lares-healer-helper.service"


def main_pid(box, service):
    pid = box.show(service, "MainPID")["MainPID"]
    if pid == "0":
        # A signal to process 0 goes to whoever sends it.
        raise Failure(f"{service} does not run")
    return pid


def active_again(box, service, before):
    now = box.show(service, "ActiveState", "MainPID")
    return now["ActiveState"] == "active" and now["MainPID"] not in (before, "0")


def of_healer(box, path):
    """What the healer answers an administrator."""
    status, body = box.http(f"8099{path}", key=box.run("cat", "/var/lib/lares/keys/admin.key"))
    if status != 200:
        raise Failure(f"{path} of the healer: {status}: {body}")
    return json.loads(body)


def incident(box, unit):
    """The last incident of a unit."""
    found = of_healer(box, f"/api/v1/incidents?unit={unit}.service&limit=1")["incidents"]
    return found[0] if found else {}


def story(box, told):
    """What happened, for whoever reads why a test failed."""
    return box.run("lares", "incident", "show", told["id"]) if told else "there is no incident"


def works(box, port="9000"):
    return bool(box.run("curl", "--silent", "--max-time", "1", f"http://127.0.0.1:{port}/", check=False))


def kill(box, unit):
    pid = main_pid(box, unit)
    box.run("kill", "-KILL", pid)
    return pid


def settled(box, unit, after=None):
    """Waits until the last incident of a unit, a later one than that, has ended."""

    def ended():
        last = incident(box, unit)
        return last.get("state") == "closed" and last["id"] != after

    try:
        until(f"the incident of {unit} ends", ended, 60)
    except Failure as failure:
        raise Failure(f"{failure}\n{story(box, incident(box, unit))}") from None
    return incident(box, unit)


def check_healer(box):
    """It runs as a user of its own, and brings back what it is told of and systemd does not; nothing else."""
    until("the healer acts", lambda: of_healer(box, "/api/v1/units")["acting"], 30)
    watched = {unit["unit"] for unit in of_healer(box, "/api/v1/units")["units"]}
    told = {f"{name}.service" for name in (
        "app", "postgresql", "lares-coordinator", "lares-ralph", "lares-tools", "lares-llama-coder",
        "lares-llama-fetched",
    )}
    problems = [] if watched == told else [f"it watches {sorted(watched)}"]
    user = box.run("ps", "-o", "user:32=", "-p", main_pid(box, "lares-healer"))
    if user != "lares-healer":
        problems.append(f"it runs as {user}")
    box.run("systemctl", "start", "app", "bystander")
    until("both work", lambda: works(box) and works(box, "9001"), 15)
    last = incident(box, "app").get("id")
    kill(box, "bystander")
    before = kill(box, "app")
    took = until("app is back", lambda: active_again(box, "app", before) and works(box), 30)
    told = settled(box, "app", last)
    if told["outcome"] != "healed":
        problems.append(story(box, told))
    if box.show("bystander", "ActiveState")["ActiveState"] != "failed":
        problems.append("a unit that nobody named was touched")
    box.run("systemctl", "stop", "app")
    time.sleep(3)
    if box.show("app", "ActiveState")["ActiveState"] != "inactive":
        problems.append("what an operator stopped was started")
    box.run("systemctl", "start", "app")
    log = box.run("journalctl", f"LARES_INCIDENT={told['id']}", "--no-pager", "--output=cat", check=False)
    if not log:
        problems.append(f"the journal has nothing of incident {told['id']}")
    return problems, f"app back after {took:.1f} s"


def check_healer_idle(box):
    """While nothing happens it does next to nothing: what it looks at must not be what makes it look."""
    pid = main_pid(box, "lares-healer")

    def spent():
        """Hundredths of a second of processor."""
        return sum(map(int, box.run("cut", "-d ", "-f14,15", f"/proc/{pid}/stat").split()))

    seconds, before = 5, spent()
    time.sleep(seconds)
    share = (spent() - before) / seconds
    return ([] if share < 5 else [f"it takes {share:.1f} % of a processor"]), f"{share:.1f} % of a processor"


def check_healer_leaves(box):
    """A crash that systemd mends is left to it."""
    last = incident(box, "lares-coordinator").get("id")
    restarts = int(box.show("lares-coordinator", "NRestarts")["NRestarts"])
    before = kill(box, "lares-coordinator")
    took = until("systemd restarts it", lambda: active_again(box, "lares-coordinator", before), 30)
    # Long enough for a remedy to be begun and its incident to be told.
    time.sleep(3)
    told = incident(box, "lares-coordinator")
    problems = []
    if told.get("id") != last and told["outcome"] not in (None, "came_back"):
        problems.append(story(box, told))
    # An automatic restart of systemd counts, and starting anew would begin at 0.
    if int(box.show("lares-coordinator", "NRestarts")["NRestarts"]) != restarts + 1:
        problems.append("it was not systemd that brought it back")
    return problems, f"{took:.1f} s"


def check_polkit(box):
    """What the healer's user may do with systemd itself: exactly the named units and verbs."""
    manager = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"]
    command = ["a(sasb)", "1", "/bin/true", "1", "/bin/true", "false"]

    def may(user, *call):
        said = box.run("sh", "-c", '"$@"; echo "exit code $?"', "sh", "busctl", "call", *manager, *call, user=user)
        return said.endswith("exit code 0")

    problems = []
    for call in (["RestartUnit", "ss", "app.service", "replace"], ["ResetFailedUnit", "s", "app.service"]):
        if not may("lares-healer", *call):
            problems.append(f"{call} is denied")
    for call in (
        ["StartUnit", "ss", "bystander.service", "replace"],
        ["StartUnit", "ss", "app", "replace"],
        ["KillUnit", "ssi", "app.service", "all", "15"],
        ["SetUnitProperties", "sba(sv)", "app.service", "true", "1", "MemoryMax", "t", "1"],
        ["StartTransientUnit", "ssa(sv)a(sa(sv))", "app-2.service", "fail", "1", "ExecStart", *command, "0"],
        ["Reload"],
        ["EnableUnitFiles", "asbb", "1", "bystander.service", "true", "false"],
    ):
        if may("lares-healer", *call):
            problems.append(f"{call} is allowed")
    if may("lares", "RestartUnit", "ss", "app.service", "replace"):
        problems.append("the daemons' user may restart units")
    if box.run("cat", "/var/lib/lares/keys/admin.key", user="lares-healer", check=False):
        problems.append("the healer's user can read the keys")
    until("app works", lambda: works(box), 15)
    return problems


ASK = """
import socket, sys
door = socket.socket(socket.AF_UNIX)
door.settimeout(20)
door.connect("/run/lares/helper.sock")
door.sendall(sys.argv[1].encode() + b"\\n")
print(door.makefile().readline())
"""


def check_helper(box):
    """The helper, as hardened as its unit says, does all it is there for, and no more than the configuration allows."""

    def ask(user="lares-healer", **request):
        said = box.run("python3", "-c", ASK, json.dumps(request), user=user, check=False)
        return json.loads(said) if said else {}

    app = "app.service"
    box.run("systemctl", "set-property", "--runtime", app, "MemoryMax=256M")
    problems = []
    for request, wanted in (
        ({"verb": "set_memory_max", "unit": app, "bytes": 512 << 20}, "done"),
        ({"verb": "set_memory_max", "unit": app, "bytes": 1 << 30}, "refused"),
        ({"verb": "set_memory_max", "unit": "bystander.service", "bytes": 512 << 20}, "refused"),
        ({"verb": "set_port", "unit": app, "to": 9011}, "refused"),
        ({"verb": "set_port", "unit": app, "to": 9010}, "done"),
        ({"verb": "holder", "unit": app, "port": 9000}, "holder"),
        ({"verb": "roll_back", "to": 1}, "refused"),
    ):
        answer = ask(**request)
        if answer.get("answer") != wanted:
            problems.append(f"{request} is answered with {answer}, not {wanted}")
    holder = ask(verb="holder", unit=app, port=9000).get("holder") or {}
    if str(holder.get("pid")) != main_pid(box, "app"):
        problems.append(f"port 9000 is said to be held by {holder}")
    found = box.show("app", "MemoryMax", "Environment")
    if found != {"MemoryMax": str(512 << 20), "Environment": "VICTIM_PORT=9010"}:
        problems.append(f"systemd knows {found}")
    if ask("lares", verb="holder", unit=app, port=9000):
        problems.append("the daemons' user is answered")
    log = box.run("journalctl", "--unit", HELPER, "--output=json", "--no-pager")
    if sum("set_memory_max" in line for line in log.splitlines()) < 3:
        problems.append("not every call is in the journal")
    box.run("rm", "-r", "/run/systemd/system/app.service.d")
    box.run("systemctl", "daemon-reload")
    return problems


def check_healer_orphan(box):
    """A process that an earlier run left on the port is ended, whoever it belongs to."""
    box.run("systemctl", "stop", "app", check=False)
    box.run("useradd", "--system", "app")
    box.victim("app", "9000 --orphan", "KillMode=process\nUser=app")
    box.run("systemctl", "start", "app")
    until("app works", lambda: works(box), 15)
    last = incident(box, "app").get("id")
    before = kill(box, "app")
    took = until("app is back", lambda: active_again(box, "app", before) and works(box), 60)
    told = settled(box, "app", last)
    box.run("systemctl", "stop", "app", check=False)
    box.run("pkill", "-KILL", "-u", "app", check=False)
    return ([] if told["outcome"] == "healed" else [story(box, told)]), f"{took:.1f} s"


def check_healer_without_database(box):
    """Without PostgreSQL it heals all the same, and what happened is there when PostgreSQL is back."""
    box.victim("app", "9000")
    box.run("systemctl", "restart", "app")
    until("app works", lambda: works(box), 15)
    last = incident(box, "app").get("id")
    cluster = box.run("systemctl", "list-units", "--plain", "--no-legend", "postgresql@*").split()[0]
    box.run("systemctl", "stop", cluster)
    before = kill(box, "app")
    took = until("app is back", lambda: active_again(box, "app", before) and works(box), 30)
    kill(box, "lares-healer")
    box.run("systemctl", "start", cluster)
    until("the healer is ready", lambda: box.http("8099/ready")[0] == 200, 60)
    told = settled(box, "app", last)
    return ([] if told["outcome"] == "healed" else [story(box, told)]), f"{took:.1f} s"


def check_healer_port(box):
    """A unit whose port another one has gets one of its others, by way of the helper."""
    last = incident(box, "app").get("id")
    box.run("systemctl", "stop", "app")
    box.victim("bystander", "9000 --says bystander")
    box.run("systemctl", "restart", "bystander")
    until("the port is taken", lambda: works(box), 15)
    box.run("systemctl", "start", "app", check=False)
    took = until("app works on another port", lambda: works(box, "9010"), 30)
    problems = []
    if "VICTIM_PORT=9010" not in box.show("app", "Environment")["Environment"]:
        problems.append("systemd does not know the other port")
    if box.run("curl", "--silent", "http://127.0.0.1:9000/") != "bystander":
        problems.append("who had the port was touched")
    told = settled(box, "app", last)
    if told["outcome"] != "healed":
        problems.append(story(box, told))
    box.run("systemctl", "stop", "app", "bystander")
    return problems, f"{took:.1f} s"
