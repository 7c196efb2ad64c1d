//! Secrets that are in files, and keeping them out of what is said.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncReadExt;

/// Largest secret.
const MAX_SECRET: u64 = 64 << 10;
/// A file on a dead network file system is not waited for longer.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter ones would blot out ordinary words.
const SHORTEST: usize = 6;

/// The value of each file, without the newline at its end. The text of an error names the file, never what is in it.
pub(super) async fn read_all(files: &BTreeMap<String, PathBuf>) -> Result<BTreeMap<String, String>, String> {
    let mut values = BTreeMap::new();
    for (name, path) in files {
        let value = tokio::time::timeout(READ_TIMEOUT, read(path))
            .await
            .unwrap_or_else(|_| Err(format!("{} could not be read within {READ_TIMEOUT:?}", path.display())))?;
        values.insert(name.clone(), value);
    }
    Ok(values)
}

async fn read(path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut value = Vec::new();
    file.take(MAX_SECRET + 1).read_to_end(&mut value).await.map_err(failed)?;
    if value.len() as u64 > MAX_SECRET {
        return Err(format!("{} is larger than {MAX_SECRET} bytes", path.display()));
    }
    let mut value = String::from_utf8(value).map_err(|_| format!("{} is not text", path.display()))?;
    if value.ends_with('\n') {
        value.pop();
    }
    Ok(value)
}

/// `text` with every secret in it replaced.
pub(super) fn without(text: &str, secrets: &[String]) -> String {
    let long = secrets.iter().filter(|secret| secret.len() >= SHORTEST);
    long.fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "[secret]"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn one_newline_is_not_part_of_a_secret_and_errors_name_the_file_only() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, text: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            BTreeMap::from([(name.to_owned(), path)])
        };
        assert_eq!(read_all(&at("key", b"s3cret\n\n")).await.unwrap()["key"], "s3cret\n");
        assert_eq!(read_all(&at("bare", b"s3cret")).await.unwrap()["bare"], "s3cret");
        let large = vec![b'x'; 70 << 10];
        for (name, text) in [("binary", &b"\xff\xfe"[..]), ("large", &large)] {
            let error = read_all(&at(name, text)).await.unwrap_err();
            assert!(error.contains(name) && !error.contains("xxx"), "{error}");
        }
        let missing = BTreeMap::from([("k".to_owned(), dir.path().join("missing"))]);
        assert!(read_all(&missing).await.unwrap_err().contains("missing"));
    }

    #[test]
    fn secrets_are_replaced_and_short_ones_are_not_looked_for() {
        let secrets = ["hunter22".to_owned(), "a".to_owned()];
        assert_eq!(without("a hunter22 and hunter22", &secrets), "a [secret] and [secret]");
    }
}
