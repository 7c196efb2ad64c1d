"""The virtual machine tests: every node evaluates, and the script is Python that only uses what it is given."""

import ast
import builtins

from . import nix

# What the test driver gives a script besides its machines.
DRIVER = {
    "Machine",
    "driver",
    "join_all",
    "log",
    "machines",
    "os",
    "polling_condition",
    "retry",
    "serial_stdout_off",
    "serial_stdout_on",
    "start_all",
    "subtest",
    "t",
    "vlans",
}

# What a machine can do, as far as our scripts use it.
METHODS = {
    "block",
    "copy_from_host",
    "crash",
    "execute",
    "fail",
    "get_unit_info",
    "log",
    "reboot",
    "require_unit_state",
    "shutdown",
    "sleep",
    "start",
    "start_job",
    "stop_job",
    "succeed",
    "systemctl",
    "unblock",
    "wait_for_file",
    "wait_for_open_port",
    "wait_for_unit",
    "wait_until_fails",
    "wait_until_succeeds",
}


def script_problems(script, nodes):
    try:
        tree = ast.parse(script)
    except SyntaxError as error:
        return [f"the script, line {error.lineno}: {error.msg}"]
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    bound = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        if isinstance(node, ast.arg):
            bound.add(node.arg)
    machines = {name.replace("-", "_") for name in nodes}
    known = bound | machines | DRIVER | set(dir(builtins))
    problems = [f"the script, line {node.lineno}: {node.id} is not defined" for node in names if node.id not in known]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in machines:
            if node.attr not in METHODS:
                problems.append(f"the script, line {node.lineno}: a machine has no {node.attr}")
    return problems


def check(report):
    trees, missing = nix.nixpkgs()
    if missing:
        return report.skip("vm", missing)
    source = f"import {nix.path(nix.BED / 'vm.nix')} {{ {trees} }}"
    for name in nix.evaluate(f"builtins.attrNames ({source})"):
        if not report.wants(f"vm/{name}"):
            continue
        try:
            test = nix.evaluate(f'({source}).{name}')
        except nix.EvaluationError as error:
            report.fail(f"vm/{name}", str(error))
            continue
        problems = [f"{system}: {text}" for system, result in test["systems"].items() for text in result["assertions"]]
        problems += script_problems(test["script"], test["machines"])
        report.result(f"vm/{name}", problems, f"{len(test['systems'])} systems" if len(test["systems"]) > 1 else "")
