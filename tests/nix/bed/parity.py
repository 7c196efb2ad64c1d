"""The typed options and the daemons' configuration tree are the same tree.

Keys of the daemons are snake_case, options are camelCase, and the nesting is the same, so one is made from the other.
Without nixpkgs the option reference stands for the modules it is made from.
"""

import functools
import json
import re

from . import nix, systems

# Keys of the daemons that are no options. The reason is printed when the test finds that an entry is out of date.
NO_OPTION = {
    "units": "the supervisor of `lares up`; on NixOS systemd is the supervisor",
    "store.cluster": "the private PostgreSQL of `lares up`; on NixOS services.postgresql is the database",
}

# Options that are no keys of the daemons.
NO_KEY = {
    "enable": "whether any of this is there",
    "package": "which lares",
    "user": "who the daemons run as",
    "group": "who the daemons run as",
    "settings": "the tree itself, freeform",
    "allowedAddresses": "address filter of the units",
    "database.createLocally": "wires services.postgresql",
    "qdrant.createLocally": "wires services.qdrant",
    "valkey.createLocally": "wires services.redis",
    "llama.package": "which llama.cpp; `llama.server` follows from it",
    "models.<name>.accelerator": "devices and confinement of the model's unit",
    "models.<name>.memoryMax": "a limit of the model's unit",
    "models.<name>.tuning": "a file that sets the other options",
    "coordinator.enable": "whether the unit is there",
    "ralph.enable": "whether the unit is there",
    "ralph.repositories": "what the unit may see of /home",
    "ralph.path": "programs of the unit",
    "tools.enable": "whether the unit is there",
    "tools.path": "programs of the unit",
    "tools.memoryMax": "a limit of the unit",
    "tools.cpuQuota": "a limit of the unit",
    "tools.tasksMax": "a limit of the unit",
    "healer.enable": "whether the unit is there",
    "healer.includeLares": "names the units of Lares in `healer.units`",
    "healer.units.<name>.enable": "whether the unit is in `healer.units` at all",
}

# Defaults that are not the daemons' own, and why.
OTHER_DEFAULT = {
    "state_dir": "the daemons' own depends on who asks; the units' is always the same",
    "llama.server": "comes from `llama.package`",
    "llama.models_dir": "a directory that the units share",
    "tools.discovery.client_files": "the unit sees no home directory; what is named is shown to it",
    "models.<name>.port": "fixed, because a unit cannot ask for a free one and tell the others",
}

# Keys whose rendered value differs although the option's default is the daemons' own.
OTHER_VALUE = {
    "store.url": "the socket of the local PostgreSQL instead of a private cluster",
}

UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1,
    "sec": 1,
    "m": 60,
    "min": 60,
    "h": 3600,
    "d": 86400,
}
SIZES = {"b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


def snake(name):
    return re.sub(r"([A-Z])", lambda match: "_" + match[1].lower(), name)


def plain(value):
    """A value so that `10m` is `600s` and `16 MiB` is `16MiB`."""
    if isinstance(value, str):
        parts = re.findall(r"(\d+)\s*([a-zA-Z]+)", value)
        if parts and re.fullmatch(r"(\s*\d+\s*[a-zA-Z]+\s*)+", value):
            units = [unit.lower() for _, unit in parts]
            if len(parts) == 1 and units[0] in SIZES:
                return ("bytes", int(parts[0][0]) * SIZES[units[0]])
            if all(unit in UNITS for unit in units):
                return ("seconds", round(sum(int(n) * UNITS[u] for (n, _), u in zip(parts, units)), 9))
        return value
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None}
    return value


@functools.cache
def schema():
    done = systems.lares("config", "schema")
    return json.loads(done.stdout)


def resolved(node):
    for _ in range(8):
        if "$ref" in node:
            node = schema()["$defs"][node["$ref"].removeprefix("#/$defs/")]
        elif "anyOf" in node:
            node = next((branch for branch in node["anyOf"] if branch.get("type") != "null"), node)
            if "anyOf" in node:
                return node
        else:
            return node
    return node


def choices(node):
    node = resolved(node)
    if "enum" in node:
        return [value for value in node["enum"] if value is not None]
    if "oneOf" in node and all("const" in branch for branch in node["oneOf"]):
        return [branch["const"] for branch in node["oneOf"]]
    return None


def keys(node=None, prefix=()):
    """Every key of the daemons that holds a value, with its place in the schema."""
    node = resolved(node if node is not None else schema())
    found = {}
    for name, child in node.get("properties", {}).items():
        place = (*prefix, name)
        inner = resolved(child)
        named, listed = inner.get("additionalProperties"), inner.get("items")
        if inner.get("properties"):
            found |= keys(child, place)
        elif isinstance(named, dict) and resolved(named).get("properties"):
            found |= keys(named, (*place, "<name>"))
        elif isinstance(listed, dict) and resolved(listed).get("properties"):
            found |= keys(listed, (*place, "*"))
        else:
            found[".".join(place)] = child
    return found


def covered(key, table):
    return any(key == entry or key.startswith(entry + ".") for entry in table)


REFERENCE = nix.ROOT / "docs/nixos-options.md"


@functools.cache
def every_option():
    return nix.bed("options") if nix.nixpkgs()[0] else documented()


def documented():
    """The options of the reference, as far as it says: defaults on one line, and no choices."""
    options = []
    for section in REFERENCE.read_text().split("\n## ")[1:]:
        name = re.match(r"`([^`]+)`", section)[1]
        default = re.search(r"^- default: `(.*)`$", section, re.MULTILINE)
        try:
            value, is_plain = json.loads(default[1]) if default else None, default is not None
        except json.JSONDecodeError:
            value, is_plain = None, False
        options.append(
            {
                "loc": name.split("."),
                "internal": False,
                "hidden": False,
                "hasDefault": "- default:" in section,
                "plainDefault": is_plain,
                "default": value,
                "defaultText": "what the reference shows",
            }
        )
    return options


def typed():
    """Options that set keys, by key; sections and named tables are no options of their own."""
    options = {}
    for option in every_option():
        if option["internal"] or option["hidden"]:
            continue
        path = ".".join(option["loc"][2:])
        if covered(path, NO_KEY):
            continue
        options[".".join(snake(part) for part in option["loc"][2:])] = option
    return options


def check(report):
    missing = systems.binary()[1]
    if missing:
        return report.skip("parity", missing)
    evaluated = nix.nixpkgs()[0] is not None
    where = "" if evaluated else f", by {REFERENCE.name}"
    rust, options = keys(), typed()
    # `models`, `tools.servers` and the like hold named tables, `tools.policy` a list of them: what is in these is compared.
    tables = {key for key in options if any(other.startswith((f"{key}.<name>.", f"{key}.*.")) for other in options)}
    nix_keys = options.keys() - tables

    problems = [
        f"{key} is a key and no option" for key in rust if key not in nix_keys and not covered(key, NO_OPTION)
    ]
    problems += [f"{key} is an option ({'.'.join(options[key]['loc'])}) and no key" for key in nix_keys - rust.keys()]
    for entry, reason in NO_OPTION.items():
        if not any(covered(key, [entry]) for key in rust):
            problems.append(f"NO_OPTION names {entry}, which is no key ({reason})")
        problems += [f"NO_OPTION names {key}, which is an option" for key in nix_keys if covered(key, [entry])]
    present = {".".join(option["loc"][2:]) for option in every_option()}
    problems += [f"NO_KEY names {entry}, which is no option ({why})" for entry, why in NO_KEY.items() if entry not in present]
    report.result("parity/keys", problems, f"{len(rust)} keys, {len(nix_keys)} options{where}")

    problems, compared = [], 0
    for key in sorted(rust.keys() & nix_keys):
        if key in OTHER_DEFAULT:
            continue
        compared += 1
        option = options[key]
        ours = plain(rust[key].get("default"))
        if not option["plainDefault"]:
            if option["hasDefault"] and not evaluated:
                compared -= 1
            elif option["hasDefault"]:
                problems.append(f"{key} has a computed default ({option['defaultText']}) and is not in OTHER_DEFAULT")
            elif ours not in (None, ""):
                problems.append(f"{key} has no default; the daemons' is {ours!r}")
        elif plain(option["default"]) != ours and not (option["default"] is None and ours in ("", None)):
            problems.append(f"{key} defaults to {option['default']!r}; the daemons' default is {rust[key].get('default')!r}")
    problems += [f"OTHER_DEFAULT names {key}, which is no option" for key in OTHER_DEFAULT if key not in nix_keys]
    report.result("parity/defaults", problems, f"{compared} defaults{where}")
    if not evaluated:
        return report.skip("parity/choices", nix.nixpkgs()[1])

    problems = []
    for key in sorted(rust.keys() & nix_keys):
        ours, theirs = choices(rust[key]), options[key]["choices"]
        if ours is not None and sorted(ours) != sorted(map(str, theirs or [])):
            problems.append(f"{key} takes {ours}; the option takes {theirs or options[key]['type']}")
    report.result("parity/choices", problems)

    problems = []
    shown = {entry["key"]: entry["value"] for entry in json.loads(systems.lares("config", "show", "--json").stdout)}
    results, errors = systems.variations()
    if "defaults" in errors:
        problems.append(errors["defaults"])
    else:
        rendered = results["defaults"]["settings"]
        for key, ours in shown.items():
            if key in OTHER_DEFAULT | OTHER_VALUE or covered(key, NO_OPTION) or key in ("models", "coordinator.upstreams", "healer.units"):
                continue
            theirs = systems.at(rendered, key)
            if plain(theirs) != plain(ours) and not (theirs is None and ours in ("", None)):
                problems.append(f"{key} is rendered as {theirs!r}; the daemons' default is {ours!r}")
    report.result("parity/rendered", problems, f"{len(shown)} values")
