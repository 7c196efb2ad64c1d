//! The environment of a run: a few variables, none that could hold a secret.

use std::collections::BTreeMap;
use std::env;
use std::path::Path;

use crate::sandbox::{Reach, expand, home};

/// Passed on as they are.
const KEPT: [&str; 8] =
    ["PATH", "LC_ALL", "TZ", "TZDIR", "LOCALE_ARCHIVE", "SSL_CERT_FILE", "NIX_SSL_CERT_FILE", "JAVA_HOME"];

/// Where toolchains live that look below the home directory, which a run has of its own: the variable, and the place
/// when it is unset.
const TOOLCHAINS: [(&str, &str); 6] = [
    ("CARGO_HOME", "~/.cargo"),
    ("RUSTUP_HOME", "~/.rustup"),
    ("PYENV_ROOT", "~/.pyenv"),
    ("NVM_DIR", "~/.nvm"),
    ("GOPATH", "~/go"),
    ("PYTHONUSERBASE", "~/.local"),
];

/// Used when the daemon has no PATH.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/run/current-system/sw/bin";

/// The variables of a run whose private directory is `scratch`.
pub(super) fn of_run(scratch: &Path, reach: &Reach) -> BTreeMap<String, String> {
    let mut variables: BTreeMap<String, String> = [
        ("PATH", PATH),
        ("LANG", "C.UTF-8"),
        ("TERM", "dumb"),
        ("CI", "1"),
        // Checks leave no caches behind in the worktree.
        ("PYTHONDONTWRITEBYTECODE", "1"),
        // git does not ask anybody anything.
        ("GIT_TERMINAL_PROMPT", "0"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    for name in KEPT {
        if let Ok(value) = env::var(name) {
            variables.insert(name.to_owned(), value);
        }
    }
    let home = home();
    for (name, place) in TOOLCHAINS {
        let place = expand(Path::new(place), home.as_deref()).filter(|place| place.is_dir());
        if let Some(value) = env::var(name).ok().or_else(|| Some(place?.to_str()?.to_owned())) {
            variables.insert(name.to_owned(), value);
        }
    }
    if *reach != Reach::Host {
        variables.insert("CARGO_NET_OFFLINE".to_owned(), "true".to_owned());
    }
    for (name, directory) in [("HOME", "home"), ("TMPDIR", "tmp")] {
        variables.insert(name.to_owned(), scratch.join(directory).to_string_lossy().into_owned());
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_passed_on_that_is_not_listed() {
        let variables = of_run(Path::new("/scratch"), &Reach::Nothing);
        let known: Vec<&str> = KEPT
            .into_iter()
            .chain(TOOLCHAINS.iter().map(|(name, _)| *name))
            .chain(["LANG", "TERM", "CI", "PYTHONDONTWRITEBYTECODE", "GIT_TERMINAL_PROMPT"])
            .chain(["CARGO_NET_OFFLINE", "HOME", "TMPDIR"])
            .collect();
        assert!(variables.keys().all(|name| known.contains(&name.as_str())), "{variables:?}");
        assert_eq!(variables["HOME"], "/scratch/home");
        assert_eq!(variables["TMPDIR"], "/scratch/tmp");
    }
}
