"""The option reference, made from the modules."""

import re

from . import nix, parity

FILE = nix.ROOT / "docs/nixos-options.md"

HEAD = """\
# Options of `services.lares`

Made from the modules by `tests/nix/run --write-docs` (nixpkgs lib {release}); do not edit. [NixOS guide](nixos.md).

`<name>` stands for a name of your choice. Every key of the [configuration](configuration.md) is here under the same path,
in camelCase; what is not here yet goes into `services.lares.settings`.
"""


def code(text):
    text = text.strip()
    return f"`{text}`" if "\n" not in text else "\n\n```nix\n" + text + "\n```"


def entry(option):
    name = ".".join(option["loc"])
    # The NixOS manual makes links of these; here they are names like others.
    description = re.sub(r"\{(option|command|file|env|var)\}`", "`", option["description"].strip())
    lines = [f"## `{name}`", "", description, ""]
    lines.append(f"- type: {option['type']}" + (" (read only)" if option["readOnly"] else ""))
    if option["defaultText"]:
        text = option["defaultText"]
        lines.append(f"- default: {text if option['defaultIsProse'] else code(text)}")
    else:
        lines.append("- no default")
    if option["exampleText"]:
        lines.append(f"- example: {code(option['exampleText'])}")
    return "\n".join(lines) + "\n"


def rendered():
    release = nix.bed("libRelease")
    options = [option for option in parity.every_option() if not option["internal"] and not option["hidden"]]
    # In each section the switch that turns it on comes first.
    options.sort(key=lambda option: [(part != "enable", part) for part in option["loc"]])
    return HEAD.format(release=release) + "\n" + "\n".join(map(entry, options)), release


def write():
    text, _ = rendered()
    FILE.write_text(text)
    return FILE


def check(report):
    _, missing = nix.nixpkgs()
    if missing:
        return report.skip("reference", missing)
    options = parity.every_option()
    visible = [option for option in options if not option["internal"] and not option["hidden"]]
    problems = []
    for option in visible:
        name = ".".join(option["loc"])
        if not option["description"]:
            problems.append(f"{name} has no description")
        if option["type"] in ("unspecified", "anything"):
            problems.append(f"{name} has no type")
    report.result("described", problems, f"{len(visible)} options")

    text, release = rendered()
    if not FILE.is_file():
        return report.fail("reference", f"{FILE.name} is not there; write it with `tests/nix/run --write-docs`")
    there = FILE.read_text()
    made_with = re.search(r"\(nixpkgs lib ([^)]+)\)", there)
    if made_with and made_with[1] != release:
        # Other releases describe types in other words, and print values in other ways.
        report.skip("reference", f"was made with nixpkgs lib {made_with[1]}, here is {release}")
    elif text != there:
        report.fail("reference", f"{FILE.name} is not what the modules say; write it with `tests/nix/run --write-docs`")
    else:
        report.ok("reference")
