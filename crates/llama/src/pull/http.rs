//! A file from a URL: resumed with a range, tried again after an accident.

use std::time::Duration;

use futures_util::StreamExt;
use rand::Rng;
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, RANGE};
use reqwest::{Client, Response, StatusCode};

use super::part::{Part, Resume};
use super::{Job, PullError, SourceError, blocking};
use crate::progress::{Progress, Unit};

/// A machine without a way out must not keep anybody waiting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence of a server.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Accidents in a row before the source is given up.
const RETRIES: u32 = 3;
/// First pause after an accident; each further one is twice as long, plus up to as much again by chance.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// So many bytes between two accidents make the second one the first again.
const GOOD_STRETCH: u64 = 1 << 20;
/// Bytes collected before they are written.
const WRITE_CHUNK: usize = 1 << 20;

pub(super) fn client() -> Result<Client, PullError> {
    Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(IDLE_TIMEOUT)
        .user_agent(concat!("lares/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| PullError::Client(error.to_string()))
}

/// What an attempt came to.
enum Attempt {
    Complete(Part),
    Again(Part, SourceError),
}

/// Fetches the file; what is in the part when it fails stays for the next try.
pub(super) async fn fetch(job: &Job<'_>, url: &str, progress: &dyn Progress) -> Result<Part, SourceError> {
    let client = client().map_err(|error| SourceError::Http(error.to_string()))?;
    let mut part = job.open_part(u64::MAX, progress).await?;
    let mut failures = 0;
    let mut stretch_start = part.length();
    loop {
        let error = match attempt(&client, job, url, part, progress).await? {
            Attempt::Complete(part) => return Ok(part),
            Attempt::Again(left, error) => {
                part = left;
                error
            }
        };
        if part.length() >= stretch_start.saturating_add(GOOD_STRETCH) {
            failures = 0;
        }
        stretch_start = part.length();
        failures += 1;
        if failures > RETRIES {
            return Err(error);
        }
        let pause = FIRST_PAUSE * 2u32.pow(failures - 1);
        let pause = pause + pause.mul_f64(rand::rng().random_range(0.0..1.0));
        progress.note(&format!("{error}; trying again ({failures} of {RETRIES})"));
        tokio::time::sleep(pause).await;
    }
}

async fn attempt(
    client: &Client,
    job: &Job<'_>,
    url: &str,
    mut part: Part,
    progress: &dyn Progress,
) -> Result<Attempt, SourceError> {
    if job.size.is_some_and(|size| part.length() >= size) {
        // More than there should be is settled by the hash, like everything else.
        return Ok(Attempt::Complete(part));
    }
    let state = job.state_path();
    let resume = blocking(move || Ok(Resume::load(&state))).await?;
    let mut request = client.get(url);
    if part.length() > 0 {
        request = request.header(RANGE, format!("bytes={}-", part.length()));
        if let Some(etag) = resume.etag.filter(|_| resume.url.as_deref() == Some(url)) {
            request = request.header(IF_RANGE, etag);
        }
    }
    let response = match request.send().await {
        Ok(response) => response,
        // Another source is nearer than a second look at a name that does not resolve.
        Err(error) if error.is_connect() && !job.last_source => return Err(SourceError::http(&error)),
        Err(error) if error.is_builder() => return Err(SourceError::http(&error)),
        Err(error) => return Ok(Attempt::Again(part, SourceError::http(&error))),
    };
    let status = response.status();
    match status {
        StatusCode::OK => part = restart(part).await?,
        StatusCode::PARTIAL_CONTENT => {
            if content_range(response.headers()).0 != Some(part.length()) {
                return Ok(Attempt::Again(restart(part).await?, SourceError::WrongRange));
            }
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            if content_range(response.headers()).1 == Some(part.length()) {
                return Ok(Attempt::Complete(part));
            }
            return Ok(Attempt::Again(restart(part).await?, SourceError::WrongRange));
        }
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            return Ok(Attempt::Again(part, SourceError::Status(status.as_u16())));
        }
        status => return Err(SourceError::Status(status.as_u16())),
    }
    let etag = response.headers().get(ETAG).and_then(|v| v.to_str().ok()).filter(|v| v.starts_with('"'));
    let resume = Resume { url: Some(url.to_owned()), etag: etag.map(str::to_owned), wheels: None };
    let state = job.state_path();
    blocking(move || resume.store(&state)).await?;
    receive(job, response, part, progress).await
}

async fn restart(mut part: Part) -> Result<Part, SourceError> {
    if part.length() == 0 {
        return Ok(part);
    }
    blocking(move || part.clear().map(|()| part)).await
}

/// First byte and total size of a `Content-Range`.
fn content_range(headers: &HeaderMap) -> (Option<u64>, Option<u64>) {
    let text = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("bytes "));
    let Some((range, total)) = text.and_then(|text| text.split_once('/')) else { return (None, None) };
    (range.split_once('-').and_then(|(first, _)| first.parse().ok()), total.parse().ok())
}

async fn receive(
    job: &Job<'_>,
    response: Response,
    mut part: Part,
    progress: &dyn Progress,
) -> Result<Attempt, SourceError> {
    let announced = response.content_length().map(|rest| part.length() + rest);
    let total = job.size.or(announced);
    if part.length() == 0 {
        // Without a size in the catalog, this is the first moment the space that is needed is known.
        job.check_space(total, 0).await?;
    }
    progress.begin(&format!("fetching {} from {}", job.name, host(response.url())), total, Unit::Bytes);
    progress.position(part.length());
    let mut body = response.bytes_stream();
    let mut pending = Vec::with_capacity(WRITE_CHUNK);
    let mut accident = None;
    loop {
        let chunk = match body.next().await {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => {
                accident = Some(SourceError::http(&error));
                break;
            }
            None => break,
        };
        let so_far = part.length() + (pending.len() + chunk.len()) as u64;
        if job.size.is_some_and(|size| so_far > size) {
            progress.end("failed");
            return Err(SourceError::TooLong { expected: job.size.unwrap_or(so_far) });
        }
        pending.extend_from_slice(&chunk);
        progress.position(so_far);
        if pending.len() >= WRITE_CHUNK {
            (part, pending) = write(part, pending).await?;
        }
    }
    (part, _) = write(part, pending).await?;
    if accident.is_none() && total.is_some_and(|total| part.length() < total) {
        accident = Some(SourceError::Cut { received: part.length(), expected: total.unwrap_or(0) });
    }
    Ok(match accident {
        Some(accident) => {
            progress.end("interrupted");
            Attempt::Again(part, accident)
        }
        None => {
            progress.end("done");
            Attempt::Complete(part)
        }
    })
}

async fn write(mut part: Part, mut pending: Vec<u8>) -> Result<(Part, Vec<u8>), SourceError> {
    blocking(move || {
        part.append(&pending)?;
        pending.clear();
        Ok((part, pending))
    })
    .await
}

fn host(url: &reqwest::Url) -> String {
    url.host_str().unwrap_or("?").to_owned()
}
