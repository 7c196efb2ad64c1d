//! From configuration to a pool: which connection string counts, how long to wait, what every session is set to.

use std::path::Path;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::config::SslMode;
use tokio_postgres::{Config, NoTls};

use crate::cluster;
use crate::error::is_temporary;
use crate::{Error, Result};

/// Bound of a statement and of a transaction that does nothing, set for every session.
const SESSION: &str = "-c statement_timeout=30s -c idle_in_transaction_session_timeout=60s";
/// A peer that is gone is noticed this soon, also on a connection that only listens.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// First wait between two attempts to connect; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// The connection string of the configuration: `url_file`, else `url`, else the private cluster's socket.
pub(crate) async fn settings(config: &lares_config::Store, state_dir: &Path) -> Result<Config> {
    let (text, origin) = if let Some(path) = &config.url_file {
        let text =
            tokio::fs::read_to_string(path).await.map_err(|source| Error::UrlFile { path: path.clone(), source })?;
        (text, format!("{} (store.url_file)", path.display()))
    } else if !config.url.trim().is_empty() {
        (config.url.clone(), "store.url".to_owned())
    } else {
        (cluster::url(state_dir), "the private cluster".to_owned())
    };
    let mut settings = parse(text.trim(), &origin)?;
    settings.connect_timeout(config.connect_timeout);
    Ok(settings)
}

fn parse(text: &str, origin: &str) -> Result<Config> {
    let mut settings: Config = text.parse().map_err(|_| Error::BadUrl { origin: origin.to_owned() })?;
    if settings.get_hosts().is_empty() && settings.get_hostaddrs().is_empty() {
        return Err(Error::BadUrl { origin: origin.to_owned() });
    }
    match settings.get_ssl_mode() {
        SslMode::Disable | SslMode::Prefer => settings.ssl_mode(SslMode::Disable),
        _ => return Err(Error::Tls { origin: origin.to_owned() }),
    };
    // Last, so that what the connection string sets wins.
    let options = settings.get_options().map_or_else(|| SESSION.to_owned(), |theirs| format!("{SESSION} {theirs}"));
    settings.options(options);
    if settings.get_application_name().is_none() {
        settings.application_name("lares");
    }
    settings.keepalives_idle(KEEPALIVE).keepalives_interval(KEEPALIVE).keepalives_retries(2);
    settings.tcp_user_timeout(KEEPALIVE * 3);
    Ok(settings)
}

pub(crate) fn pool(settings: &Config, config: &lares_config::Store) -> Result<Pool> {
    let manager =
        Manager::from_config(settings.clone(), NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    Pool::builder(manager)
        .max_size(usize::try_from(config.pool_size).unwrap_or(usize::MAX).max(1))
        .wait_timeout(Some(config.connect_timeout))
        .create_timeout(Some(config.connect_timeout))
        .recycle_timeout(Some(config.connect_timeout))
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|e| Error::Unavailable(e.to_string()))
}

/// Waits until the pool gives a connection, for a server that is being started beside us. A refusal that waiting does
/// not cure (a wrong password) is returned at once.
pub(crate) async fn until(limit: Duration, pool: &Pool) -> Result<()> {
    let deadline = Instant::now() + limit;
    let mut delay = RETRY_MIN;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(attempt) = timeout(left, pool.get()).await else {
            return Err(Error::Unavailable(format!("no answer within {limit:?} (store.connect_timeout)")));
        };
        let error = match attempt {
            Ok(_) => return Ok(()),
            Err(e) if !worth_waiting(&e) => return Err(e.into()),
            Err(e) => Error::from(e),
        };
        tracing::debug!(%error, "PostgreSQL is not there yet");
        if deadline.saturating_duration_since(Instant::now()) < delay {
            return Err(match error {
                Error::Unavailable(why) => Error::Unavailable(format!("{why} (tried for {limit:?})")),
                other => other,
            });
        }
        sleep(jittered(delay)).await;
        delay = (delay * 2).min(RETRY_MAX);
    }
}

/// Between half and one and a half times a wait, so that daemons that lost PostgreSQL together do not come back together.
pub(crate) fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.5..1.5))
}

fn worth_waiting(e: &PoolError) -> bool {
    match e {
        // The database does not exist yet, as on the first start of a private cluster.
        PoolError::Backend(e) if e.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_DATABASE) => true,
        PoolError::Backend(e) => is_temporary(e),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_url_and_key_value_pairs_both_work() {
        for text in ["postgres://me@127.0.0.1/lares", "host=/run/postgresql user=me dbname=lares"] {
            let settings = parse(text, "store.url").unwrap();
            assert_eq!(settings.get_user(), Some("me"));
            assert_eq!(settings.get_dbname(), Some("lares"));
        }
    }

    #[test]
    fn what_the_connection_string_sets_for_the_session_wins() {
        let settings = parse("host=/run options='-c statement_timeout=1s'", "store.url").unwrap();
        assert!(settings.get_options().unwrap().ends_with("-c statement_timeout=1s"));
    }

    #[test]
    fn asking_for_tls_is_refused_with_the_reason() {
        let e = parse("postgres://me@db.example/lares?sslmode=require", "store.url").unwrap_err();
        assert!(matches!(e, Error::Tls { .. }));
        assert!(e.to_string().contains("sslmode=disable"), "{e}");
    }

    #[test]
    fn no_error_shows_a_password() {
        for text in ["postgres://me:hunter2@db:port/lares", "password=hunter2", "postgres://me:hunter2@h/x?nonsense=1"]
        {
            let e = parse(text, "store.url").unwrap_err();
            assert!(!format!("{e} {e:?}").contains("hunter2"), "{e:?}");
        }
    }

    #[tokio::test]
    async fn the_url_file_wins_over_the_url_and_the_private_cluster_comes_last() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("url");
        std::fs::write(&file, "postgres://from-file@127.0.0.1/x\n").unwrap();
        let mut config = lares_config::Store {
            url: "postgres://from-url@127.0.0.1/x".to_owned(),
            url_file: Some(file.clone()),
            ..lares_config::Store::default()
        };
        let user = async |config: &lares_config::Store| {
            settings(config, Path::new("/state")).await.unwrap().get_user().unwrap().to_owned()
        };
        assert_eq!(user(&config).await, "from-file");
        config.url_file = None;
        assert_eq!(user(&config).await, "from-url");
        config.url = String::new();
        assert_eq!(user(&config).await, "lares");
        config.url_file = Some(dir.path().join("missing"));
        let e = settings(&config, Path::new("/state")).await.unwrap_err();
        assert!(e.to_string().contains("missing (store.url_file)"), "{e}");
    }
}
