//! What an approval of a server is for, in 64 digits that tell nobody what went into them.
//!
//! An environment or a header may hold a secret that is short or well known, and a fingerprint is shown to everybody who
//! may look. So it is no plain hash but HMAC-SHA256 with a key that never leaves this installation: the same server gives
//! the same digits here, others elsewhere, and nobody can try secrets out on them.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use sha2::{Digest, Sha256};

/// Bytes of the key.
const KEY: usize = 32;
/// Bytes that SHA-256 takes at a time (RFC 2104: B).
const BLOCK: usize = 64;
/// Where the key is, below the directory for state.
const FILE: &str = "fingerprint.key";

/// The key of this installation.
#[derive(Clone)]
pub struct FingerprintKey([u8; KEY]);

impl fmt::Debug for FingerprintKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FingerprintKey(…)")
    }
}

impl FingerprintKey {
    /// The key that is kept in `directory`, made at the first time. Without it every approval of a server that was found
    /// would be asked for again.
    ///
    /// # Errors
    /// When it cannot be read or made, or what is there is no key.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join(FILE);
        if let Some(key) = Self::read(&path)? {
            return Ok(key);
        }
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let key: [u8; KEY] = rand::random();
        // Written whole under another name first: whoever starts at the same time finds all of it or nothing.
        let draft = directory.join(format!("{FILE}.{}", uuid::Uuid::now_v7().simple()));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        let made = file.write_all(&key).and_then(|()| file.sync_all()).and_then(|()| fs::hard_link(&draft, &path));
        let _ = fs::remove_file(&draft);
        match made {
            Ok(()) => Ok(Self(key)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Self::read(&path)?.ok_or_else(|| io::Error::other("it came and went"))
            }
            Err(error) => Err(error),
        }
    }

    fn read(path: &Path) -> io::Result<Option<Self>> {
        let mut key = Vec::new();
        match fs::File::open(path) {
            Ok(file) => file.take(KEY as u64 + 1).read_to_end(&mut key)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let wrong = |_| io::Error::new(io::ErrorKind::InvalidData, format!("it does not hold {KEY} bytes"));
        key.try_into().map(|key| Some(Self(key))).map_err(wrong)
    }
}

impl From<[u8; KEY]> for FingerprintKey {
    fn from(key: [u8; KEY]) -> Self {
        Self(key)
    }
}

/// HMAC-SHA256 (RFC 2104) of what is fed to it.
struct Hmac {
    inner: Sha256,
    outer: Sha256,
}

impl Hmac {
    fn new(key: &[u8]) -> Self {
        let mut block = [0; BLOCK];
        if key.len() > BLOCK {
            block[..32].copy_from_slice(&Sha256::digest(key));
        } else {
            block[..key.len()].copy_from_slice(key);
        }
        let padded = |with: u8| Sha256::new().chain_update(block.map(|byte| byte ^ with));
        Self { inner: padded(0x36), outer: padded(0x5c) }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.inner.update(bytes);
    }

    fn finish(self) -> [u8; 32] {
        self.outer.chain_update(self.inner.finalize()).finalize().into()
    }
}

/// A fingerprint of parts, each with its length, so that no two different servers give the same bytes.
pub(super) struct Fingerprint(Hmac);

impl Fingerprint {
    pub(super) fn new(key: &FingerprintKey) -> Self {
        let mut digest = Self(Hmac::new(&key.0));
        digest.text("lares tool server 2");
        digest
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub(super) fn list<'a, T: AsRef<OsStr> + 'a + ?Sized>(&mut self, items: impl Iterator<Item = &'a T>) {
        let items: Vec<&T> = items.collect();
        self.0.update(&(items.len() as u64).to_be_bytes());
        items.iter().for_each(|item| self.bytes(item.as_ref().as_encoded_bytes()));
    }

    pub(super) fn pairs<'a>(&mut self, pairs: impl Iterator<Item = (&'a str, &'a [u8])>) {
        let pairs: Vec<_> = pairs.collect();
        self.0.update(&(pairs.len() as u64).to_be_bytes());
        for (name, value) in pairs {
            self.text(name);
            self.bytes(value);
        }
    }

    pub(super) fn finish(self) -> String {
        self.0.finish().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn hmac(key: &[u8], data: &[u8]) -> String {
        let mut hmac = Hmac::new(key);
        // In two parts, as nothing says that it comes at once.
        let (one, two) = data.split_at(data.len() / 2);
        hmac.update(one);
        hmac.update(two);
        hmac.finish().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn it_is_the_hmac_of_rfc_4231() {
        let numbers: Vec<u8> = (1..=25).collect();
        let long =
            b"This is a test using a larger than block-size key and a larger than block-size data. The key needs \
                     to be hashed before being used by the HMAC algorithm.";
        // Section 4: test cases 1 to 4, 6 and 7; case 5 is about digests that are cut.
        for (key, data, expected) in [
            (&[0x0b; 20][..], &b"Hi There"[..], "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (&[0xaa; 20], &[0xdd; 50], "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
            (&numbers, &[0xcd; 50], "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
            (
                &[0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
            (&[0xaa; 131], long, "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2"),
        ] {
            assert_eq!(hmac(key, data), expected, "{key:?}");
        }
    }

    #[test]
    fn the_key_is_made_once_and_read_by_nobody_else() {
        let state = tempfile::tempdir().unwrap();
        let directory = state.path().join("tools");
        let key = FingerprintKey::open(&directory).unwrap();
        assert_eq!(FingerprintKey::open(&directory).unwrap().0, key.0);
        assert_ne!(FingerprintKey::open(&state.path().join("other")).unwrap().0, key.0);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join(FILE))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "no draft is left");
        assert_eq!(format!("{key:?}"), "FingerprintKey(…)");
        fs::write(directory.join(FILE), b"short").unwrap();
        assert!(FingerprintKey::open(&directory).unwrap_err().to_string().contains("32 bytes"));
    }

    #[test]
    fn daemons_that_start_together_agree() {
        let state = tempfile::tempdir().unwrap();
        let directory = state.path().join("tools");
        let keys: Vec<[u8; KEY]> = std::thread::scope(|scope| {
            let open = || FingerprintKey::open(&directory).unwrap().0;
            let started: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            started.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }
}
