//! Reading primitives that never read, allocate or seek past the end of the file.

use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};

use super::GgufError;

/// A little-endian reader that knows how much of the file is left.
pub(super) struct Reader<R> {
    inner: BufReader<R>,
    position: u64,
    length: u64,
}

impl<R: Read + Seek> Reader<R> {
    pub(super) fn new(mut inner: R) -> Result<Self, GgufError> {
        let length = inner.seek(SeekFrom::End(0))?;
        inner.seek(SeekFrom::Start(0))?;
        Ok(Self { inner: BufReader::with_capacity(64 << 10, inner), position: 0, length })
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    fn remaining(&self) -> u64 {
        self.length - self.position
    }

    /// Refuses a count that could not be in what is left, so a hostile count allocates nothing.
    pub(super) fn claim(&self, count: u64, each: u64) -> Result<u64, GgufError> {
        match count.checked_mul(each) {
            Some(bytes) if bytes <= self.remaining() => Ok(bytes),
            _ => Err(self.cut()),
        }
    }

    fn cut(&self) -> GgufError {
        GgufError::CutInHeader { actual: self.length }
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut buffer = [0; N];
        self.fill(&mut buffer)?;
        Ok(buffer)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), GgufError> {
        self.claim(buffer.len() as u64, 1)?;
        match self.inner.read_exact(buffer) {
            Ok(()) => {
                self.position += buffer.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(self.cut()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    pub(super) fn skip(&mut self, bytes: u64) -> Result<(), GgufError> {
        self.claim(bytes, 1)?;
        let offset = i64::try_from(bytes).map_err(|_| self.cut())?;
        self.inner.seek_relative(offset)?;
        self.position += bytes;
        Ok(())
    }

    /// A string of at most `most` bytes; a longer one is an error.
    pub(super) fn string(&mut self, what: &'static str, most: u64) -> Result<String, GgufError> {
        let length = self.u64()?;
        self.claim(length, 1)?;
        if length > most {
            return Err(GgufError::TooLong { what, length, most });
        }
        // `most` is far below the address space, and the file holds as many bytes.
        let mut buffer = vec![0; length as usize];
        self.fill(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer).into_owned())
    }

    pub(super) fn skip_string(&mut self) -> Result<(), GgufError> {
        let length = self.u64()?;
        self.skip(length)
    }
}
