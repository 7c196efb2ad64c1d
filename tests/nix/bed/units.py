"""The rendered units as systemd reads them."""

import functools
import json
import pathlib
import re
import shutil
import subprocess
import tempfile

from . import nix, report as reporting, systems

# Most that `systemd-analyze security` may say of a unit.
EXPOSURE = 2.0

# Keys that older systemd does not know, and the version that brought them. NixOS has a newer one.
NEWER = {
    "@sandbox": 253,
    "ConditionCredential": 252,
    "MemoryPressureWatch": 254,
    "PrivatePIDs": 257,
    "ProtectControlGroupsEx": 257,
    "RestartMaxDelaySec": 254,
    "RestartMode": 254,
    "RestartSteps": 254,
    "SetLoginEnvironment": 255,
}


@functools.cache
def version():
    """systemd's version here; or why there is none."""
    if shutil.which("systemd-analyze") is None:
        return None, "systemd-analyze is not installed"
    done = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True)
    found = re.search(r"systemd (\d+)", done.stdout)
    if not found:
        return None, "systemd-analyze does not work here"
    if int(found[1]) < 250:
        return None, f"systemd-analyze {found[1]} cannot judge unit files; 250 or newer can"
    return int(found[1]), None


# The program of an Exec line, quoted or not, behind its prefix characters.
PROGRAM = re.compile(r'^(Exec\w+=[-@:+!]*)("?)/nix/store/[^\s"]+("?)', re.MULTILINE)


def here(text):
    """A unit's text with programs that exist on this machine."""
    return PROGRAM.sub(r"\1\2/bin/true\3", text)


def write(directory, units):
    """The units of one system, and an empty one for each that they name and that is not there."""
    for name, text in units.items():
        (directory / name).write_text(here(text))
    for text in units.values():
        for line in re.findall(r"^(?:After|Before|Wants|Requires|BindsTo|PartOf|Requisite)=(.*)$", text, re.MULTILINE):
            for other in line.split():
                file = directory / other
                installed = any(
                    (pathlib.Path(place) / other).exists() for place in ("/lib/systemd/system", "/usr/lib/systemd/system")
                )
                if not file.exists() and not installed:
                    body = "[Service]\nType=oneshot\nExecStart=/bin/true\n" if other.endswith(".service") else ""
                    file.write_text(f"[Unit]\nDescription=Stands in for {other}\n{body}")


def complaints(output, known):
    """What is left when keys that this systemd is too old for are taken out."""
    found = []
    for line in output.splitlines():
        key = re.search(r"Unknown (?:key|key name|lvalue) '(\w+)'|Unknown system call group, ignoring: (@\w+)", line)
        if key and NEWER.get(key[1] or key[2], 0) > known:
            continue
        if line.strip():
            found.append(line.strip())
    return found


def different(every):
    """Systems whose units differ; most variations change settings only."""
    seen, kept = set(), {}
    for name, result in every.items():
        units = {unit: text for unit, text in result["units"].items() if unit.endswith((".service", ".socket", ".target"))}
        # Store paths of the configuration file change with every setting.
        text = re.sub(r"/nix/store/[a-z0-9]{32}-", "/nix/store/-", json.dumps(units, sort_keys=True))
        if units and text not in seen:
            seen.add(text)
            kept[name] = units
    return kept


def verify(report):
    known, missing = version()
    missing = nix.nixpkgs()[1] or missing
    if missing:
        return report.skip("systemd-verify", missing)
    where, count = {}, 0
    for name, units in different(systems.every()).items():
        with tempfile.TemporaryDirectory(prefix="lares-units-") as temporary:
            directory = pathlib.Path(temporary)
            write(directory, units)
            files = [str(directory / unit) for unit in units]
            count += len(files)
            done = subprocess.run(
                ["systemd-analyze", "verify", "--man=no", *files],
                capture_output=True,
                text=True,
                env={"SYSTEMD_UNIT_PATH": f"{directory}:", "PATH": "/usr/bin:/bin", "SYSTEMD_LOG_LEVEL": "notice"},
            )
            for line in complaints(done.stdout + done.stderr, known):
                # Many systems have the same unit: one complaint, and where it was seen first.
                text = re.sub(r"(\.\w+):\d+:", r"\1:", line.replace(f"{temporary}/", ""))
                where.setdefault(text, []).append(name)
    problems = [f"{text} (in {names[0]} and {len(names) - 1} others)" for text, names in where.items()]
    report.result("systemd-verify", problems, f"{count} units, systemd {known}")


def exposure(directory, unit):
    """How exposed a unit is, what it is exposed by, and what systemd-analyze said besides."""

    def analyze(*options):
        return subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--no-pager", *options, unit],
            capture_output=True,
            text=True,
            cwd=directory,
            env={"SYSTEMD_UNIT_PATH": f"{directory}:", "PATH": "/usr/bin:/bin", "SYSTEMD_LOG_LEVEL": "err"},
        )

    table = analyze()
    found = re.search(r"Overall exposure level for .*?: ([0-9.]+)", table.stdout)
    if not found:
        return None, [], table.stderr.strip()
    if float(found[1]) <= EXPOSURE:
        return float(found[1]), [], ""
    rows = json.loads(analyze("--json=short").stdout or "[]")
    rows = [row for row in rows if row.get("set") is False and row.get("exposure")]
    rows.sort(key=lambda row: -float(row["exposure"]))
    return float(found[1]), [f"{row['name']} {row['exposure']}" for row in rows[:12]], ""


def security(report):
    known, missing = version()
    missing = nix.nixpkgs()[1] or missing
    if missing:
        return report.skip("systemd-security", missing)
    worst, problems = {}, []
    for name, units in different(systems.every()).items():
        with tempfile.TemporaryDirectory(prefix="lares-units-") as temporary:
            directory = pathlib.Path(temporary)
            write(directory, units)
            for unit in filter(lambda unit: unit.endswith(".service"), units):
                level, costs, said = exposure(directory, unit)
                if level is None:
                    problems.append(f"{name}: {unit}: {said}")
                elif level > worst.get(unit, (-1, "", ""))[0]:
                    worst[unit] = (level, name, costs)
    if report.wants("systemd-security"):
        reporting.note("exposure, as `systemd-analyze security` says (the worst of all systems):")
        for unit, (level, name, _) in sorted(worst.items()):
            reporting.note(f"    {level:4.1f}  {unit:45} {name}")
    for unit, (level, name, costs) in sorted(worst.items()):
        if level > EXPOSURE:
            problems.append(f"{unit} ({name}): {level} is more than {EXPOSURE}; it is exposed by {', '.join(costs)}")
    report.result("systemd-security", problems, f"{len(worst)} units, at most {EXPOSURE}")
