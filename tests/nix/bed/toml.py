"""Writing TOML: the settings of a system as the file its daemons read."""

import re

BARE = re.compile(r"^[A-Za-z0-9_-]+$")
ESCAPES = {"\\": "\\\\", '"': '\\"', "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def string(text):
    def escape(character):
        if character in ESCAPES:
            return ESCAPES[character]
        return f"\\u{ord(character):04X}" if ord(character) < 0x20 or ord(character) == 0x7F else character

    return '"' + "".join(map(escape, text)) + '"'


def key(name):
    return name if BARE.match(name) else string(name)


def value(item):
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, str):
        return string(item)
    if isinstance(item, (int, float)):
        return repr(item)
    if isinstance(item, list):
        return "[" + ", ".join(map(value, item)) + "]"
    if isinstance(item, dict):
        return "{ " + ", ".join(f"{key(name)} = {value(inner)}" for name, inner in item.items()) + " }"
    raise TypeError(f"TOML has no value for {item!r}")


def document(table, prefix=()):
    """A table and those below it. Plain keys first: in TOML they belong to the last header above them."""
    plain = [f"{key(name)} = {value(item)}" for name, item in table.items() if not isinstance(item, dict)]
    lines = ([f"[{'.'.join(map(key, prefix))}]"] if prefix else []) + plain + [""]
    for name, item in table.items():
        if isinstance(item, dict):
            lines += document(item, (*prefix, name)).splitlines()
    return "\n".join(lines) + "\n"
