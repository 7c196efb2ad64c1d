"""What the guide shows is what Nix and the modules take and say."""

import pathlib
import re
import subprocess
import tempfile

from . import nix
from .mistakes import words

FILE = nix.ROOT / "docs/nixos.md"
CODE = re.compile(r"^```nix\n(.*?)^```", re.MULTILINE | re.DOTALL)
MISTAKES = re.compile(r"^## Mistakes.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def module(text):
    """A snippet as a module: most are lines of one."""
    if text.lstrip().startswith(("{", "let")):
        return None
    return "{ config, lib, pkgs, ... }:\n{\n" + text + "}\n"


def check(report):
    if not nix.installed():
        return report.skip("guide", "nix-instantiate is not installed")
    guide = FILE.read_text()
    with tempfile.TemporaryDirectory(prefix="lares-guide-") as temporary:
        directory, problems, modules = pathlib.Path(temporary), [], []
        # A file that a snippet names.
        (directory / "coder.toml").write_text("micro_batch_size = 256\n")
        for number, text in enumerate(CODE.findall(guide)):
            file = directory / f"{number}.nix"
            file.write_text(module(text) or text)
            done = subprocess.run(["nix-instantiate", "--parse", str(file)], capture_output=True, text=True)
            if done.returncode != 0:
                problems.append(f"{text.splitlines()[0]} …: {nix.clean(done.stderr)}")
            elif module(text) and text not in MISTAKES.search(guide)[0]:
                modules.append((text, file))
        report.result("guide/parse", problems)

        _, missing = nix.nixpkgs()
        if missing:
            return report.skip("guide/snippets", missing)
        problems = []
        for text, file in modules:
            try:
                (result,) = nix.bed("snippets", f"snippets = [ {nix.path(file)} ];")
                said = [f"assertion: {said}" for said in result["assertions"]]
            except nix.EvaluationError as error:
                said = [str(error)]
            problems += [f"{text.splitlines()[0]} …: {line}" for line in said]
        report.result("guide/snippets", problems, f"{len(modules)} snippets")
    mistakes(report, guide)


def mistakes(report, guide):
    """A section a mistake, with its title and its message, and no others."""
    section = MISTAKES.search(guide)
    if not section:
        return report.fail("guide/mistakes", f"{FILE.name} has no section on mistakes")
    blocks = dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", section[0], re.MULTILINE | re.DOTALL))
    texts = nix.bed("mistakeTexts")
    titles = {text["title"]: (name, text["message"]) for name, text in texts.items()}
    problems = [f"no section `{title}` ({name})" for title, (name, _) in titles.items() if title not in blocks]
    problems += [f"section `{title}` is no tested mistake" for title in blocks if title not in titles]
    for title, (name, expected) in titles.items():
        shown = " ".join(re.findall(r"^```text\n(.*?)^```", blocks.get(title, ""), re.MULTILINE | re.DOTALL))
        if title in blocks and words(shown) != words(expected):
            problems.append(f"section `{title}` shows `{words(shown)}`, the message of {name} is `{words(expected)}`")
    report.result("guide/mistakes", problems, f"{len(titles)} mistakes")
