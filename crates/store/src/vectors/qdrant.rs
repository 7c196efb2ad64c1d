//! Search by a Qdrant server, over gRPC.

use std::time::Duration;

use async_trait::async_trait;
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::vectors_config::Config;
use qdrant_client::qdrant::{
    Condition, CountPointsBuilder, CreateCollectionBuilder, DeletePointsBuilder, Distance, PointId, PointStruct,
    PointsIdsList, ScoredPoint, SearchParamsBuilder, SearchPointsBuilder, UpsertPointsBuilder, VectorParams,
    VectorParamsBuilder,
};
use qdrant_client::{Payload, Qdrant as Client, QdrantError};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{Collection, Error, Filter, Hit, Match, Point, Result, Vectors, check};

/// Longest wait for a connection and for an answer.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(15);
/// Points sent with one call: about 1.5 MB at a width of 384, below gRPC's bound of 4 MB.
const CHUNK: usize = 1000;
/// gRPC's code for what is not there.
const NOT_FOUND: i32 = 5;

/// A Qdrant server.
#[derive(Clone)]
pub struct Qdrant {
    client: Client,
    width: usize,
}

impl std::fmt::Debug for Qdrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qdrant").field("width", &self.width).finish_non_exhaustive()
    }
}

impl Qdrant {
    /// Connects and asks for a sign of life.
    ///
    /// # Errors
    /// When the key cannot be read or the server gives none.
    pub async fn connect(config: &lares_config::Vectors) -> Result<Self> {
        let mut builder =
            Client::from_url(&config.url).timeout(ANSWER).connect_timeout(CONNECT).skip_compatibility_check();
        if let Some(path) = &config.api_key_file {
            let key = tokio::fs::read_to_string(path)
                .await
                .map_err(|source| Error::ApiKeyFile { path: path.clone(), source })?;
            builder = builder.api_key(key.trim().to_owned());
        }
        let client = builder.build().map_err(|e| Error::Qdrant(describe(&e)))?;
        client
            .health_check()
            .await
            .map_err(|e| Error::Qdrant(format!("no answer at {} (store.vectors.url): {}", config.url, describe(&e))))?;
        Ok(Self { client, width: usize::try_from(config.dimensions).unwrap_or(usize::MAX) })
    }

    async fn check_collection(&self, collection: Collection) -> Result<()> {
        let info = self.client.collection_info(collection.as_str()).await.map_err(|e| failed(collection, &e))?;
        let config = info.result.and_then(|i| i.config).and_then(|c| c.params).and_then(|p| p.vectors_config);
        let found = match config.and_then(|c| c.config) {
            Some(Config::Params(VectorParams { size, distance, .. })) => {
                if size == self.width as u64 && distance == i32::from(Distance::Cosine) {
                    return Ok(());
                }
                let measure = Distance::try_from(distance).map_or("unknown", |d| d.as_str_name());
                format!("is {size} wide with measure {measure}, where {} and Cosine are expected", self.width)
            }
            _ => "has named vectors, where one without a name is expected".to_owned(),
        };
        Err(Error::OtherCollection { collection, found })
    }
}

#[async_trait]
impl Vectors for Qdrant {
    async fn ensure_collection(&self, collection: Collection) -> Result<()> {
        match self.check_collection(collection).await {
            Err(Error::NoCollection(_)) => {}
            other => return other,
        }
        let vectors = VectorParamsBuilder::new(self.width as u64, Distance::Cosine);
        let request = CreateCollectionBuilder::new(collection.as_str()).vectors_config(vectors);
        if let Err(e) = self.client.create_collection(request).await {
            // Another daemon may have been faster.
            return self.check_collection(collection).await.map_err(|_| failed(collection, &e));
        }
        Ok(())
    }

    async fn upsert(&self, collection: Collection, points: Vec<Point>) -> Result<()> {
        for point in &points {
            check(&point.vector, self.width)?;
        }
        for chunk in points.chunks(CHUNK) {
            let points: Vec<PointStruct> = chunk
                .iter()
                .map(|p| PointStruct::new(p.id.to_string(), p.vector.clone(), Payload::from(p.payload.clone())))
                .collect();
            self.client
                .upsert_points(UpsertPointsBuilder::new(collection.as_str(), points).wait(true))
                .await
                .map_err(|e| failed(collection, &e))?;
        }
        Ok(())
    }

    async fn search(
        &self,
        collection: Collection,
        vector: &[f32],
        limit: usize,
        filter: Option<&Filter>,
    ) -> Result<Vec<Hit>> {
        check(vector, self.width)?;
        if limit == 0 {
            // Qdrant takes it for an error.
            return self.count(collection).await.map(|_| Vec::new());
        }
        let mut request = SearchPointsBuilder::new(collection.as_str(), vector.to_vec(), limit as u64)
            // The search in memory is exact too, and both must find the same.
            .params(SearchParamsBuilder::default().exact(true))
            .with_payload(true);
        if let Some(filter) = filter {
            let conditions = filter.must.iter().map(|(field, wanted)| match wanted {
                Match::Text(text) => Condition::matches(field, text.clone()),
                Match::Integer(number) => Condition::matches(field, *number),
                Match::Bool(truth) => Condition::matches(field, *truth),
            });
            request = request.filter(qdrant_client::qdrant::Filter::must(conditions));
        }
        let found = self.client.search_points(request).await.map_err(|e| failed(collection, &e))?;
        found.result.into_iter().map(hit).collect()
    }

    async fn delete(&self, collection: Collection, ids: &[Uuid]) -> Result<()> {
        if ids.is_empty() {
            return self.count(collection).await.map(drop);
        }
        let ids = PointsIdsList { ids: ids.iter().map(|id| id.to_string().into()).collect() };
        self.client
            .delete_points(DeletePointsBuilder::new(collection.as_str()).points(ids).wait(true))
            .await
            .map_err(|e| failed(collection, &e))?;
        Ok(())
    }

    async fn count(&self, collection: Collection) -> Result<u64> {
        let request = CountPointsBuilder::new(collection.as_str()).exact(true);
        let counted = self.client.count(request).await.map_err(|e| failed(collection, &e))?;
        Ok(counted.result.map_or(0, |r| r.count))
    }
}

fn hit(point: ScoredPoint) -> Result<Hit> {
    let id = match point.id {
        Some(PointId { point_id_options: Some(PointIdOptions::Uuid(text)) }) => text.parse().ok(),
        _ => None,
    };
    let id = id.ok_or_else(|| Error::Qdrant("a point whose id is no UUID, which Lares did not write".to_owned()))?;
    let payload: Map<String, Value> = point.payload.into_iter().map(|(field, value)| (field, value.into())).collect();
    Ok(Hit { id, score: point.score, payload })
}

fn failed(collection: Collection, e: &QdrantError) -> Error {
    match e {
        QdrantError::ResponseError { status } if i32::from(status.code()) == NOT_FOUND => {
            Error::NoCollection(collection)
        }
        e => Error::Qdrant(describe(e)),
    }
}

/// Without the metadata of the answer, which says nothing to a person.
fn describe(e: &QdrantError) -> String {
    match e {
        QdrantError::ResponseError { status } => format!("{} ({})", status.message(), status.code()),
        e => e.to_string(),
    }
}
