//! systemd units that say of themselves that they serve MCP: `X-MCP=URL` in `[Service]` or `[Unit]`, which systemd itself
//! passes over (systemd.unit(5): options that begin with `X-`).

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use lares_config::ToolDiscovery;
use tokio::time::{Instant, sleep_until, timeout_at};
use url::Url;

use super::{Around, ReadError, Sighting, UnitFiles, endpoint, is_loopback, quoted};
use crate::api::Source;
use crate::port::Transport;

/// Largest file of a unit.
const LARGEST: usize = 256 << 10;
/// Most files of one unit; there is a directory of drop-ins for each level of its name.
const MOST_FILES: usize = 64;
/// Units read at the same time.
const AT_ONCE: usize = 16;
/// The key.
const KEY: &str = "X-MCP";

/// What units say, and what is wrong with that.
pub(super) async fn look(
    config: &ToolDiscovery,
    around: &dyn Around,
    patience: Duration,
) -> (Vec<Sighting>, Vec<String>) {
    let mut sightings = Vec::new();
    let mut problems = Vec::new();
    for (unit, url) in &config.unit_urls {
        match Url::parse(url) {
            Ok(url) => sightings.push(sighting(unit, &url)),
            Err(error) => problems.push(format!("tools.discovery.unit_urls.{unit}: {error}")),
        }
    }
    if !config.units {
        return (sightings, problems);
    }
    let end = Instant::now() + patience;
    let units = match timeout_at(end, around.units()).await {
        Ok(Ok(units)) => units,
        Ok(Err(problem)) => {
            problems.push(problem);
            return (sightings, problems);
        }
        Err(_) => {
            problems.push("systemd does not tell its units in time".to_owned());
            return (sightings, problems);
        }
    };
    // Instances share the file of their template, which is read once.
    let files: BTreeSet<PathBuf> = units.iter().flat_map(parts).cloned().collect();
    let mut said = HashMap::new();
    let mut reading = stream::iter(files)
        .map(|file: PathBuf| async move {
            let content = around.read(&file, LARGEST).await;
            (file, content)
        })
        .buffer_unordered(AT_ONCE)
        .take_until(Box::pin(sleep_until(end)));
    while let Some((file, content)) = reading.next().await {
        match content {
            Ok(content) => {
                said.insert(file, assigned(&String::from_utf8_lossy(&content)));
            }
            // A unit may be gone by now; one that is kept from us says nothing to us.
            Err(ReadError::Absent | ReadError::Refused(_) | ReadError::NotAFile) => {}
            Err(error) => problems.push(format!("{} {error}", file.display())),
        }
    }
    if reading.take_result().is_some() {
        problems.push("the files of systemd's units could not be read in time".to_owned());
    }
    for unit in units.iter().filter(|unit| !config.unit_urls.contains_key(&unit.name)) {
        let last = parts(unit).filter_map(|file| said.get(file)?.as_ref()).last();
        match last.filter(|url| !url.is_empty()).map(|url| checked(&unit.name, url)) {
            None => {}
            Some(Ok(url)) => sightings.push(sighting(&unit.name, &url)),
            Some(Err(problem)) => problems.push(format!("{}: {problem}", unit.name)),
        }
    }
    (sightings, problems)
}

/// The files of a unit that are looked at.
fn parts(unit: &UnitFiles) -> impl Iterator<Item = &PathBuf> {
    unit.files.iter().take(MOST_FILES)
}

fn sighting(unit: &str, url: &Url) -> Sighting {
    Sighting {
        wanted: unit.strip_suffix(".service").unwrap_or(unit).to_owned(),
        source: Source::Unit,
        origin: unit.to_owned(),
        transport: Transport::Http(endpoint(url, Default::default())),
        needs: Vec::new(),
    }
}

/// What one file assigns. The last assignment counts; an empty one takes back what was said before, in other files too.
fn assigned(text: &str) -> Option<String> {
    let mut said = None;
    let mut section = String::new();
    let mut lines = text.lines();
    while let Some(first) = lines.next() {
        let mut line = first.trim_start().to_owned();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        // systemd.syntax(7): a backslash joins lines, and comments between them are left out.
        while line.ends_with('\\') {
            line.pop();
            line.push(' ');
            match lines.find(|next| !next.trim_start().starts_with(['#', ';'])) {
                Some(next) => line.push_str(next),
                None => break,
            }
        }
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if matches!(section.as_str(), "Service" | "Unit")
            && let Some((key, value)) = line.split_once('=')
            && key.trim_end() == KEY
        {
            said = Some(value.trim().to_owned());
        }
    }
    said
}

/// The URL, if it leads to this machine: a unit serves nowhere else.
fn checked(unit: &str, said: &str) -> Result<Url, String> {
    let instance = unit.split_once('@').and_then(|(_, rest)| rest.rsplit_once('.')).map_or("", |(name, _)| name);
    let said = said.replace("%i", instance).replace("%%", "%");
    let url = Url::parse(&said).map_err(|error| format!("`{KEY}={}` is no URL: {error}", quoted(&said)))?;
    if url.scheme() != "http" && url.scheme() != "https" || !is_loopback(&url) {
        return Err(format!("`{KEY}={}` must be an http:// URL on loopback", quoted(&said)));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_unit_file_is_read_as_systemd_does() {
        let url = Some("http://127.0.0.1:8000/mcp".to_owned());
        assert_eq!(assigned("[Service]\nExecStart=/x\nX-MCP=http://127.0.0.1:8000/mcp\n"), url);
        assert_eq!(assigned("[Unit]\n  X-MCP = http://127.0.0.1:8000/mcp \n"), url);
        assert_eq!(assigned("[Service]\nX-MCP=\\\n# why\nhttp://127.0.0.1:8000/mcp\n"), url);
        assert_eq!(assigned("[Install]\nX-MCP=http://127.0.0.1:8000/mcp\n"), None);
        assert_eq!(assigned("# X-MCP=http://a\n[Service]\n;X-MCP=http://a\nExecStart=/x \\\n X-MCP=http://a\n"), None);
        assert_eq!(assigned("[Service]\nX-MCP=http://a\nX-MCP=\n"), Some(String::new()));
        assert_eq!(assigned("[Service]\nX-MCP=http://a\n[Unit]\nX-MCP=http://127.0.0.1:8000/mcp"), url);
        assert_eq!(assigned("[Service]\nX-MCP=a\\"), Some("a".to_owned()));
    }

    #[test]
    fn only_loopback_urls_count() {
        assert_eq!(checked("a.service", "http://localhost:1/x").unwrap().as_str(), "http://localhost:1/x");
        assert_eq!(checked("a@8000.service", "http://[::1]:%i/x").unwrap().as_str(), "http://[::1]:8000/x");
        for wrong in
            ["", "8000", "http://example.org/mcp", "http://10.0.0.1/mcp", "unix:/run/x", "http://localhost.example"]
        {
            assert!(checked("a.service", wrong).is_err(), "{wrong}");
        }
    }
}
