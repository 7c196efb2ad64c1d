"""Calling Nix, and where nixpkgs is."""

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[3]
BED = ROOT / "tests/nix"

# Lines of old and new Nix that say nothing about what is evaluated.
NOISE = re.compile(r"^(warning: the group 'nixbld'|trace: evaluation warning: The (args|check) argument)")


class EvaluationError(Exception):
    """What Nix said."""


def installed():
    return shutil.which("nix-instantiate") is not None


@functools.cache
def nixpkgs():
    """The trees to evaluate with, as arguments of `evaluate.nix`; or why there are none."""
    if not installed():
        return None, "nix-instantiate is not installed"
    tree = os.environ.get("LARES_TEST_NIXPKGS")
    if not tree:
        return None, "LARES_TEST_NIXPKGS is not set (a nixpkgs tree)"
    if not (pathlib.Path(tree) / "nixos/lib/eval-config.nix").is_file():
        return None, f"LARES_TEST_NIXPKGS={tree} is no nixpkgs tree"
    arguments = f"nixpkgs = {path(tree)};"
    library = os.environ.get("LARES_TEST_NIXPKGS_LIB")
    if library:
        if not (pathlib.Path(library) / "modules.nix").is_file():
            return None, f"LARES_TEST_NIXPKGS_LIB={library} is no nixpkgs lib directory"
        arguments += f" nixpkgsLib = {path(library)};"
    return arguments, None


def path(text):
    """A path as a Nix expression, whatever characters it has."""
    return f"(/. + {json.dumps(str(pathlib.Path(text).resolve()))})"


def clean(text):
    return "\n".join(line for line in text.splitlines() if not NOISE.match(line)).strip()


def evaluate(expression, *, timeout=600):
    """The value of an expression that is data. Nothing is built or written into the store."""
    command = ["nix-instantiate", "--eval", "--strict", "--json", "--readonly-mode"]
    command += ["--option", "allow-import-from-derivation", "false", "--expr", expression]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise EvaluationError(f"no result within {timeout} s") from None
    if done.returncode != 0:
        raise EvaluationError(clean(done.stderr))
    return json.loads(done.stdout)


def bed(attribute, arguments=""):
    """An attribute of `evaluate.nix`."""
    trees, _ = nixpkgs()
    return evaluate(f"(import {path(BED / 'evaluate.nix')} {{ {trees} {arguments} }}).{attribute}")
