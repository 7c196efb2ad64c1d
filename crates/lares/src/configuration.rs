//! Finding and loading the configuration, and `lares config`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lares_config::{Entry, Loaded, Sources};

use crate::cli::{self, Global};
use crate::output::{self, Output};

/// The file that is used when none is named.
fn default_file() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    [home.map(|home| home.join("lares/config.toml")), Some(PathBuf::from("/etc/lares/config.toml"))]
        .into_iter()
        .flatten()
        .find(|path| path.is_file())
}

/// The layers that the global flags name.
fn sources(global: &Global) -> Result<Sources> {
    let mut flags = Vec::new();
    if let Some(directory) = &global.state_dir {
        let absolute = std::path::absolute(directory)?;
        flags.push(("state_dir".to_owned(), absolute.to_string_lossy().into_owned()));
    }
    flags.extend(global.set.iter().cloned());
    Ok(Sources::of_process(global.config.clone().or_else(default_file), flags))
}

/// The effective configuration.
pub fn load(global: &Global) -> Result<Loaded, anyhow::Error> {
    Ok(sources(global)?.load()?)
}

/// Refuses a configuration file that anybody but root may change.
pub fn only_roots(global: &Global) -> Result<()> {
    let Some(file) = sources(global)?.file else { return Ok(()) };
    let found = std::fs::metadata(&file).with_context(|| format!("cannot look at {}", file.display()))?;
    let others = found.mode() & 0o022 != 0;
    anyhow::ensure!(
        found.uid() == 0 && !others,
        "{} can be changed by others than root, and the helper does what it says as root; `chown root {0}` and \
         `chmod go-w {0}`",
        file.display()
    );
    Ok(())
}

/// The configuration as a running `lares up` completed it (ports it chose), else as it is configured. For commands
/// that talk to the daemons.
pub fn load_for_client(global: &Global) -> Result<lares_config::Config> {
    let configured = load(global)?.config;
    let completed = effective_file(&configured.state_dir);
    if completed.is_file()
        && let Ok(loaded) = (Sources { file: Some(completed), ..Sources::default() }).load()
    {
        return Ok(loaded.config);
    }
    Ok(configured)
}

/// Where `lares up` writes the configuration it gives its daemons.
pub fn effective_file(state_dir: &Path) -> PathBuf {
    state_dir.join("run/lares.toml")
}

/// `lares config …`.
pub fn run(global: &Global, command: cli::Config) -> Result<()> {
    let output = Output { json: global.json };
    match command {
        cli::Config::Schema => output::line(&serde_json::to_string_pretty(lares_config::json_schema())?),
        cli::Config::Check { file } => {
            let mut sources = sources(global)?;
            if file.is_some() {
                sources.file = file;
            }
            sources.load()?;
            let checked = match &sources.file {
                Some(file) => file.display().to_string(),
                None => "no configuration file, defaults".to_owned(),
            };
            output.value(&serde_json::json!({ "file": sources.file, "valid": true }), |_| format!("{checked}: good"))
        }
        cli::Config::Show { changed } => {
            let entries: Vec<Entry> =
                load(global)?.entries().into_iter().filter(|entry| !changed || entry.origin != "default").collect();
            output.value(&entries, |entries| {
                let rows =
                    entries.iter().map(|entry| [entry.key.clone(), entry.value.to_string(), entry.origin.clone()]);
                output::table(["key", "value", "set in"], rows)
            })
        }
    }
}
