//! What a program needs to read before it does anything: itself, the links that lead to it, the interpreter that its
//! first line names, and what its arguments point to.
//!
//! A sandbox says no more than "no such file" to all of these. So it is looked from outside what lies out of reach, and
//! said which directory would bring it within.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;

use super::program;
use crate::port::Program;

/// Longest look; a file may lie on something that hangs.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most paths that are named.
const MOST: usize = 16;
/// Interpreters of interpreters that are followed; the kernel follows four.
const DEEPEST: usize = 4;
/// Bytes of a first line that are read; the kernel reads 256.
const LINE: u64 = 256;
/// Directories above a script that are searched for what it belongs to.
const ABOVE: usize = 4;
/// Programs whose first argument is a program again.
const INTERPRETERS: [&str; 12] =
    ["node", "nodejs", "deno", "bun", "tsx", "python", "python3", "ruby", "perl", "sh", "bash", "java"];

/// The paths that a program cannot do without, as far as can be seen, and that lie outside what it may read. Looking
/// ends after two seconds, with nothing.
pub(crate) async fn unreadable(program: &Program) -> Vec<PathBuf> {
    let program = program.clone();
    let looked = tokio::task::spawn_blocking(move || look(&program, lares_sandbox::home()));
    timeout(PATIENCE, looked).await.ok().and_then(Result::ok).unwrap_or_default()
}

fn look(program: &Program, home: Option<PathBuf>) -> Vec<PathBuf> {
    let Some((first, arguments)) = program.command.split_first() else { return Vec::new() };
    let reachable = program.read.iter().chain(&program.write);
    let reachable = reachable.filter_map(|path| lares_sandbox::expand(path, home.as_deref()));
    let mut looking = Looking {
        reachable: reachable.flat_map(|path| path.canonicalize().into_iter().chain([path])).collect(),
        missing: Vec::new(),
        search: program.env.get("PATH").cloned().unwrap_or_else(program::search_path),
        home,
    };
    if let Some(directory) = &program.directory {
        looking.path(directory);
    }
    let Some(file) = looking.look_up(first) else { return looking.finish() };
    looking.program(&file, 0);
    let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let interprets = INTERPRETERS.contains(&name) || name.starts_with("python3.");
    let mut script = interprets;
    for word in arguments.iter().filter(|word| !word.starts_with('-')) {
        let path = Path::new(word);
        if path.is_absolute() && path.exists() {
            if script && path.is_file() { looking.file(path) } else { looking.path(path) }
        }
        script = false;
    }
    looking.finish()
}

struct Looking {
    /// As they were named, and without symbolic links.
    reachable: Vec<PathBuf>,
    missing: Vec<PathBuf>,
    search: String,
    home: Option<PathBuf>,
}

impl Looking {
    /// The file of a command: a path, or a name that is looked up.
    fn look_up(&self, command: &str) -> Option<PathBuf> {
        let runs =
            |path: &PathBuf| path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
        if command.contains('/') {
            return Some(PathBuf::from(command)).filter(|path| path.is_absolute() && path.exists());
        }
        std::env::split_paths(&self.search).map(|directory| directory.join(command)).find(runs)
    }

    /// A program with its interpreter.
    fn program(&mut self, file: &Path, depth: usize) {
        self.file(file);
        if depth >= DEEPEST {
            return;
        }
        let Some((interpreter, argument)) = first_line(file) else { return };
        self.program(&interpreter, depth + 1);
        if interpreter.file_name() == Some(OsStr::new("env")) {
            // `env -S node --flag`, `env A=b node`
            let mut words = argument.split_ascii_whitespace().filter(|word| !word.starts_with('-'));
            if let Some(named) = words.find(|word| !word.contains('=')).and_then(|name| self.look_up(name)) {
                self.program(&named, depth + 1);
            }
        }
    }

    /// A file that is run, with what belongs to it.
    fn file(&mut self, file: &Path) {
        self.links_to(file);
        if let Ok(real) = file.canonicalize()
            && !self.reaches(&real)
        {
            let wanted = self.home_of(&real);
            self.miss(wanted);
        }
    }

    /// A file or directory by itself.
    fn path(&mut self, path: &Path) {
        self.links_to(path);
        if let Ok(real) = path.canonicalize()
            && !self.reaches(&real)
        {
            self.miss(real);
        }
    }

    /// The links on the way have to be there as well as where they lead.
    fn links_to(&mut self, path: &Path) {
        for (link, _) in lares_sandbox::links(path) {
            if self.reaches(&link) {
                continue;
            }
            let around = link.parent().unwrap_or(Path::new("/"));
            // One to a directory brings the directory with it when it is named itself.
            let wanted = if link.is_dir() || self.is_broad(around) { link.clone() } else { self.whole(around) };
            self.miss(wanted);
        }
    }

    fn reaches(&self, path: &Path) -> bool {
        lares_sandbox::is_system(path)
            || self.reachable.iter().chain(&self.missing).any(|known| path.starts_with(known))
    }

    fn miss(&mut self, path: PathBuf) {
        if self.missing.len() < MOST && !self.missing.contains(&path) {
            self.missing.push(path);
        }
    }

    /// Whether somebody would grant far more than a program by this directory.
    fn is_broad(&self, directory: &Path) -> bool {
        let in_home = |home: &PathBuf| {
            home.starts_with(directory) || [".local", ".config"].iter().any(|name| directory == home.join(name))
        };
        directory.parent().is_none()
            || ["/tmp", "/var", "/var/tmp", "/srv", "/mnt", "/run"].iter().any(|broad| directory == Path::new(broad))
            || self.home.as_ref().is_some_and(in_home)
    }

    /// The directory that a file is installed in with what it loads.
    fn home_of(&self, file: &Path) -> PathBuf {
        let mut walked = PathBuf::new();
        for part in file.components() {
            walked.push(part);
            if part.as_os_str() == "node_modules" {
                return walked;
            }
        }
        let Some(directory) = file.parent() else { return file.to_owned() };
        if self.is_broad(directory) {
            return file.to_owned();
        }
        let project = |above: &&Path| ["package.json", "pyproject.toml"].iter().any(|name| above.join(name).is_file());
        let narrow = directory.ancestors().take(ABOVE).take_while(|above| !self.is_broad(above));
        match narrow.into_iter().find(project) {
            Some(project) => project.to_owned(),
            None => self.whole(directory),
        }
    }

    /// `X` for `X/bin` where the libraries of what is in it are in `X/lib` (a virtual environment, an interpreter's own
    /// directory); else the directory itself.
    fn whole(&self, directory: &Path) -> PathBuf {
        let around = directory.parent().filter(|above| {
            directory.file_name().is_some_and(|name| name == "bin")
                && !self.is_broad(above)
                && ["lib", "lib64", "libexec", "pyvenv.cfg"].iter().any(|name| above.join(name).exists())
        });
        around.unwrap_or(directory).to_owned()
    }

    /// What was missed, none below another.
    fn finish(self) -> Vec<PathBuf> {
        let below = |path: &PathBuf| self.missing.iter().any(|other| other != path && path.starts_with(other));
        self.missing.iter().filter(|path| !below(path)).cloned().collect()
    }
}

/// The interpreter that a script names, and its argument.
fn first_line(file: &Path) -> Option<(PathBuf, String)> {
    let mut head = Vec::new();
    // A FIFO would wait for its writer.
    let open = if file.is_file() { File::open(file).ok()? } else { return None };
    open.take(LINE).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?.trim_ascii();
    let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    let (interpreter, argument) = line.split_at(end);
    let interpreter = PathBuf::from(OsStr::from_bytes(interpreter));
    interpreter.is_absolute().then(|| (interpreter, String::from_utf8_lossy(argument.trim_ascii()).into_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::symlink;

    use lares_config::Network;

    use super::*;

    /// A home directory with programs in it.
    struct Home(tempfile::TempDir);

    impl Home {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn at(&self, path: &str) -> PathBuf {
            self.0.path().canonicalize().unwrap().join(path)
        }

        fn file(&self, path: &str, text: &str) {
            let path = self.at(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn link(&self, path: &str, to: &str) {
            let path = self.at(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(self.at(to), path).unwrap();
        }

        /// What is missing of a command, below this home.
        fn missing(&self, command: &[&str], read: &[&str]) -> Vec<String> {
            let program = Program {
                command: command
                    .iter()
                    .map(|word| word.replace('~', self.at("").to_str().unwrap().trim_end_matches('/')))
                    .collect(),
                env: BTreeMap::from([(
                    "PATH".to_owned(),
                    format!("{}:/usr/bin:/bin", self.at(".local/bin").display()),
                )]),
                env_files: BTreeMap::new(),
                directory: None,
                home: None,
                read: read.iter().map(|path| self.at(path)).collect(),
                write: Vec::new(),
                network: Network::None,
            };
            let missing = look(&program, Some(self.at("")));
            missing.iter().map(|path| path.strip_prefix(self.at("")).unwrap().display().to_string()).collect()
        }
    }

    #[test]
    fn a_program_of_the_system_needs_nothing() {
        let home = Home::new();
        assert_eq!(home.missing(&["sh", "-c", "true"], &[]), [""; 0]);
        assert_eq!(home.missing(&["/bin/sh"], &[]), [""; 0]);
        assert_eq!(home.missing(&["nowhere-to-be-found"], &[]), [""; 0], "nothing can be said of it");
    }

    #[test]
    fn a_tool_of_a_virtual_environment_needs_the_link_the_environment_and_its_python() {
        let home = Home::new();
        home.file("python/3.12/bin/python3.12", "");
        home.file("python/3.12/lib/libpython", "");
        home.link("share/tools/git/bin/python", "python/3.12/bin/python3.12");
        home.file("share/tools/git/pyvenv.cfg", "");
        let line = format!("#!{}\nimport sys\n", home.at("share/tools/git/bin/python").display());
        home.file("share/tools/git/bin/mcp-git", &line);
        home.link(".local/bin/mcp-git", "share/tools/git/bin/mcp-git");
        let all = [".local/bin", "share/tools/git", "python/3.12"];
        assert_eq!(home.missing(&["mcp-git"], &[]), all);
        assert_eq!(home.missing(&["mcp-git"], &all[..2]), ["python/3.12"], "what is granted already is not asked for");
        assert_eq!(home.missing(&["mcp-git"], &all), [""; 0]);
    }

    #[test]
    fn a_script_that_names_env_needs_the_interpreter_env_would_find() {
        let home = Home::new();
        home.file(".local/bin/node", "");
        for line in ["#!/usr/bin/env node\n", "#! /usr/bin/env -S A=b node --flag\n"] {
            home.file("lib/node_modules/npx/cli.js", line);
            assert_eq!(
                home.missing(&["~/lib/node_modules/npx/cli.js"], &[]),
                ["lib/node_modules", ".local/bin"],
                "{line}"
            );
        }
    }

    #[test]
    fn a_script_given_as_an_argument_needs_its_project_and_data_itself() {
        let home = Home::new();
        home.file(".local/bin/node", "");
        home.file("src/server/package.json", "{}");
        home.file("src/server/build/index.js", "");
        home.file("notes/all.db", "");
        let command = ["node", "--flag", "~/src/server/build/index.js", "~/notes/all.db", "~/none", "notes"];
        assert_eq!(home.missing(&command, &[".local/bin"]), ["src/server", "notes/all.db"]);
        home.file("one.js", "");
        assert_eq!(home.missing(&["node", "~/one.js"], &[".local/bin"]), ["one.js"], "never the whole home directory");
    }

    #[test]
    fn the_directory_it_runs_in_has_to_be_there() {
        let home = Home::new();
        fs::create_dir(home.at("work")).unwrap();
        let sh = Program {
            command: vec!["/bin/sh".to_owned()],
            env: BTreeMap::new(),
            env_files: BTreeMap::new(),
            directory: Some(home.at("work")),
            home: None,
            read: Vec::new(),
            write: Vec::new(),
            network: Network::None,
        };
        assert_eq!(look(&sh, Some(home.at(""))), [home.at("work")]);
        assert_eq!(
            look(&Program { write: vec![home.at("work")], ..sh }, Some(home.at(""))),
            [""; 0].map(PathBuf::from)
        );
    }

    #[test]
    fn loops_and_fifos_end() {
        let home = Home::new();
        home.file("a/one", &format!("#!{}\n", home.at("a/one").display()));
        assert_eq!(home.missing(&["~/a/one"], &[]), ["a"]);
        home.link("b/two", "b/two");
        assert_eq!(home.missing(&["~/b/two"], &[]), [""; 0]);
        nix::unistd::mkfifo(&home.at("a/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(home.missing(&["~/a/pipe"], &[]), ["a"]);
    }
}
