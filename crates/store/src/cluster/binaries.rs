//! Where PostgreSQL's programs are, and of which major version.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;

use super::identity::Identity;
use super::{Error, Result};

/// Places besides PATH: NixOS.
const NIXOS: &str = "/run/current-system/sw/bin";
/// Parents of one directory a major version: Debian's, and PGDG's on Red Hat's.
const VERSIONED: [(&str, &str); 2] = [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")];
/// Longest wait for `postgres --version`.
const VERSION: Duration = Duration::from_secs(20);

/// One installed PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binaries {
    pub(super) initdb: PathBuf,
    pub(super) postgres: PathBuf,
    /// `15`
    pub(super) major: String,
}

/// All that are installed and that the user may run, the preferred one first; at least one.
pub(super) async fn find(bin_dir: Option<&Path>, identity: &Identity) -> Result<Vec<Binaries>> {
    let places = match bin_dir {
        Some(dir) => vec![dir.to_owned()],
        None => places(),
    };
    let mut found: Vec<Binaries> = Vec::new();
    for dir in &places {
        let Some((initdb, postgres)) = pair(dir) else { continue };
        if found.iter().any(|b| b.postgres == postgres) {
            continue;
        }
        let printed = timeout(VERSION, identity.command(&postgres).arg("--version").output()).await;
        let major = match printed {
            Ok(Ok(output)) if output.status.success() => major(&String::from_utf8_lossy(&output.stdout)),
            _ => None,
        };
        match major {
            Some(major) => found.push(Binaries { initdb, postgres, major }),
            None => tracing::warn!(
                postgres = %postgres.display(), user = identity.name, "passed over: it does not tell its version"
            ),
        }
    }
    if found.is_empty() {
        let searched = places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        return Err(Error::NoBinaries { searched });
    }
    Ok(found)
}

fn places() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).filter(|p| p.is_absolute()).collect();
    for (parent, prefix) in VERSIONED {
        let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let version = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
                Some((version, entry.path().join("bin")))
            })
            .collect();
        versions.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
        places.extend(versions.into_iter().map(|(_, dir)| dir));
    }
    places.push(NIXOS.into());
    places
}

/// `initdb` looks for `postgres` beside itself, so both must come from one directory: that of the file behind the link.
fn pair(dir: &Path) -> Option<(PathBuf, PathBuf)> {
    let real = dir.join("initdb").canonicalize().ok()?;
    [real.parent()?, dir].into_iter().find_map(|dir| {
        let (initdb, postgres) = (dir.join("initdb"), dir.join("postgres"));
        (initdb.is_file() && postgres.is_file()).then_some((initdb, postgres))
    })
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` → `15`
fn major(printed: &str) -> Option<String> {
    let version = printed.split("(PostgreSQL)").nth(1)?.trim_start();
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    (!digits.is_empty()).then_some(digits)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_postgres_prints() {
        for (printed, expected) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some("15")),
            ("postgres (PostgreSQL) 18beta2", Some("18")),
            ("something else 15", None),
        ] {
            assert_eq!(major(printed).as_deref(), expected, "{printed}");
        }
    }

    #[test]
    fn a_link_is_followed_to_where_both_programs_are() {
        let dir = tempfile::tempdir().unwrap();
        let (real, links) = (dir.path().join("real"), dir.path().join("links"));
        std::fs::create_dir(&real).unwrap();
        std::fs::create_dir(&links).unwrap();
        assert_eq!(pair(&links), None);
        std::fs::write(real.join("initdb"), "").unwrap();
        std::os::unix::fs::symlink(real.join("initdb"), links.join("initdb")).unwrap();
        assert_eq!(pair(&links), None);
        std::fs::write(real.join("postgres"), "").unwrap();
        assert_eq!(pair(&links).unwrap().1.canonicalize().unwrap(), real.join("postgres").canonicalize().unwrap());
    }
}
