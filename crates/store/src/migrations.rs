//! The schema, as a list of migrations that are applied once and in order, however many daemons start together.

use deadpool_postgres::ClientWrapper;
use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// A migration that has been released is never changed; its hash in the database tells when it was.
pub(crate) struct Migration {
    pub(crate) version: i32,
    pub(crate) name: &'static str,
    pub(crate) sql: &'static str,
}

const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "base", sql: include_str!("../migrations/0001_base.sql") },
    Migration { version: 2, name: "tasks", sql: include_str!("../migrations/0002_tasks.sql") },
    Migration { version: 3, name: "incidents", sql: include_str!("../migrations/0003_incidents.sql") },
    Migration { version: 4, name: "failures", sql: include_str!("../migrations/0004_failures.sql") },
    Migration { version: 5, name: "tools", sql: include_str!("../migrations/0005_tools.sql") },
    Migration { version: 6, name: "tool-grants", sql: include_str!("../migrations/0006_tool_grants.sql") },
];

/// Key of the advisory lock that daemons starting together queue on: "lares" in ASCII.
const LOCK: i64 = 0x6c_61_72_65_73;

pub(crate) async fn apply(client: &mut ClientWrapper) -> Result<()> {
    run(client, MIGRATIONS).await
}

async fn run(client: &mut ClientWrapper, migrations: &[Migration]) -> Result<()> {
    let transaction = client.transaction().await?;
    // The lock is held while another daemon migrates, which may take longer than a statement is allowed otherwise.
    transaction.batch_execute("SET LOCAL statement_timeout = '10min'; SET LOCAL client_min_messages = warning").await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    transaction
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS lares_migrations (
                 version    integer PRIMARY KEY,
                 name       text NOT NULL,
                 sha256     bytea NOT NULL,
                 applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
             )",
        )
        .await?;
    let applied = transaction.query("SELECT version, name, sha256 FROM lares_migrations ORDER BY version", &[]).await?;
    let known = migrations.last().map_or(0, |m| m.version);
    for row in &applied {
        let (version, name, hash): (i32, String, &[u8]) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        match migrations.iter().find(|m| m.version == version) {
            None => return Err(Error::DatabaseTooNew { found: version, known }),
            Some(m) if Sha256::digest(m.sql).as_slice() != hash => {
                return Err(Error::MigrationChanged { version, name });
            }
            Some(_) => {}
        }
    }
    let done = applied.last().map_or(Ok(0), |row| row.try_get::<_, i32>(0))?;
    for m in migrations.iter().filter(|m| m.version > done) {
        transaction.batch_execute(m.sql).await.map_err(|source| Error::MigrationFailed {
            version: m.version,
            name: m.name,
            source,
        })?;
        transaction
            .execute(
                "INSERT INTO lares_migrations (version, name, sha256) VALUES ($1, $2, $3)",
                &[&m.version, &m.name, &Sha256::digest(m.sql).as_slice()],
            )
            .await?;
        tracing::info!(version = m.version, name = m.name, "migrated the database");
    }
    transaction.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::Cluster;

    const ONE: Migration = Migration { version: 1, name: "one", sql: "CREATE TABLE a (x int)" };

    async fn applied(client: &ClientWrapper) -> Vec<i32> {
        let rows = client.query("SELECT version FROM lares_migrations ORDER BY 1", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    #[test]
    fn versions_count_up_from_one_without_a_gap() {
        for (m, expected) in MIGRATIONS.iter().zip(1..) {
            assert_eq!(m.version, expected, "{}", m.name);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn eight_daemons_starting_together_migrate_once() {
        let database = Cluster::shared().await;
        let mut starting = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let database = database.clone();
            starting.spawn(async move { database.store().await });
        }
        let stores = starting.join_all().await;
        let client = stores[0].client().await.unwrap();
        assert_eq!(applied(&client).await, MIGRATIONS.iter().map(|m| m.version).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_migration_changed_after_it_was_applied_is_refused() {
        let database = Cluster::shared().await;
        let mut client = database.client().await;
        run(&mut client, &[ONE]).await.unwrap();
        let changed = Migration { sql: "CREATE TABLE a (x bigint)", ..ONE };
        let e = run(&mut client, &[changed]).await.unwrap_err();
        assert!(matches!(e, Error::MigrationChanged { version: 1, .. }), "{e}");
    }

    #[tokio::test]
    async fn a_database_of_a_newer_version_is_refused_and_left_alone() {
        let database = Cluster::shared().await;
        let mut client = database.client().await;
        let two = Migration { version: 2, name: "two", sql: "CREATE TABLE b (x int)" };
        run(&mut client, &[ONE, two]).await.unwrap();
        let e = run(&mut client, &[ONE]).await.unwrap_err();
        assert!(matches!(e, Error::DatabaseTooNew { found: 2, known: 1 }), "{e}");
        assert!(e.to_string().contains("upgrade Lares"), "{e}");
    }

    #[tokio::test]
    async fn a_migration_that_fails_leaves_nothing_behind() {
        let database = Cluster::shared().await;
        let mut client = database.client().await;
        run(&mut client, &[ONE]).await.unwrap();
        let broken = Migration { version: 2, name: "broken", sql: "CREATE TABLE b (x int); SELECT 1/0" };
        let e = run(&mut client, &[ONE, broken]).await.unwrap_err();
        assert!(e.to_string().contains("division by zero"), "{e}");
        assert_eq!(applied(&client).await, [1]);
        assert!(client.query("SELECT * FROM b", &[]).await.is_err());
    }
}
