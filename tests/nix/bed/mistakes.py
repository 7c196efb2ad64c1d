"""Wrong use ends with a message that says what to do. That the guide shows the same message is for guide.py to see."""

import concurrent.futures

from . import nix, systems, toml


def words(text):
    """Text without its line breaks and indentation, which are the terminal's."""
    return " ".join(text.split())


def message(name):
    """What Nix says when the system of this mistake is evaluated; None when it evaluates."""
    try:
        nix.bed("mistakes." + toml.string(name))
    except nix.EvaluationError as error:
        return str(error)
    return None


def check(report):
    _, missing = nix.nixpkgs()
    if missing:
        return report.skip("mistake", missing)
    texts = nix.bed("mistakeTexts")
    with concurrent.futures.ThreadPoolExecutor(systems.PROCESSES) as pool:
        messages = dict(zip(texts, pool.map(message, texts)))
    for name, expected in texts.items():
        said = messages[name]
        if said is None:
            report.fail(f"mistake/{name}", "evaluates without an error")
        elif words(expected["message"]) not in words(said):
            report.fail(f"mistake/{name}", f"expected `{words(expected['message'])}`, Nix says:\n{said}")
        else:
            report.ok(f"mistake/{name}")
