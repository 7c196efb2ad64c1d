//! What can be typed: every command, its flags, its help with examples.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use uuid::Uuid;

pub mod tools;

/// Exit codes, for people who call `lares` from scripts.
pub mod exit {
    /// It worked; a task that was waited for succeeded.
    pub const OK: u8 = 0;
    /// It did not work; the message says why.
    pub const FAILURE: u8 = 1;
    /// A task that was waited for ended without success.
    pub const TASK_FAILED: u8 = 3;
    /// The daemon that is needed does not answer.
    pub const UNREACHABLE: u8 = 4;
    /// The key is missing, unknown, or not allowed to do this.
    pub const DENIED: u8 = 5;
    /// The configuration is wrong (`EX_CONFIG`, which systemd knows).
    pub const CONFIG: u8 = 78;
}

const EXIT_CODES: &str = "\
Exit codes:
  0  it worked; a task that was waited for succeeded
  1  it did not work; the message says why
  2  the command line is wrong
  3  a task that was waited for ended without success
  4  the daemon that is needed does not answer
  5  the key is missing, unknown, or not allowed to do this
  78 the configuration is wrong

Environment:
  LARES_CONFIG                   the configuration file
  LARES_API_KEY_FILE             the key to show to the daemons
  LARES_<SECTION>__<KEY>=VALUE   any key of the configuration, for example LARES_RALPH__WORKERS=2";

const HEAL_EXAMPLES: &str = "\
Examples:
  lares heal                         the units that are watched, and what is done about them
  lares heal nginx                   look at it now, heal it if something is wrong, tell how it goes
  lares heal dry-run nginx           what would be done, and why
  lares heal pause nginx --for 1h --reason 'new version'

Exit code 0 means that the unit is well, or healed; 1 that it is not: a person is needed, or --timeout is over.";

/// Self-healing home for local AI coding agents.
#[derive(Debug, Parser)]
#[command(name = "lares", version, after_long_help = EXIT_CODES, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Configuration file (TOML) [default: ~/.config/lares/config.toml, then /etc/lares/config.toml, where there is one]
    #[arg(long, global = true, env = "LARES_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one key of the configuration, over file and environment; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
    /// Directory for everything Lares writes; short for --set state_dir=DIR
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Print JSON instead of text for people
    #[arg(long, global = true)]
    pub json: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, for example ralph.workers=2")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole stack on this machine, in the foreground
    #[command(after_help = "\
Examples:
  lares up                                              with a model that fits this machine
  lares up --set models.coder.source=qwen2.5-coder-1.5b-instruct
  lares --state-dir /srv/lares up

Ctrl-C stops everything. The first start fetches a model and, where there is none, builds llama-server.")]
    Up(Up),
    /// Run one daemon, as systemd does
    ///
    /// It says over systemd's notification socket when it is ready and that it is alive (`Type=notify`,
    /// `WatchdogSec=`).
    #[command(subcommand)]
    Serve(Daemon),
    /// Prepare what the daemons need: tables in PostgreSQL, the first keys. Changes nothing that is there
    #[command(after_help = "\
Example:
  lares setup           makes keys/admin.key, keys/agent.key and keys/llama.key in the state directory

`lares up` does this by itself; under systemd a unit does it before the daemons start.")]
    Setup,
    /// What runs where, under `lares up` or under systemd
    #[command(
        after_help = "Examples:\n  lares status\n  lares status --json | jq '.units[] | select(.state != \"active\")'"
    )]
    Status,
    /// Units of a running `lares up`: restart one, read its log
    #[command(subcommand)]
    Unit(Unit),
    /// Coding tasks: submit one, watch it, merge its result
    #[command(subcommand)]
    Task(Task),
    /// The healer: have a unit healed, leave one alone, see what is watched
    #[command(after_help = HEAL_EXAMPLES)]
    Heal(Heal),
    /// Incidents: what went wrong, what was done about it, and what waits for an answer
    #[command(subcommand)]
    Incident(Incident),
    /// Tools: find one by saying what is needed, look at it, call it, decide what may be used
    #[command(subcommand, after_help = tools::EXAMPLES)]
    Tools(tools::Tools),
    /// API keys
    #[command(subcommand)]
    Key(Key),
    /// Model files
    #[command(subcommand)]
    Model(Model),
    /// The `llama-server` binary
    #[command(subcommand)]
    Engine(Engine),
    /// The configuration: check it, show it, its schema
    #[command(subcommand)]
    Config(Config),
    /// Show the whole thing at work: a real model solves a small coding task
    #[command(
        after_help = "Example:\n  lares demo            everything it leaves is in the state directory it names at the end"
    )]
    Demo(Demo),
    /// Print shell completions
    #[command(after_help = "\
Examples:
  source <(lares completions bash)            in ~/.bashrc; zsh alike
  lares completions fish | source             in ~/.config/fish/config.fish

Names of tools and tool servers are completed, too, while the tools daemon runs.")]
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a directory
    Man {
        /// The directory; it is made when it is not there
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct Up {
    /// Say what would be started, and with what memory, then stop
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Clone, Subcommand)]
pub enum Daemon {
    /// The OpenAI-compatible door
    Coordinator,
    /// The loop that works on tasks
    Ralph,
    /// The registry of MCP tools and the door to them
    Tools,
    /// What keeps units of systemd running
    Healer,
    /// The healer's root helper, for systemd to start together with its socket; not for people
    #[command(after_help = "\
It does five things for the healer that take root, on units that the configuration names only: find
who listens on a port, end a process that an earlier run of a unit left, raise a memory limit, move a
unit to another port, and switch back to an earlier system generation. polkit says who may ask
(actions org.lares.healer.*), every call is written to the journal, and it ends when nobody has asked
for 30 s.")]
    Helper,
    /// The llama-server of one configured model, with the flags that its binary understands
    #[command(after_help = "\
The model's file must be there (`lares model pull NAME` fetches it) and its port must be set. The key that llama-server
asks for is read from keys/llama.key in the state directory, or from the systemd credential `llama.key`.")]
    Llama {
        /// The model's name in the configuration
        model: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum Unit {
    /// The same as `lares status`
    List,
    /// Start a unit that was stopped
    Start {
        /// Its name, as `lares status` shows it
        unit: String,
    },
    /// Stop a unit and leave it stopped
    Stop {
        /// Its name
        unit: String,
    },
    /// Stop a unit and start it again
    Restart {
        /// Its name
        unit: String,
    },
    /// The last lines of a unit's log
    Logs {
        /// Its name
        unit: String,
        /// How many lines
        #[arg(short = 'n', long, default_value_t = 50)]
        lines: usize,
        /// Go on with new lines until Ctrl-C
        #[arg(short, long)]
        follow: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum Task {
    /// Submit a task and watch it until it ends
    #[command(after_help = "\
Examples:
  lares task submit --check 'python3 -m unittest' 'make the tests pass'
  lares task submit --repo ~/src/app --check 'cargo test' --max-iterations 5 --detach 'fix the parser'

Exit code 0 means that the check exited 0 on the committed tree; 3 that it did not.")]
    Submit(Submit),
    /// Tasks, newest first
    List {
        /// Only those in this state
        #[arg(long)]
        state: Option<String>,
        /// How many
        #[arg(short = 'n', long, default_value_t = 20)]
        limit: u32,
    },
    /// One task with its iterations
    Show {
        /// Its id
        task: Uuid,
    },
    /// What happened, iteration by iteration
    Logs {
        /// Its id
        task: Uuid,
        /// Go on until the task ends
        #[arg(short, long)]
        follow: bool,
    },
    /// The change a task has made so far
    Diff {
        /// Its id
        task: Uuid,
    },
    /// Stop a task; its branch stays
    Cancel {
        /// Its id
        task: Uuid,
    },
    /// Release the result of a task that waits for approval
    Approve {
        /// Its id
        task: Uuid,
    },
    /// Merge a task's commit into the branch it started from
    Merge {
        /// Its id
        task: Uuid,
    },
}

#[derive(Debug, Args)]
pub struct Submit {
    /// What to do, in words
    pub prompt: String,
    /// The git repository
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub repo: PathBuf,
    /// The command that decides: the task is done when it exits 0
    #[arg(long, value_name = "COMMAND")]
    pub check: String,
    /// The agent that does it [default: builtin]
    #[arg(long)]
    pub backend: Option<String>,
    /// The model to ask, by a name that the coordinator knows
    #[arg(long)]
    pub model: Option<String>,
    /// Most iterations [default: ralph.max_iterations]
    #[arg(long, value_name = "N")]
    pub max_iterations: Option<u32>,
    /// Longest the task may run, such as 30m [default: ralph.timeout]
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<String>,
    /// Wait for `lares task approve` before the result is released
    #[arg(long)]
    pub require_approval: bool,
    /// Do not wait: print the id and return
    #[arg(short, long)]
    pub detach: bool,
}

#[derive(Debug, Args)]
pub struct Heal {
    #[command(subcommand)]
    pub command: Option<HealCommand>,
    /// The unit to heal; `.service` may be left out. Without it: what is watched
    pub unit: Option<String>,
    /// Do not wait: print what is wrong and what will be done, and return
    #[arg(short, long, requires = "unit")]
    pub detach: bool,
    /// Longest to wait for the end, such as 15m; the healer goes on by itself
    #[arg(long, default_value = "15m", value_name = "DURATION")]
    pub timeout: String,
}

impl Heal {
    /// Whether a unit is given and a command as well.
    pub const fn is_ambiguous(&self) -> bool {
        self.unit.is_some() && self.command.is_some()
    }
}

#[derive(Debug, Subcommand)]
pub enum HealCommand {
    /// Leave a unit alone: nothing is done about it, whatever happens
    #[command(after_help = "\
Examples:
  lares heal pause nginx --for 1h --reason 'new version'
  lares heal pause nginx                                     until `lares heal resume nginx`")]
    Pause(Pause),
    /// End a pause
    #[command(after_help = "Example:\n  lares heal resume nginx")]
    Resume {
        /// The unit; `.service` may be left out
        unit: String,
    },
    /// Say of each line on standard input which known failure it shows, one JSON object a line
    #[command(after_help = "\
Examples:
  journalctl -u nginx -o cat | lares heal classify | jq 'select(.pattern)'
  journalctl -f -o json | lares heal classify --journal      knows lines of the kernel and systemd from forged ones
  lares heal classify --patterns mine.toml < app.log
  lares heal classify --tsv lines.tsv                        how well the patterns do on labelled lines

Each object has: line, pattern (or null), rule, evidence, remedy. With --tsv, the table has tab-separated columns
pattern, software, line, source; `neg:PATTERN` marks a line that looks like the pattern and is not; the exit code is 1
when a line was not recognised as what it is. docs/healing.md says how patterns are written.")]
    Classify(Classify),
    /// What the healer would do about a unit of systemd now, and why; nothing is done
    #[command(after_help = "\
Examples:
  lares heal dry-run nginx
  sudo lares heal dry-run --offline app.service --may postgresql.service

The healer is asked where it runs and watches the unit. Without it this command looks by itself: the unit counts as one
that may be acted on, others only when the configuration or --may names them. Root sees more then: journals and
processes of other users.")]
    DryRun(DryRun),
}

#[derive(Debug, Args)]
pub struct DryRun {
    /// The unit; `.service` may be left out
    pub unit: String,
    /// Do not ask the healer, look from here
    #[arg(long)]
    pub offline: bool,
    /// Another unit that may be acted on, such as a database it needs; may be repeated. Implies --offline
    #[arg(long, value_name = "UNIT")]
    pub may: Vec<String>,
    /// Take a unit that somebody stopped as one that should run. Implies --offline
    #[arg(long)]
    pub keep_running: bool,
}

#[derive(Debug, Args)]
pub struct Pause {
    /// The unit; `.service` may be left out
    pub unit: String,
    /// For how long, such as 1h; without it until `lares heal resume`
    #[arg(long = "for", value_name = "DURATION")]
    pub lasting: Option<String>,
    /// Why, for whoever wonders later
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Incident {
    /// Incidents, newest first
    #[command(after_help = "\
Examples:
  lares incident list --open
  lares incident list --unit nginx -n 100
  lares incident list --needs-person --json | jq -r '.incidents[].unit'")]
    List(IncidentFilter),
    /// One incident with its timeline: what was seen, considered, done, and how it was verified
    #[command(after_help = "\
Examples:
  lares incident show 0199a3c4-5d6e-7f80-9123-456789abcdef
  lares incident show 456789abcdef              the beginning or the end of the id, 8 digits or more

The journal has the same story: `journalctl LARES_INCIDENT=ID`.")]
    Show {
        /// Its id, or 8 or more digits of its beginning or its end
        incident: String,
    },
    /// Agree to what an incident asks, or allow what it proposes
    #[command(after_help = "\
Example:
  lares incident approve 456789abcdef

Going back to the previous system generation is always asked for. For an incident that was handed over, this means another
try. A remedy that is proposed, because it helped against the same unknown failure before, is used without asking from
now on; that works after the incident has ended, too.")]
    Approve {
        /// Its id, or 8 or more digits of its beginning or its end
        incident: String,
    },
    /// Do not agree to what an incident asks; takes back what was allowed
    #[command(after_help = "Example:\n  lares incident reject 456789abcdef")]
    Reject {
        /// Its id, or 8 or more digits of its beginning or its end
        incident: String,
    },
}

#[derive(Debug, Args)]
pub struct IncidentFilter {
    /// Only those that have not ended
    #[arg(long)]
    pub open: bool,
    /// Only those of this unit; `.service` may be left out
    #[arg(long)]
    pub unit: Option<String>,
    /// Only those that a person was told of
    #[arg(long)]
    pub needs_person: bool,
    /// Only those in this state
    #[arg(long, value_parser = ["open", "held", "asking", "healing", "verifying", "closed"])]
    pub state: Option<String>,
    /// How many, at most 1000
    #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
}

#[derive(Debug, Args)]
pub struct Classify {
    /// Patterns (TOML) that add to those of Lares, or change them
    #[arg(long, value_name = "FILE")]
    pub patterns: Option<PathBuf>,
    /// Standard input is the output of `journalctl -o json`
    #[arg(long, conflicts_with = "tsv")]
    pub journal: bool,
    /// Measure precision and recall on a table of labelled lines instead
    #[arg(long, value_name = "FILE")]
    pub tsv: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Key {
    /// Make a key and print it: this is the only time it is shown
    #[command(
        after_help = "Examples:\n  lares key create laptop --role client\n  lares key create ci --role operator --file ci.key"
    )]
    Create {
        /// What it is for
        name: String,
        /// What it may do: viewer (read), client (use models), operator (tasks), admin (keys)
        #[arg(long, default_value = "client")]
        role: String,
        /// Write it to this file (mode 0600) instead of printing it
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Keys, without their secrets
    List,
    /// Make a key useless, at once and for good
    Revoke {
        /// Its id or name
        key: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum Model {
    /// The catalog, and which models are on this machine
    List,
    /// Fetch a model, verify its hash, put it in place
    #[command(
        after_help = "Examples:\n  lares model pull qwen2.5-coder-0.5b-instruct\n  lares model pull coder            a model of the configuration"
    )]
    Pull {
        /// Its name in the configuration, or in the catalog
        name: String,
    },
    /// What a GGUF file says of itself, and the memory it would take
    Show {
        /// A catalog name or a file
        model: String,
        /// Tokens of context for each request
        #[arg(long, default_value_t = 8192)]
        context_size: u32,
        /// Requests at the same time
        #[arg(long, default_value_t = 1)]
        slots: u32,
    },
}

#[derive(Debug, Subcommand)]
pub enum Engine {
    /// Build llama-server for this machine's CPU (4 to 8 minutes on two cores)
    Install,
    /// Which llama-server is used, its version, and whether it can serve what the configuration wants
    Show,
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Check a configuration file; exit code 78 when it is wrong
    Check {
        /// The file [default: the one that would be used]
        file: Option<PathBuf>,
    },
    /// Print the JSON Schema of the configuration file
    Schema,
    /// Effective values, each with where it came from; secrets masked
    Show {
        /// Only keys that are not defaults
        #[arg(long)]
        changed: bool,
    },
}

#[derive(Debug, Args)]
pub struct Demo {
    /// Catalog name of the model
    #[arg(long)]
    pub model: Option<String>,
    /// Solve the task this many times and print how many iterations each took
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub runs: u32,
    /// Most iterations a run
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub max_iterations: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_unit_is_healed_by_its_name_and_commands_are_not_units() {
        let heal = |arguments: &[&str]| match Cli::try_parse_from([&["lares", "heal"], arguments].concat()) {
            Ok(Cli { command: Command::Heal(heal), .. }) => Ok(heal),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.kind()),
        };
        let unit = heal(&["nginx", "--detach", "--json"]).expect("a unit");
        assert_eq!((unit.unit.as_deref(), unit.detach, unit.command.is_none()), (Some("nginx"), true, true));
        let none = heal(&[]).expect("neither");
        assert_eq!((none.unit, none.command.is_none()), (None, true));
        for arguments in [&["--json", "dry-run", "nginx"][..], &["dry-run", "--json", "nginx"]] {
            let dry = heal(arguments).expect("a command");
            assert!(matches!(dry.command, Some(HealCommand::DryRun(_))), "{dry:?}");
        }
        let pause = heal(&["pause", "nginx", "--for", "1h", "--reason", "new"]).expect("a pause").command;
        let Some(HealCommand::Pause(pause)) = pause else { panic!("{pause:?}") };
        assert_eq!(
            (pause.unit.as_str(), pause.lasting.as_deref(), pause.reason.as_deref()),
            ("nginx", Some("1h"), Some("new"))
        );
        assert!(heal(&["nginx", "dry-run"]).is_err());
        // This one is refused by what carries it out: clap would refuse global flags before a command as well.
        assert!(heal(&["nginx", "dry-run", "nginx"]).is_ok_and(|heal| heal.is_ambiguous()));
        assert!(heal(&["--detach"]).is_err());
        assert!(heal(&["pause"]).is_err());
    }

    #[test]
    fn every_command_and_flag_is_described() {
        fn walk(command: &clap::Command, missing: &mut Vec<String>) {
            for sub in command.get_subcommands() {
                if sub.get_about().is_none() {
                    missing.push(sub.get_name().to_owned());
                }
                walk(sub, missing);
            }
            let undescribed = command.get_arguments().filter(|a| a.get_help().is_none() && a.get_id() != "help");
            missing.extend(undescribed.map(|a| format!("{} {}", command.get_name(), a.get_id())));
        }
        let mut missing = Vec::new();
        walk(&Cli::command(), &mut missing);
        assert_eq!(missing, Vec::<String>::new());
    }
}
