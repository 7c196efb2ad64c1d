"""The seven real servers: how each is run, what it is asked, and how it is known that the answer is right."""

import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
LIAR = HERE / "liar.py"


class Server:
    """One real server.

    `question` is what a person would ask, `finds` the tool that answers it. A call is a tool, its arguments and what
    says whether an answer is right: `call` goes on beside faults, `lied` is of the tool whose description changes,
    `other` of a further one.
    """

    def __init__(self, name, command, question, finds, call, lied=None, other=None, **declared):
        self.name, self.command, self.question, self.finds = name, command, question, finds
        self.tool, self.arguments, self.right = call
        self.lied, self.other, self.declared = lied or call, other, declared

    def id(self, tool):
        return f"{self.name}__{tool}"

    def wrong(self, failed, text):
        """What is wrong with an answer of `call`; empty if nothing is."""
        return f"{self.name}: {text[:300]!r}" if failed or not self.right(text) else ""


def git(repository, *arguments):
    who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    subprocess.run(["git", "-C", repository, *who, *arguments], check=True, capture_output=True, text=True)


def repository(where):
    where.mkdir()
    git(where, "init", "-q", "-b", "main")
    (where / "notes.txt").write_text("first\n")
    git(where, "add", "-A")
    git(where, "commit", "-q", "-m", "Light the lamp")
    (where / "notes.txt").write_text("second\n")
    return where


class Parts:
    """Where the servers were installed."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory).resolve() if directory else None
        self.node = self.find_node()
        self.liar = self.interpreter()

    def find_node(self):
        own = self.directory / "node_modules/node/bin/node" if self.directory else None
        found = str(own) if own and os.access(own, os.X_OK) else shutil.which("node")
        return os.path.realpath(found) if found else None

    @staticmethod
    def interpreter():
        """A Python for the liar and the directories it needs besides the system's: the system's own needs none."""
        if os.access("/usr/bin/python3", os.X_OK):
            return "/usr/bin/python3", []
        return os.path.realpath(sys.executable), [sys.base_prefix]

    def python(self, package):
        """Command and readable paths of a server of PyPI, or why there is none."""
        if self.directory is None:
            return None, "LARES_TEST_MCP is not set; `make tools-real` sets it"
        program = self.directory / "bin" / package
        if not program.exists():
            return None, f"there is no {program}; `make tools-servers` installs it"
        ask = [self.directory / "bin/python", "-c", "import sys; print(sys.base_prefix)"]
        base = subprocess.run(ask, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
        own = [self.directory / part for part in ("bin", "lib", "lib64", "pyvenv.cfg")]
        return [str(program)], [*map(str, own), base]

    def npm(self, package):
        if self.directory is None:
            return None, "LARES_TEST_MCP is not set; `make tools-real` sets it"
        program = self.directory / "node_modules/@modelcontextprotocol" / package / "dist/index.js"
        if not program.exists():
            return None, f"there is no {program}; `make tools-servers` installs it"
        if self.node is None:
            return None, "there is no node"
        return [self.node, str(program)], [str(self.directory / "node_modules"), os.path.dirname(self.node)]


def seven(parts, place, page):
    """The servers that are there, and why others are not. `place` gives directories, `page` serves a page."""
    repo = repository(place("git") / "repository")
    files = place("files")
    (files / "letter.txt").write_text("Dear keeper, the oil arrives on Thursday.\n")
    graph = place("memory")
    now = {"source_timezone": "Europe/Warsaw", "time": "16:30", "target_timezone": "Asia/Tokyo"}
    entity = {"entities": [{"name": "Ann", "entityType": "person", "observations": ["keeps the lighthouse"]}]}
    thought = {"thought": "Count the lamps.", "nextThoughtNeeded": True, "thoughtNumber": 1, "totalThoughts": 3}

    def tokyo(text):
        # Winter or summer, one of both.
        return any(f"T{hour}:30:00+09:00" in text for hour in ("23", "00"))

    made = [
        ("mcp-server-time", lambda command, read: Server(
            "time", command, "When it is half past four in Warsaw, how late is it in Tokyo?", "convert_time",
            ("convert_time", now, tokyo),
            lied=("get_current_time", {"timezone": "Asia/Tokyo"}, lambda text: "+09:00" in text),
            other=("convert_time", now, tokyo), read=read)),
        ("mcp-server-git", lambda command, read: Server(
            "git", command, "Show me the history of the repository, who changed what and when", "git_log",
            ("git_log", {"repo_path": str(repo), "max_count": 1},
             lambda text: "Light the lamp" in text and "Ann" in text),
            lied=("git_show", {"repo_path": str(repo), "revision": "HEAD"}, lambda text: "first" in text),
            other=("git_status", {"repo_path": str(repo)}, lambda text: "modified" in text and "notes.txt" in text),
            read=[*read, str(repo)])),
        ("mcp-server-fetch", lambda command, read: Server(
            "fetch", [*command, "--allow-private-ips"], "Download a web page and give me its text", "fetch",
            ("fetch", {"url": page.url("/page.html")}, lambda text: "lit in 1871" in text),
            # With a Node on its path it runs that, and `npm install`, in every call.
            read=read, network="host", env={"PATH": "/var/empty"})),
        ("server-everything", lambda command, read: Server(
            "everything", command, "How much is seventeen plus twenty-five? Add two numbers", "get-sum",
            ("echo", {"message": "ship ahoy"}, lambda text: "ship ahoy" in text),
            lied=("get-annotated-message", {"messageType": "success"}, lambda text: "success" in text.lower()),
            other=("get-sum", {"a": 17, "b": 25}, lambda text: "42" in text), read=read)),
        ("server-filesystem", lambda command, read: Server(
            "filesystem", [*command, str(files)], "Put this text into a new document on the disk", "write_file",
            ("read_text_file", {"path": str(files / "letter.txt")}, lambda text: "oil arrives on Thursday" in text),
            lied=("directory_tree", {"path": str(files)}, lambda text: "letter.txt" in text),
            other=("list_directory", {"path": str(files)}, lambda text: "letter.txt" in text),
            read=[*read, str(files)])),
        ("server-memory", lambda command, read: Server(
            "memory", command, "Remember new facts about somebody I already told you about", "add_observations",
            ("search_nodes", {"query": "lighthouse"}, lambda text: "Ann" in text),
            lied=("read_graph", {}, lambda text: "Ann" in text),
            other=("create_entities", entity, lambda text: "Ann" in text or "[]" in text),
            read=read, write=[str(graph)], env={"MEMORY_FILE_PATH": str(graph / "memory.jsonl")})),
        ("server-sequential-thinking", lambda command, read: Server(
            "thinking", command, "Work through a hard problem step by step and revise earlier conclusions",
            "sequentialthinking",
            ("sequentialthinking", thought, lambda text: '"totalThoughts": 3' in text), read=read)),
    ]
    there, missing = [], {}
    for package, make in made:
        command, read = (parts.npm if package.startswith("server-") else parts.python)(package)
        server = make(command or [], read if command else [])
        if command:
            there.append(server)
        else:
            missing[server.name] = read
    return there, missing


def declared(server, parts, lies, **more):
    """A server as the configuration declares it, behind the liar, which reads what to do in `lies`."""
    python, base = parts.liar
    command = [python, "-I", "-S", str(LIAR), str(lies), *server.command]
    read = [*server.declared.get("read", []), *base, str(LIAR), str(lies)]
    return {"trusted": True, **server.declared, "command": command, "read": read, **more}
