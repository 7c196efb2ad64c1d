//! Makes the cluster's directories, so that a crash at any point leaves either no cluster or a whole one.

use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::binaries::Binaries;
use super::identity::Identity;
use super::{Error, NAME, Result, io_error};

/// Longest `initdb` may take; it takes about a second on a quiet machine.
const INITDB: Duration = Duration::from_secs(180);
/// Longest wait for another process that prepares the same cluster.
const LOCK_WAIT: Duration = Duration::from_secs(200);
/// Prefix of the directory a cluster is made in before it gets its name.
const UNFINISHED: &str = "data.new-";

/// Runs what touches files off the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Error::NotReady(e.to_string())))
}

/// Makes the directory above data and socket. It belongs to who runs Lares, and others can pass through it only when
/// PostgreSQL runs as another user.
pub(super) async fn make_home(home: &Path, identity: &Identity) -> Result<()> {
    let (home, identity) = (home.to_owned(), identity.clone());
    blocking(move || {
        let mode = if identity.switch_to().is_some() { 0o711 } else { 0o700 };
        let mut missing: Vec<&Path> = home.ancestors().take_while(|dir| !dir.exists()).collect();
        missing.reverse();
        for dir in missing {
            make_dir(dir, mode)?;
        }
        let owner = home.metadata().map_err(io_error("look at", &home))?.uid();
        if owner != nix::unistd::Uid::effective().as_raw() {
            return Err(Error::OtherOwner { path: home, owner, user: identity.invoker });
        }
        Ok(())
    })
    .await
}

/// One process at a time prepares a cluster. The lock ends with the process.
pub(super) async fn lock(home: &Path) -> Result<File> {
    let path = home.join("prepare.lock");
    let opened = path.clone();
    let file = blocking(move || File::create(&opened).map_err(io_error("create", &opened))).await?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(e)) => return Err(io_error("lock", &path)(e)),
            Err(TryLockError::WouldBlock) if Instant::now() > deadline => return Err(Error::Busy(path)),
            Err(TryLockError::WouldBlock) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Makes the data directory unless there is one; gives the programs of its version.
pub(super) async fn make_data(home: &Path, identity: &Identity, installed: &[Binaries]) -> Result<Binaries> {
    let data = home.join("data");
    let (looked_at, user) = (data.clone(), identity.clone());
    let version = blocking(move || version_of(&looked_at, &user)).await?;
    if let Some(version) = version {
        return installed.iter().find(|b| b.major == version).cloned().ok_or_else(|| Error::OtherVersion {
            data,
            cluster: version,
            installed: installed.iter().map(|b| b.major.as_str()).collect::<Vec<_>>().join(", "),
        });
    }
    let Some(binaries) = installed.first() else { return Err(Error::NoBinaries { searched: String::new() }) };
    let (dir, user) = (home.to_owned(), identity.clone());
    let unfinished = blocking(move || {
        remove_unfinished(&dir);
        // A name of its own: an initdb that outlived a killed parent may still write to the old one.
        let unfinished = dir.join(format!("{UNFINISHED}{}", Uuid::now_v7()));
        make_dir(&unfinished, 0o700)?;
        hand_over(&unfinished, &user)?;
        Ok(unfinished)
    })
    .await?;
    tracing::info!(data = %data.display(), version = binaries.major, user = identity.name, "making the PostgreSQL cluster");
    run_initdb(&binaries.initdb, &unfinished, identity).await?;
    let home = home.to_owned();
    blocking(move || {
        std::fs::rename(&unfinished, &data).map_err(io_error("move the new cluster to", &data))?;
        sync_dir(&home)
    })
    .await?;
    Ok(binaries.clone())
}

/// Major version of a data directory; `None` when there is none.
fn version_of(data: &Path, identity: &Identity) -> Result<Option<String>> {
    let owner = match data.metadata() {
        Ok(meta) => meta.uid(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error("look at", data)(e)),
    };
    if owner != identity.uid.as_raw() {
        return Err(Error::OtherOwner { path: data.to_owned(), owner, user: identity.name.clone() });
    }
    let file = data.join("PG_VERSION");
    let text = std::fs::read_to_string(&file).map_err(io_error("read", &file))?;
    Ok(Some(text.trim().to_owned()))
}

async fn run_initdb(initdb: &Path, dir: &Path, identity: &Identity) -> Result<()> {
    let mut command = identity.command(initdb);
    command.arg("-D").arg(dir).args(["-U", NAME, "-E", "UTF8", "--locale=C", "--auth=peer", "--no-instructions"]);
    let failed = |status: String, output: String| Error::Failed { program: initdb.to_owned(), status, output };
    match timeout(INITDB, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
            let last = lines[lines.len().saturating_sub(4)..].join("; ");
            Err(failed(output.status.to_string(), last))
        }
        Ok(Err(e)) => Err(io_error("run", initdb)(e)),
        Err(_) => Err(failed(format!("not done after {INITDB:?}"), "stopped".to_owned())),
    }
}

/// Makes the socket's directory.
pub(super) async fn make_socket_dir(home: &Path, identity: &Identity) -> Result<()> {
    let (run, identity) = (home.join("run"), identity.clone());
    blocking(move || {
        if !run.exists() {
            make_dir(&run, 0o700)?;
        }
        hand_over(&run, &identity)
    })
    .await
}

/// Who may connect: over the socket only, as the one role, those who run PostgreSQL, Lares, or the machine.
pub(super) async fn write_access_rules(home: &Path, identity: &Identity) -> Result<()> {
    let mut users = vec!["root", identity.name.as_str(), identity.invoker.as_str()];
    users.sort_unstable();
    users.dedup();
    let map: String = users.iter().map(|user| format!("{NAME} \"{user}\" {NAME}\n")).collect();
    let files =
        [(home.join("pg_hba.conf"), format!("local all {NAME} peer map={NAME}\n")), (home.join("pg_ident.conf"), map)];
    blocking(move || {
        for (path, text) in files {
            if std::fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
                continue;
            }
            let new = path.with_extension("new");
            let write = || {
                let mut file = File::create(&new)?;
                file.write_all(text.as_bytes())?;
                file.set_permissions(PermissionsExt::from_mode(0o644))?;
                file.sync_all()?;
                std::fs::rename(&new, &path)
            };
            write().map_err(io_error("write", &path))?;
        }
        Ok(())
    })
    .await
}

fn make_dir(dir: &Path, mode: u32) -> Result<()> {
    match std::fs::DirBuilder::new().mode(mode).create(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other.map_err(io_error("create", dir))?,
    }
    // The umask may have taken away what the other user needs.
    std::fs::set_permissions(dir, PermissionsExt::from_mode(mode)).map_err(io_error("set the mode of", dir))
}

fn hand_over(dir: &Path, identity: &Identity) -> Result<()> {
    if let Some((uid, gid)) = identity.switch_to() {
        chown(dir, Some(uid), Some(gid)).map_err(io_error("change the owner of", dir))?;
    }
    Ok(())
}

/// What an initdb that was cut off has left.
fn remove_unfinished(home: &Path) {
    let leftovers: Vec<PathBuf> = std::fs::read_dir(home)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(UNFINISHED))
        .map(|entry| entry.path())
        .collect();
    for dir in leftovers {
        if let Err(error) = std::fs::remove_dir_all(&dir) {
            tracing::warn!(dir = %dir.display(), %error, "cannot remove an unfinished cluster");
        }
    }
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", dir))
}
