//! The table that the in-memory search is loaded from.

use std::collections::HashMap;

use futures_util::TryStreamExt as _;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{Collection, Point};
use crate::events::clean_json;
use crate::{Error, Result, Store};

/// Points written by one statement: about 1.5 MB at a width of 384.
const CHUNK: usize = 1000;

/// Queries on the vectors kept in PostgreSQL.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    pub(crate) store: &'a Store,
}

impl Table<'_> {
    /// Adds points, all or none, replacing those with the same identity; of two with one identity the last counts.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn upsert(&self, collection: Collection, points: &[Point]) -> Result<()> {
        let last: HashMap<Uuid, &Point> = points.iter().map(|p| (p.id, p)).collect();
        let points: Vec<&Point> = last.into_values().collect();
        let mut client = self.store.client().await?;
        let transaction = client.transaction().await?;
        let statement = transaction
            .prepare_cached(
                "INSERT INTO vectors (collection, id, vector, payload)
                 SELECT $1, * FROM UNNEST($2::uuid[], $3::bytea[], $4::jsonb[])
                 ON CONFLICT (collection, id) DO UPDATE SET vector = excluded.vector, payload = excluded.payload",
            )
            .await?;
        for chunk in points.chunks(CHUNK) {
            let ids: Vec<Uuid> = chunk.iter().map(|p| p.id).collect();
            let vectors: Vec<Vec<u8>> =
                chunk.iter().map(|p| p.vector.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
            let payloads: Vec<Value> = chunk.iter().map(|p| clean_json(&Value::Object(p.payload.clone()))).collect();
            transaction.execute(&statement, &[&collection.as_str(), &ids, &vectors, &payloads]).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Removes points.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn delete(&self, collection: Collection, ids: &[Uuid]) -> Result<()> {
        let client = self.store.client().await?;
        let statement =
            client.prepare_cached("DELETE FROM vectors WHERE collection = $1 AND id = ANY($2::uuid[])").await?;
        client.execute(&statement, &[&collection.as_str(), &ids]).await?;
        Ok(())
    }

    /// All points of a collection.
    ///
    /// # Errors
    /// When PostgreSQL fails or a row cannot be read.
    pub async fn load(&self, collection: Collection) -> Result<Vec<Point>> {
        let client = self.store.client().await?;
        let statement = client.prepare_cached("SELECT id, vector, payload FROM vectors WHERE collection = $1").await?;
        let rows = client.query_raw(&statement, [collection.as_str()]).await?;
        rows.map_err(Error::from)
            .and_then(async |row| {
                let id: Uuid = row.try_get(0)?;
                let bytes: &[u8] = row.try_get(1)?;
                let payload: Map<String, Value> = match row.try_get(2)? {
                    Value::Object(fields) => fields,
                    _ => {
                        return Err(Error::Unreadable {
                            table: "vectors",
                            what: format!("payload of {id}: no object"),
                        });
                    }
                };
                let vector = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
                Ok(Point { id, vector, payload })
            })
            .try_collect()
            .await
    }
}
