//! The secret text of an API key: how it is made, told from a typing mistake, hashed, and kept in a file.
//!
//! `lares_` + 43 characters of base64url (32 random bytes) + 6 characters of base64url (the CRC-32 of those 43). The
//! CRC proves nothing about who made the key; it lets the gate say "mistyped" instead of "unknown".
//!
//! The file functions block: call them before the runtime serves, or through `spawn_blocking`.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rand::TryRngCore;
use sha2::{Digest, Sha256};

/// What every key of Lares begins with; lets people and secret scanners recognise one.
const PREFIX: &str = "lares_";
/// Random bytes in a key: 256 bits, far beyond guessing.
const RANDOM_BYTES: usize = 32;
/// Characters that encode [`RANDOM_BYTES`].
const RANDOM_CHARS: usize = 43;
/// Characters that encode the 4 bytes of the CRC-32.
const CHECKSUM_CHARS: usize = 6;
/// Longest secret file read; whatever is longer is not a secret but a mistake in a path.
const FILE_MAX: u64 = 16 * 1024;

/// A secret text. `Debug` masks it and there is no `Display`, so it does not reach a log by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Makes a new key from 32 random bytes of the operating system.
    ///
    /// # Errors
    /// [`SecretError::Entropy`] when the system has no randomness to give.
    pub fn generate() -> Result<Self, SecretError> {
        let mut random = [0_u8; RANDOM_BYTES];
        rand::rngs::OsRng.try_fill_bytes(&mut random).map_err(|e| SecretError::Entropy(e.to_string()))?;
        let mut text = String::with_capacity(PREFIX.len() + RANDOM_CHARS + CHECKSUM_CHARS);
        text.push_str(PREFIX);
        let body = base64url(&random);
        text.push_str(&body);
        text.push_str(&checksum(&body));
        Ok(Self(text))
    }

    /// Takes a text for a key if it has the form of one. It says nothing about whether the key is known.
    ///
    /// # Errors
    /// What is wrong with the form; no message repeats the text.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let body = text.strip_prefix(PREFIX).ok_or(SecretError::Prefix)?;
        if !body.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Err(SecretError::Alphabet);
        }
        if body.len() != RANDOM_CHARS + CHECKSUM_CHARS {
            return Err(SecretError::Length {
                expected: PREFIX.len() + RANDOM_CHARS + CHECKSUM_CHARS,
                found: text.len(),
            });
        }
        let (random, sum) = body.split_at(RANDOM_CHARS);
        if checksum(random) != sum {
            return Err(SecretError::Checksum);
        }
        Ok(Self(text.to_owned()))
    }

    /// The text itself, for the one place that sends or prints it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// SHA-256 of the whole text: what the store keeps and the gate looks up.
    ///
    /// A slow, salted hash protects what people can remember. 256 random bits cannot be guessed at any speed, so a fast
    /// hash loses nothing and keeps a request cheap.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// What can be wrong with a secret or its file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The operating system gave no randomness.
    #[error("the operating system gave no random bytes ({0}); no key was made")]
    Entropy(String),
    /// Not a key of Lares at all.
    #[error("not a Lares key: keys begin with `lares_`")]
    Prefix,
    /// A character that no key has.
    #[error("mistyped key: only letters, digits, `-` and `_` occur in a key")]
    Alphabet,
    /// Cut off, or something was added.
    #[error("mistyped key: {found} characters where a key has {expected}; copy it whole")]
    Length {
        /// Characters of a key.
        expected: usize,
        /// Characters found.
        found: usize,
    },
    /// The checksum does not fit.
    #[error("mistyped key: its checksum does not fit; copy it again")]
    Checksum,
    /// Others could read the file.
    #[error("{} can be read by others (mode {mode:04o}); run `chmod 600 {}`", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is there but what is in it is no secret.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with what it holds.
        problem: String,
    },
    /// The file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: `read`, `write`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Writes a key to a file that only its owner can read (mode 0600), whole or not at all. An older file is replaced; a
/// missing parent directory is made with mode 0700. Blocks.
///
/// # Errors
/// [`SecretError::Io`]; the old file, if any, is then as it was.
pub fn write(path: &Path, secret: &Secret) -> Result<(), SecretError> {
    let failed = |action, source| SecretError::Io { action, path: path.to_owned(), source };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(|e| failed("make the directory of", e))?;
    let mut name = path.file_name().map_or_else(Default::default, ToOwned::to_owned);
    name.push(format!(".{}.new", uuid::Uuid::now_v7()));
    let unfinished = parent.join(name);
    let written = write_new(&unfinished, secret)
        .and_then(|()| std::fs::rename(&unfinished, path))
        .and_then(|()| File::open(parent)?.sync_all());
    if let Err(error) = written {
        // The rename may already have happened; then there is nothing left to remove.
        let _ = std::fs::remove_file(&unfinished);
        return Err(failed("write", error));
    }
    Ok(())
}

fn write_new(path: &Path, secret: &Secret) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(secret.expose().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

/// Reads a Lares key from a file that only its owner can read. Blocks.
///
/// # Errors
/// [`SecretError::Exposed`] when group or others can read it, [`SecretError::Content`] when it holds no key.
pub fn read(path: &Path) -> Result<Secret, SecretError> {
    let text = read_foreign(path)?;
    Secret::parse(text.expose())
        .map_err(|error| SecretError::Content { path: path.to_owned(), problem: error.to_string() })
}

/// Reads a secret that is not a Lares key, such as another server's API key: one line of any text, in a file that only
/// its owner can read. Blocks.
///
/// # Errors
/// [`SecretError::Exposed`] when group or others can read it, [`SecretError::Content`] when it is empty or not one line.
pub fn read_foreign(path: &Path) -> Result<Secret, SecretError> {
    let failed = |source| SecretError::Io { action: "read", path: path.to_owned(), source };
    let wrong = |problem: &str| SecretError::Content { path: path.to_owned(), problem: problem.to_owned() };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    if mode & forbidden_bits(path, std::env::var_os("CREDENTIALS_DIRECTORY").as_deref().map(Path::new)) != 0 {
        return Err(SecretError::Exposed { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(wrong("longer than any secret; is this the right file?"));
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong("not text; is this the right file?"))?;
    let text = text.trim();
    if text.is_empty() {
        return Err(wrong("empty; write the secret into it"));
    }
    if text.contains(['\n', '\r']) {
        return Err(wrong("more than one line; a secret file holds the secret and nothing else"));
    }
    Ok(Secret(text.to_owned()))
}

/// Permission bits that must not be set. systemd grants the service's user its credentials through an access control
/// list, whose mask shows up as the group's bits: there, 0440 is as private as 0400.
fn forbidden_bits(path: &Path, credentials: Option<&Path>) -> u32 {
    match credentials {
        Some(directory) if path.starts_with(directory) => 0o007,
        _ => 0o077,
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// base64url without padding (RFC 4648, section 5).
fn base64url(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, &b| group << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            let six = group >> (18 - 6 * place) & 0x3f;
            text.push(char::from(ALPHABET[six as usize]));
        }
    }
    text
}

/// CRC-32 (IEEE 802.3) of a text, in base64url.
fn checksum(text: &str) -> String {
    let crc = !text.bytes().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    });
    base64url(&crc.to_be_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn encodings_agree_with_their_standards() {
        for (bytes, text) in [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64url(bytes.as_bytes()), text);
        }
        assert_eq!(base64url(&[0xfb, 0xff, 0xfe]), "-__-");
        assert_eq!(checksum("123456789"), base64url(&0xCBF4_3926_u32.to_be_bytes()), "the check value of CRC-32");
    }

    #[test]
    fn a_new_key_parses_and_no_two_are_equal() {
        let (one, two) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        assert_eq!(one.expose().len(), 55);
        assert_eq!(Secret::parse(one.expose()).unwrap(), one);
        assert_ne!(one.hash(), two.hash());
    }

    #[test]
    fn debug_shows_nothing_of_the_secret() {
        assert_eq!(format!("{:?}", Secret::generate().unwrap()), "Secret(***)");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_panic_and_never_repeated(text in "\\PC{0,80}") {
            if let Err(error) = Secret::parse(&text) && text.len() > 12 {
                prop_assert!(!error.to_string().contains(&text));
            }
        }

        #[test]
        fn one_wrong_character_is_called_mistyped(place in 6_usize..55, other in 0_usize..64) {
            let key = Secret::generate().unwrap();
            let mut text = key.expose().as_bytes().to_vec();
            let replaced = std::mem::replace(&mut text[place], ALPHABET[other]);
            prop_assume!(replaced != ALPHABET[other]);
            let error = Secret::parse(std::str::from_utf8(&text).unwrap()).unwrap_err();
            prop_assert!(matches!(error, SecretError::Checksum), "{error}");
        }

        #[test]
        fn a_key_cut_short_is_called_mistyped(kept in 6_usize..55) {
            let key = Secret::generate().unwrap();
            let error = Secret::parse(&key.expose()[..kept]).unwrap_err();
            let expected = matches!(error, SecretError::Length { expected: 55, .. });
            prop_assert!(expected, "{error}");
        }
    }

    #[test]
    fn a_key_survives_its_file_and_only_the_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/admin.key");
        let (first, second) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        write(&path, &first).unwrap();
        write(&path, &second).unwrap();
        assert_eq!(read(&path).unwrap(), second);
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(path.parent().unwrap().metadata().unwrap().mode() & 0o777, 0o700);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing unfinished is left");
    }

    #[test]
    fn a_file_others_can_read_is_refused_with_the_command_that_helps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write(&path, &Secret::generate().unwrap()).unwrap();
        for mode in [0o640, 0o604, 0o660] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("chmod 600 {}", path.display())), "{error}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        assert!(read(&path).is_ok());
    }

    #[test]
    fn group_bits_are_an_access_mask_below_the_credentials_directory() {
        let credentials = Some(Path::new("/run/credentials/lares.service"));
        assert_eq!(forbidden_bits(Path::new("/run/credentials/lares.service/key"), credentials), 0o007);
        assert_eq!(forbidden_bits(Path::new("/run/credentials/lares.service-not/key"), credentials), 0o077);
        assert_eq!(forbidden_bits(Path::new("/etc/key"), None), 0o077);
    }

    #[test]
    fn a_file_that_holds_no_secret_says_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for (content, said) in [("\n", "empty"), ("one\ntwo\n", "more than one line"), ("sk-other\n", "lares_")] {
            write_new(&path, &Secret(content.to_owned())).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains(path.to_str().unwrap()), "{error}");
            std::fs::remove_file(&path).unwrap();
        }
        write_new(&path, &Secret("sk-other".to_owned())).unwrap();
        assert_eq!(read_foreign(&path).unwrap().expose(), "sk-other");
    }
}
