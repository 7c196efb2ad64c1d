"""Whole systems: the hosts, and each option away from its default."""

import concurrent.futures
import functools
import os
import pathlib
import re
import subprocess
import tempfile

from . import nix, toml

# Systems evaluated by one Nix process: enough to share the package set, few enough to fit into memory with a current
# nixpkgs, where each takes some hundred megabytes.
CHUNK = 8
# Two at a time is as fast as it gets on small machines.
PROCESSES = min(2, os.cpu_count() or 1)


def chunks(names):
    return [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]


def one_by_one(attribute, names):
    """Results, and what went wrong, when many in one call did not work: one that throws takes all others with it."""
    results, errors = {}, {}
    for name in names:
        try:
            results[name] = nix.bed(f"{attribute}.${{{toml.string(name)}}}", f"names = [ {toml.string(name)} ];")
        except nix.EvaluationError as error:
            errors[name] = str(error)
    return results, errors


def together(names):
    listed = " ".join(map(toml.string, names))
    try:
        return nix.bed("variations", f"names = [ {listed} ];"), {}
    except nix.EvaluationError:
        return one_by_one("variations", names)


@functools.cache
def variations():
    names = nix.bed("variationNames")
    results, errors = {}, {}
    with concurrent.futures.ThreadPoolExecutor(PROCESSES) as pool:
        for some_results, some_errors in pool.map(together, chunks(names)):
            results |= some_results
            errors |= some_errors
    return results, errors


@functools.cache
def hosts():
    return one_by_one("hosts", ["workstation", "gpu", "cluster-control", "cluster-worker"])


def difference(expected, found, where=""):
    """Where a value is not as expected; keys that are not expected may be anything."""
    if isinstance(expected, dict) and expected:
        if not isinstance(found, dict):
            return [f"{where or 'value'} is {found!r}, expected a table"]
        problems = []
        for key, inner in expected.items():
            place = f"{where}.{key}" if where else key
            problems += difference(inner, found[key], place) if key in found else [f"{place} is not set"]
        return problems
    if expected == {} and not where:
        return []
    return [] if expected == found else [f"{where or 'value'} is {found!r}, expected {expected!r}"]


def at(tree, dotted):
    for key in dotted.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def judge(result):
    expected = result["expected"]
    problems = [f"assertion: {text}" for text in result["assertions"]]
    problems += [f"warning: {text}" for text in result["warnings"] if "lares" in text.lower()]
    for unit, texts in expected["units"].items():
        if unit not in result["units"]:
            problems.append(f"there is no {unit}; there are {', '.join(result['units'])}")
            continue
        text = result["units"][unit]
        problems += [f"{unit} lacks `{part}`" for part in texts.get("has", []) if part not in text]
        problems += [f"{unit} has `{part}`" for part in texts.get("lacks", []) if part in text]
    problems += [f"{unit} is there" for unit in expected["absent"] if unit in result["units"]]
    for prefix in expected["absentPrefix"]:
        problems += [f"{unit} is there" for unit in result["units"] if unit.startswith(prefix)]
    problems += [f"polkit's rules lack `{part}`" for part in expected["rules"].get("has", []) if part not in result["rules"]]
    problems += [f"polkit's rules have `{part}`" for part in expected["rules"].get("lacks", []) if part in result["rules"]]
    problems += difference(expected["settings"], result["settings"])
    for key, pattern in expected["settingsMatch"].items():
        found = at(result["settings"], key)
        if not re.fullmatch(pattern, str(found)):
            problems.append(f"{key} is {found!r}, expected something like {pattern}")
    problems += difference(expected["config"], result["config"])
    return problems


def check_variations(report):
    _, missing = nix.nixpkgs()
    if missing:
        return report.skip("variation", missing)
    results, errors = variations()
    for name in sorted(results.keys() | errors.keys()):
        report.result(f"variation/{name}", [errors[name]] if name in errors else judge(results[name]))


def check_hosts(report):
    _, missing = nix.nixpkgs()
    if missing:
        return report.skip("host", missing)
    results, errors = hosts()
    for name in sorted(results.keys() | errors.keys()):
        problems = [errors[name]] if name in errors else []
        if name in results:
            problems += [f"assertion: {text}" for text in results[name]["assertions"]]
            problems += [f"warning: {text}" for text in results[name]["warnings"] if "lares" in text.lower()]
            if not any(unit.endswith(".service") for unit in results[name]["units"]):
                problems.append("has no unit of Lares")
        if not problems:
            try:
                nix.bed(f"hostSystems.{name}")
            except nix.EvaluationError as error:
                problems.append(f"the whole system: {error}")
        report.result(f"host/{name}", problems)


def every():
    """All systems by name. Without all of them nothing can be said of all of them."""
    for name, error in (variations()[1] | hosts()[1]).items():
        raise nix.EvaluationError(f"{name} does not evaluate: {error}")
    found = {f"variation/{name}": result for name, result in variations()[0].items()}
    return found | {f"host/{name}": result for name, result in hosts()[0].items()}


def binary():
    path = os.environ.get("LARES_TEST_BIN")
    if not path:
        return None, "LARES_TEST_BIN is not set (the lares binary)"
    if not os.access(path, os.X_OK):
        return None, f"LARES_TEST_BIN={path} cannot be run"
    return os.path.abspath(path), None


def lares(*arguments):
    """What the binary prints, untouched by the configuration of whoever runs the tests."""
    path, _ = binary()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LARES_")}
    environment |= {"XDG_CONFIG_HOME": "/nonexistent", "HOME": "/nonexistent"}
    return subprocess.run([path, *arguments], capture_output=True, text=True, env=environment)


def check_configurations(report):
    """What the modules render is what the daemons take."""
    _, missing = nix.nixpkgs()
    missing = missing or binary()[1]
    if missing:
        return report.skip("config-check", missing)
    problems, count = [], 0
    with tempfile.TemporaryDirectory(prefix="lares-nix-") as directory:
        for name, result in every().items():
            if not result["settings"]:
                continue
            count += 1
            file = pathlib.Path(directory) / (name.replace("/", "-") + ".toml")
            file.write_text(toml.document(result["settings"]))
            done = lares("config", "check", str(file))
            if done.returncode != 0:
                problems.append(f"{name}: exit code {done.returncode}: {done.stderr.strip()}")
        report.result("config-check", problems, f"{count} files")

        # A key that is only in `settings` is no option, so Nix cannot know it; the check at build time does.
        wrong = dict(variations()[0]["defaults"]["settings"])
        wrong["ralph"] = wrong["ralph"] | {"max_iteration": 5}
        file = pathlib.Path(directory) / "wrong.toml"
        file.write_text(toml.document(wrong))
        done = lares("config", "check", str(file))
        refused = done.returncode == 78 and "did you mean `max_iterations`" in done.stderr
        report.result("config-check-refuses", [] if refused else [f"exit code {done.returncode}: {done.stderr}"])
