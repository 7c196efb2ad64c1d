"""The flake evaluates, with the tree at hand in place of the nixpkgs that its lock file names."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile

from . import nix


def call(directory, shim, *arguments):
    command = ["nix", "--extra-experimental-features", "nix-command flakes", "flake", *arguments]
    command += ["--impure", "--no-write-lock-file", "--override-input", "nixpkgs", f"path:{shim}", f"path:{directory}"]
    environment = os.environ | {"LARES_TEST_BED": str(nix.BED)}
    for name in ("LARES_TEST_NIXPKGS", "LARES_TEST_NIXPKGS_LIB"):
        if environment.get(name):
            environment[name] = str(pathlib.Path(environment[name]).resolve())
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def error(done):
    """What went wrong, without the progress before it."""
    text = nix.clean(done.stderr)
    return [text[text.find("error:") :]] if done.returncode != 0 else []


def copy(directory):
    """The files that git knows or would add, so that build trees are not copied into the store."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=nix.ROOT,
        capture_output=True,
    )
    if listed.returncode != 0:
        return "this is no git work tree"
    for name in filter(None, listed.stdout.decode().split("\0")):
        source = nix.ROOT / name
        if source.is_file():
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return None


def lock(report):
    """The lock file names every input of the flake, with all that makes it reproducible."""
    file = nix.ROOT / "flake.lock"
    problems = []
    for name, node in json.loads(file.read_text())["nodes"].items():
        if name == "root":
            continue
        locked = node.get("locked", {})
        problems += [f"{name} has no {key}" for key in ("rev", "narHash", "lastModified", "type") if key not in locked]
    report.result("flake/lock", problems)


def check(report):
    if not (nix.ROOT / "flake.nix").is_file():
        return report.fail("flake", "there is no flake.nix")
    lock(report)
    _, missing = nix.nixpkgs()
    missing = missing or (None if shutil.which("nix") else "nix is not installed")
    if missing:
        return report.skip("flake/show", missing)
    with tempfile.TemporaryDirectory(prefix="lares-flake-") as temporary:
        shim, directory = pathlib.Path(temporary) / "nixpkgs", pathlib.Path(temporary) / "lares"
        shim.mkdir()
        shutil.copy(nix.BED / "shim-flake.nix", shim / "flake.nix")
        problem = copy(directory)
        if problem:
            return report.skip("flake/show", problem)
        shown = call(directory, shim, "show", "--json")
        report.result("flake/show", error(shown))
        if shown.returncode == 0:
            outputs = json.loads(shown.stdout)
            wanted = ["apps", "checks", "devShells", "formatter", "nixosConfigurations", "nixosModules", "overlays", "packages"]
            report.result("flake/outputs", [f"there is no output `{name}`" for name in wanted if name not in outputs])
        checked = call(directory, shim, "check", "--no-build")
        report.result("flake/check", error(checked))
