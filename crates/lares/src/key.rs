//! `lares key …`, and the keys that `lares up` makes for itself. Keys are made next to PostgreSQL, never over HTTP.

use std::path::Path;

use anyhow::{Context, Result, bail};
use lares_gate::secret::{self, Secret};
use lares_store::keys::Key;
use lares_store::{Role, Store};
use serde::Serialize;

use crate::cli::{self, Global, exit};
use crate::configuration;
use crate::output::{self, Output};

#[derive(Serialize)]
struct Shown {
    id: uuid::Uuid,
    name: String,
    role: Role,
    created_at: jiff::Timestamp,
    revoked_at: Option<jiff::Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl Shown {
    fn new(key: Key, secret: Option<&Secret>) -> Self {
        Self {
            id: key.id,
            name: key.name,
            role: key.role,
            created_at: key.created_at,
            revoked_at: key.revoked_at,
            key: secret.map(|secret| secret.expose().to_owned()),
        }
    }
}

/// Carries out `lares key …`.
pub async fn run(global: &Global, command: cli::Key) -> Result<u8> {
    let config = configuration::load_for_client(global)?;
    let store = Store::connect(&config.store, &config.state_dir)
        .await
        .context("keys are kept in PostgreSQL; `lares up` starts it, or set store.url")?;
    let output = Output { json: global.json };
    match command {
        cli::Key::Create { name, role, file } => create(&store, output, name, &role, file.as_deref()).await?,
        cli::Key::List => {
            let keys: Vec<Shown> = store.keys().list().await?.into_iter().map(|key| Shown::new(key, None)).collect();
            output.value(&keys, |keys| {
                let day = |at: jiff::Timestamp| format!("{at:.0}");
                let rows = keys.iter().map(|key| {
                    let revoked = key.revoked_at.map_or_else(String::new, day);
                    [key.name.clone(), key.role.to_string(), day(key.created_at), revoked, key.id.to_string()]
                });
                output::table(["name", "role", "created", "revoked", "id"], rows)
            })?;
        }
        cli::Key::Revoke { key } => {
            let keys = store.keys().list().await?;
            let usable =
                keys.into_iter().find(|k| k.revoked_at.is_none() && (k.name == key || k.id.to_string() == key));
            let Some(found) = usable else {
                bail!("no key that works is called `{key}`; `lares key list` shows them");
            };
            store.keys().revoke(found.id).await?;
            output.value(&Shown::new(found, None), |key| format!("{} ({}) is revoked", key.name, key.id))?;
        }
    }
    Ok(exit::OK)
}

async fn create(store: &Store, output: Output, name: String, role: &str, file: Option<&Path>) -> Result<()> {
    let role: Role = role.parse()?;
    if let Some(file) = file
        && file.exists()
    {
        bail!("{} is there already; name another file, or remove it first", file.display());
    }
    let (key, secret) = make(name, role)?;
    store.keys().insert(&key).await?;
    if let Some(file) = file
        && let Err(error) = write(file, &secret).await
    {
        // A key that nobody holds must not stay behind.
        store.keys().revoke(key.id).await?;
        return Err(error);
    }
    let shown = Shown::new(key, file.is_none().then_some(&secret));
    output.value(&shown, |shown| match (file, &shown.key) {
        (Some(file), _) => format!("{} key `{}` is in {}", shown.role, shown.name, file.display()),
        (None, Some(key)) => key.clone(),
        (None, None) => String::new(),
    })?;
    if file.is_none() && !output.json {
        eprintln!("This is the only time the key is shown.");
    }
    Ok(())
}

fn make(name: String, role: Role) -> Result<(Key, Secret)> {
    let secret = Secret::generate()?;
    Ok((Key::new(name, role, secret.hash()), secret))
}

async fn write(file: &Path, secret: &Secret) -> Result<()> {
    let (path, secret) = (std::path::absolute(file)?, secret.clone());
    Ok(tokio::task::spawn_blocking(move || secret::write(&path, &secret)).await??)
}

/// Sees to it that the key in `file` works and has this role: makes one where there is none, or where the one that is
/// there is unknown (the database was replaced) or revoked.
pub async fn ensure(store: &Store, name: &str, role: Role, file: &Path) -> Result<()> {
    let path = file.to_owned();
    let held = tokio::task::spawn_blocking(move || path.exists().then(|| secret::read(&path)).transpose()).await??;
    let keys = store.keys().list().await?;
    if let Some(held) = held {
        let hash = held.hash();
        if keys.iter().any(|key| key.hash == hash && key.role == role && key.revoked_at.is_none()) {
            return Ok(());
        }
    }
    for stale in keys.iter().filter(|key| key.name == name && key.revoked_at.is_none()) {
        store.keys().revoke(stale.id).await?;
    }
    let (key, secret) = make(name.to_owned(), role)?;
    // The file first: a key in the store that nobody holds is worse than a file whose key is unknown, which the next
    // start replaces.
    write(file, &secret).await?;
    store.keys().insert(&key).await?;
    Ok(())
}
