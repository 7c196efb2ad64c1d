//! What the tests of several modules need.
#![allow(clippy::unwrap_used)]

use axum::response::Response;
use http_body_util::BodyExt;
use lares_store::keys::{Key, Role};

use crate::secret::Secret;

pub(crate) fn key(name: &str, role: Role) -> (Secret, Key) {
    let secret = Secret::generate().unwrap();
    let key = Key::new(name, role, secret.hash());
    (secret, key)
}

pub(crate) async fn body(response: Response) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}
