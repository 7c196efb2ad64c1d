"""The Nix files themselves: they parse and are formatted."""

import shutil
import subprocess

from . import nix


def files():
    skipped = {".git", "target", ".direnv", "result"}
    found = []
    for path in nix.ROOT.rglob("*.nix"):
        if not skipped.intersection(path.relative_to(nix.ROOT).parts):
            found.append(path)
    return sorted(found)


def parse(report):
    if not nix.installed():
        return report.skip("parse", "nix-instantiate is not installed")
    every = files()
    problems = []
    for file in every:
        done = subprocess.run(["nix-instantiate", "--parse", str(file)], capture_output=True, text=True)
        if done.returncode != 0:
            problems.append(f"{file.relative_to(nix.ROOT)}: {nix.clean(done.stderr)}")
    report.result("parse", problems, f"{len(every)} files")


def formatted(report):
    if shutil.which("nixfmt") is None:
        return report.skip("format", "nixfmt is not installed")
    done = subprocess.run(["nixfmt", "--check", *map(str, files())], capture_output=True, text=True)
    problems = (done.stdout + done.stderr).strip().splitlines() if done.returncode != 0 else []
    report.result("format", problems or (["nixfmt --check failed"] if done.returncode else []))


def linted(report):
    """Nothing unused, and no `with lib;` over a whole file, which hides where names come from."""
    problems = []
    for file in files():
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if line.startswith("with "):
                problems.append(f"{file.relative_to(nix.ROOT)}:{number}: {line}")
            if len(line) != len(line.rstrip()) or "\t" in line:
                problems.append(f"{file.relative_to(nix.ROOT)}:{number}: white space at the end, or a tab")
    report.result("tidy", problems)
    if shutil.which("deadnix") is None:
        return report.skip("deadnix", "deadnix is not installed")
    done = subprocess.run(
        ["deadnix", "--fail", "--no-lambda-pattern-names", *map(str, files())], capture_output=True, text=True
    )
    report.result("deadnix", [nix.clean(done.stdout + done.stderr)] if done.returncode != 0 else [])
