//! What can be typed after `lares tools`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use clap_complete::engine::ArgValueCandidates;

use crate::tools::complete;
use crate::tools::eval::EvalArgs;
use crate::tools::vet::VetArgs;

#[derive(Debug, Subcommand)]
pub enum Tools {
    /// Tools, whether they may be used, and how calls of them went
    #[command(after_help = "\
Examples:
  lares tools list --server git
  lares tools list --state quarantined            what waits for `lares tools approve`
  lares tools list --json | jq -r '.tools[] | select(.statistics.failures > 0).id'")]
    List(ListTools),
    /// Find a tool by saying what is needed
    #[command(after_help = "\
Examples:
  lares tools search what changed in this repository last week
  lares tools search --server github 'open a pull request' -n 3

Best first. WHY tells the words that were found and how near the meaning is, from 0 to 1.")]
    Search(SearchTools),
    /// One tool: what it does, its parameters, what was found in its definition, its versions
    #[command(after_help = "Example:\n  lares tools show git__git_status")]
    Show {
        /// Its id, SERVER__TOOL
        #[arg(add = ArgValueCandidates::new(complete::tools))]
        tool: String,
    },
    /// Call a tool and print its result
    #[command(after_help = "\
Examples:
  lares tools call time__get_current_time timezone=Europe/Berlin
  lares tools call git__git_log repo_path=. max_count=5
  lares tools call fs__edit_file path=a.txt edits:='[{\"oldText\": \"a\", \"newText\": \"b\"}]'
  lares tools call memory__create_entities --arguments @entities.json
  echo '{\"path\": \"/tmp\"}' | lares tools call fs__list_directory --arguments -

NAME=VALUE takes its type from the tool's schema: numbers, true and false, text; a list takes one value each time it is
named, or JSON; `a.b=1` sets a field of an object. NAME:=JSON is JSON whatever the schema says. Pairs go over what
--arguments gives.

Exit code 0 means that the tool did it; 1 that it says it failed, or was not called.")]
    Call(CallTool),
    /// Tool servers: how they are, where they were found, how they are reached
    #[command(
        after_help = "Examples:\n  lares tools servers\n  lares tools servers git          one, with all that is known"
    )]
    Servers(ListServers),
    /// Let a tool or a tool server be used, after a look at it
    #[command(after_help = "\
Examples:
  lares tools approve git__git_log            shows it, asks, approves exactly what was shown
  lares tools approve notes                   a server that was found: from now on it is started or connected to
  lares tools approve notes --tools           … and its tools in which nothing suspicious was found
  lares tools approve notes --network host    … and it may use the network, as what npx and uvx start has to
  lares tools approve notes --read ~/notes --write ~/notes/inbox
  lares tools approve git__git_log --hash 3fa9c1d2 --yes       for scripts: only if it is still that definition

A name with `__` in it is a tool's, any other a server's. Of --hash, 8 digits are enough. --network, --read and --write
say together all that a server's program may touch; said again, they take the place of what was said before.")]
    Approve(ApproveTools),
    /// Put a tool aside: nobody may call it until it is approved again
    #[command(after_help = "\
Examples:
  lares tools quarantine fs__write_file --reason 'writes outside the project'
  lares tools quarantine fs__write_file --block          for good: also when its definition changes")]
    Quarantine(QuarantineTool),
    /// Say that a tool server is not wanted: it is ended and its tools are not offered
    #[command(after_help = "Example:\n  lares tools reject notes\n\n`lares tools approve notes` takes it back.")]
    Reject(RejectServer),
    /// Look for tool servers and tools now
    #[command(after_help = "\
Examples:
  lares tools discover
  lares tools discover --dry-run          what would be found; nothing is started, no daemon is needed")]
    Discover(DiscoverTools),
    /// What is wrong with definitions in a file: poisoned texts, hidden characters, look-alike names
    #[command(after_help = "\
Examples:
  lares tools vet definitions.jsonl
  cat crates/tools/tests/corpus/*.jsonl | lares tools vet -          labelled lines: recall and false positives

Exit code 1 means that something was found in a definition without a label.")]
    Vet(VetArgs),
    /// How well tools are found, measured on questions with known answers
    #[command(after_help = "\
Examples:
  lares tools eval --tools tools.jsonl --queries queries.jsonl
  lares tools eval --tools tools.jsonl --queries queries.jsonl --mode hybrid --baseline | jq .hybrid

A line of tools.jsonl:    {\"id\": \"git__log\", \"server\": \"git\", \"name\": \"log\", \"description\": \"Shows commits\", \"input_schema\": {}}
A line of queries.jsonl:  {\"query\": \"what changed last week\", \"relevant\": [\"git__log\"]}

Needs no daemon; the embedding model must have been pulled. Prints JSON.")]
    Eval(EvalArgs),
    /// What changed when: servers and tools that came, went or became others, and who decided what
    #[command(after_help = "Examples:\n  lares tools changes -n 100\n  lares tools changes --server git")]
    Changes(ListChanges),
    /// Tools by state, servers by health, calls and searches with their times
    Statistics,
}

#[derive(Debug, Args)]
pub struct ListTools {
    /// Only tools of this server
    #[arg(long, add = ArgValueCandidates::new(complete::servers))]
    pub server: Option<String>,
    /// Only tools in this state
    #[arg(long, value_parser = ["approved", "quarantined", "blocked"])]
    pub state: Option<String>,
    /// Only tools with this tag
    #[arg(long)]
    pub tag: Option<String>,
    /// Also tools that their server lists no more
    #[arg(long)]
    pub gone: bool,
    /// Only the ids, one a line
    #[arg(long)]
    pub ids: bool,
}

#[derive(Debug, Args)]
pub struct SearchTools {
    /// What is needed, in words
    #[arg(required = true, num_args = 1.., value_name = "WORDS")]
    pub query: Vec<String>,
    /// How many tools, at most 100 [default: tools.search.limit]
    #[arg(short = 'n', long, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub limit: Option<u32>,
    /// Only tools of this server
    #[arg(long, add = ArgValueCandidates::new(complete::servers))]
    pub server: Option<String>,
    /// Only tools with this tag
    #[arg(long)]
    pub tag: Option<String>,
}

#[derive(Debug, Args)]
pub struct CallTool {
    /// Its id, SERVER__TOOL
    #[arg(add = ArgValueCandidates::new(complete::tools))]
    pub tool: String,
    /// Arguments, as NAME=VALUE or NAME:=JSON
    #[arg(value_name = "NAME=VALUE", add = ArgValueCandidates::new(complete::parameters))]
    pub pairs: Vec<String>,
    /// All arguments as a JSON object, from a file with @FILE, from standard input with -
    #[arg(long, value_name = "JSON|@FILE|-", allow_hyphen_values = true)]
    pub arguments: Option<String>,
    /// Do not ask where the policy wants a person's consent: you give it
    #[arg(short, long)]
    pub yes: bool,
    /// Print the arguments as they would be sent, and call nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct ListServers {
    /// Only this one, with all that is known of it
    #[arg(add = ArgValueCandidates::new(complete::servers), conflicts_with = "names")]
    pub server: Option<String>,
    /// Only the names, one a line
    #[arg(long)]
    pub names: bool,
}

#[derive(Debug, Args)]
pub struct ApproveTools {
    /// A tool (SERVER__TOOL) or a server
    #[arg(value_name = "TOOL|SERVER", add = ArgValueCandidates::new(complete::waiting))]
    pub name: String,
    /// For a server: approve its tools as well, those in which nothing suspicious was found
    #[arg(long)]
    pub tools: bool,
    /// For a server that is a program: TCP it may use
    #[arg(long, value_name = "MODE", value_parser = ["none", "host"])]
    pub network: Option<String>,
    /// For a server that is a program: a path it may read besides the system's own; may be given more than once
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub read: Vec<PathBuf>,
    /// For a server that is a program: a path it may write; may be given more than once
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub write: Vec<PathBuf>,
    /// Only if its hash (of a server: its fingerprint) is this, or begins with it
    #[arg(long, value_name = "HASH")]
    pub hash: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Show what would be approved, and approve nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct QuarantineTool {
    /// Its id, SERVER__TOOL
    #[arg(add = ArgValueCandidates::new(complete::tools))]
    pub tool: String,
    /// Why, for whoever wonders later
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub reason: String,
    /// For good: it is not looked at again when its definition changes
    #[arg(long)]
    pub block: bool,
    /// Say what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct RejectServer {
    /// Its name
    #[arg(add = ArgValueCandidates::new(complete::servers))]
    pub server: String,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Say what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct DiscoverTools {
    /// Look from here, without the daemon: nothing found is started, approved or written down
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct ListChanges {
    /// How many, at most 1000
    #[arg(short = 'n', long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// Only of this server; of the changes that are looked through
    #[arg(long, add = ArgValueCandidates::new(complete::servers))]
    pub server: Option<String>,
}

/// `lares tools` without a command says what there is, as `lares heal` does.
pub const EXAMPLES: &str = "\
Examples:
  lares tools search read a file
  lares tools show fs__read_text_file
  lares tools call fs__read_text_file path=README.md
  lares tools list --state quarantined
  lares tools approve fs

The door for MCP clients is http://127.0.0.1:8091/mcp; docs/tools.md says how each client is told.";
