//! One file of the journal, read as systemd's documentation of the format describes it.
//!
//! journald may write while this reads. It adds an entry's data first, then the entry, then counts it; so whatever the counters
//! cover is complete. Everything is read with `pread`: a file cut short under a memory map would end the process.
//!
//! Source: <https://systemd.io/JOURNAL_FILE_FORMAT/>.

use std::fs::File;
use std::hash::Hasher;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use siphasher::sip::SipHasher24;

use super::FIELD_MAX;

/// Smallest header with all that is needed here (systemd 187).
const HEADER_MIN: u64 = 224;
const HEADER_LEN: usize = 224;
/// Features without which objects cannot be read rightly: the lowest five are known.
const KNOWN_FEATURES: u32 = 0b1_1111;
const FEATURE_KEYED: u32 = 1 << 2;
const FEATURE_COMPACT: u32 = 1 << 4;
/// `STATE_ARCHIVED`: journald will not write to it again. The other states come and go with its syncs.
const STATE_ARCHIVED: u8 = 2;

const OBJECT_DATA: u8 = 1;
const OBJECT_ENTRY: u8 = 3;
const OBJECT_ENTRY_ARRAY: u8 = 6;
const COMPRESSED_ZSTD: u8 = 1 << 2;
const COMPRESSED_ANY: u8 = 0b111;
/// What is read of an object at once; most fit.
const CHUNK: usize = 512;
/// Largest object looked at; journald's own default limit for a field is 768 MiB, but such a field is a core dump.
const OBJECT_MAX: u64 = 1 << 30;
/// Most compressed bytes read of one field.
const COMPRESSED_MAX: usize = 1 << 20;
/// Fields of one entry; journald takes 1024.
const FIELDS_MAX: u64 = 1024;
/// Steps along a chain of entry arrays (they double in size) or of a hash bucket; longer ones are damage.
const CHAIN_MAX: usize = 100_000;

/// What the file's header says now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) archived: bool,
    pub(super) seqnum_id: [u8; 16],
    pub(super) entries: u64,
    pub(super) tail_realtime: u64,
    entry_array: u64,
}

/// An entry without its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Raw {
    pub(super) seqnum: u64,
    /// Microseconds since 1970.
    pub(super) realtime: u64,
    /// Microseconds since boot.
    pub(super) monotonic: u64,
    pub(super) boot: [u8; 16],
    /// Where its fields are.
    pub(super) data: Vec<u64>,
}

/// An open file of the journal.
#[derive(Debug)]
pub(super) struct JournalFile {
    file: File,
    /// What journald gave it when it made it; renaming does not change it.
    pub(super) id: [u8; 16],
    compact: bool,
    keyed: bool,
    hash_table: u64,
    hash_buckets: u64,
}

/// Where the entries of something are: the arrays that list them, oldest first.
#[derive(Debug, Default)]
pub(super) struct Listing {
    first: Option<u64>,
    arrays: Vec<Array>,
    entries: u64,
}

#[derive(Debug, Clone, Copy)]
struct Array {
    offset: u64,
    before: u64,
    capacity: u64,
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn id(bytes: &[u8], at: usize) -> [u8; 16] {
    bytes.get(at..at + 16).and_then(|part| part.try_into().ok()).unwrap_or_default()
}

/// A place in the file; one that no file is long enough for is damage.
fn after(offset: u64, bytes: u64) -> io::Result<u64> {
    offset.checked_add(bytes).ok_or_else(|| damaged("a place beyond every end"))
}

impl JournalFile {
    /// Opens a file; the error tells what is not as it should be.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut header = [0; HEADER_LEN];
        file.read_exact_at(&mut header, 0)?;
        if &header[..8] != b"LPKSHHRH" || le64(&header, 88) < HEADER_MIN {
            return Err(damaged("not a file of the journal"));
        }
        let features = le32(&header, 12);
        if features & !KNOWN_FEATURES != 0 {
            return Err(damaged("written by a newer systemd in a way that is not known"));
        }
        Ok(Self {
            file,
            id: id(&header, 24),
            compact: features & FEATURE_COMPACT != 0,
            keyed: features & FEATURE_KEYED != 0,
            hash_table: le64(&header, 104),
            hash_buckets: le64(&header, 112) / 16,
        })
    }

    /// What the header says now.
    pub(super) fn header(&self) -> io::Result<Header> {
        let mut header = [0; HEADER_LEN];
        self.file.read_exact_at(&mut header, 0)?;
        Ok(Header {
            archived: header[16] == STATE_ARCHIVED,
            seqnum_id: id(&header, 72),
            entries: le64(&header, 152),
            tail_realtime: le64(&header, 192),
            entry_array: le64(&header, 176),
        })
    }

    /// Reads up to `want` bytes of an object into `buffer`; gives its size.
    fn object(&self, offset: u64, kind: u8, want: usize, buffer: &mut Vec<u8>) -> io::Result<u64> {
        if offset == 0 || !offset.is_multiple_of(8) {
            return Err(damaged("an object that is nowhere"));
        }
        buffer.resize(CHUNK.min(want), 0);
        let mut have = 0;
        while have < buffer.len() {
            match self.file.read_at(&mut buffer[have..], after(offset, have as u64)?)? {
                0 => break,
                count => have += count,
            }
        }
        buffer.truncate(have);
        let size = le64(buffer, 8);
        if have < 16 || buffer[0] != kind || !(16..=OBJECT_MAX).contains(&size) {
            return Err(damaged("an object of another kind"));
        }
        let wanted = usize::try_from(size).unwrap_or(usize::MAX).min(want);
        if wanted > have {
            if have < CHUNK.min(want) {
                return Err(damaged("an object beyond the end"));
            }
            buffer.resize(wanted, 0);
            self.file.read_exact_at(&mut buffer[have..], after(offset, have as u64)?)?;
        } else {
            buffer.truncate(wanted);
        }
        Ok(size)
    }

    /// An entry, without its fields.
    pub(super) fn entry(&self, offset: u64) -> io::Result<Raw> {
        let mut bytes = Vec::new();
        let item = if self.compact { 4 } else { 16 };
        let size = self.object(offset, OBJECT_ENTRY, 64 + 16 * FIELDS_MAX as usize, &mut bytes)?;
        let count = (size.saturating_sub(64) / item).min(FIELDS_MAX) as usize;
        let data = (0..count).map(|index| match self.compact {
            true => u64::from(le32(&bytes, 64 + 4 * index)),
            false => le64(&bytes, 64 + 16 * index),
        });
        Ok(Raw {
            seqnum: le64(&bytes, 16),
            realtime: le64(&bytes, 24),
            monotonic: le64(&bytes, 32),
            boot: id(&bytes, 40),
            data: data.filter(|&offset| offset != 0).collect(),
        })
    }

    /// A field as `NAME=value`, and whether more followed than is kept.
    pub(super) fn field(&self, offset: u64) -> io::Result<(Vec<u8>, bool)> {
        let mut bytes = Vec::new();
        let start = if self.compact { 72 } else { 64 };
        let size = self.object(offset, OBJECT_DATA, start + FIELD_MAX, &mut bytes)?;
        match bytes[1] & COMPRESSED_ANY {
            0 => {
                let cut = size > bytes.len() as u64;
                Ok((bytes.split_off(start.min(bytes.len())), cut))
            }
            COMPRESSED_ZSTD => {
                let size = self.object(offset, OBJECT_DATA, start + COMPRESSED_MAX, &mut bytes)?;
                let short = size > bytes.len() as u64;
                let packed = bytes.get(start..).unwrap_or_default();
                let mut decoder = ruzstd::decoding::StreamingDecoder::new(packed)
                    .map_err(|_| damaged("a field that cannot be unpacked"))?;
                let mut text = vec![0; FIELD_MAX + 1];
                let mut have = 0;
                while have < text.len() {
                    match decoder.read(&mut text[have..]) {
                        Ok(0) => break,
                        Ok(count) => have += count,
                        // What came before the cut is good.
                        Err(_) if short => break,
                        Err(error) => return Err(error),
                    }
                }
                let cut = short || have > FIELD_MAX;
                text.truncate(have.min(FIELD_MAX));
                Ok((text, cut))
            }
            // Only journald built without zstd writes XZ or LZ4.
            _ => Err(damaged("a field packed in a way that is not known")),
        }
    }

    /// All entries.
    pub(super) fn all(&self) -> io::Result<Listing> {
        let header = self.header()?;
        self.listing(None, header.entry_array, header.entries)
    }

    /// The entries with this field (`NAME=value`). None: the file is of an old kind in which it cannot be looked up.
    pub(super) fn with(&self, field: &[u8]) -> io::Result<Option<Listing>> {
        if !self.keyed || self.hash_buckets == 0 {
            return Ok(None);
        }
        let mut hasher = SipHasher24::new_with_key(&self.id);
        hasher.write(field);
        let hash = hasher.finish();
        let mut bucket = [0; 8];
        self.file.read_exact_at(&mut bucket, after(self.hash_table, 16 * (hash % self.hash_buckets))?)?;
        let mut offset = u64::from_le_bytes(bucket);
        let start = if self.compact { 72 } else { 64 };
        let mut bytes = Vec::new();
        for _ in 0..CHAIN_MAX {
            if offset == 0 {
                return Ok(Some(Listing::default()));
            }
            let size = self.object(offset, OBJECT_DATA, start + field.len() + 1, &mut bytes)?;
            let same = le64(&bytes, 16) == hash && bytes[1] & COMPRESSED_ANY == 0;
            if same && size == (start + field.len()) as u64 && bytes.get(start..) == Some(field) {
                let first = le64(&bytes, 40);
                return self
                    .listing(Some(first).filter(|&first| first != 0), le64(&bytes, 48), le64(&bytes, 56))
                    .map(Some);
            }
            offset = le64(&bytes, 24);
        }
        Err(damaged("a chain without end"))
    }

    fn listing(&self, first: Option<u64>, mut array: u64, entries: u64) -> io::Result<Listing> {
        let mut arrays = Vec::new();
        let mut before = u64::from(first.is_some());
        let item = if self.compact { 4 } else { 8 };
        let mut bytes = Vec::new();
        while array != 0 && before < entries && arrays.len() < CHAIN_MAX {
            let size = self.object(array, OBJECT_ENTRY_ARRAY, 24, &mut bytes)?;
            let capacity = size.saturating_sub(24) / item;
            arrays.push(Array { offset: array, before, capacity });
            before = before.saturating_add(capacity);
            array = le64(&bytes, 16);
        }
        Ok(Listing { first, arrays, entries: entries.min(before) })
    }

    /// Where entry number `index` of a listing is.
    pub(super) fn nth(&self, listing: &Listing, index: u64) -> io::Result<u64> {
        if index == 0
            && let Some(first) = listing.first
        {
            return Ok(first);
        }
        // Most questions are about the end.
        let array = listing.arrays.iter().rev().find(|array| array.before <= index);
        let array = array.ok_or_else(|| damaged("an entry that is not listed"))?;
        let place = index - array.before;
        if place >= array.capacity {
            return Err(damaged("an entry that is not listed"));
        }
        let offset = if self.compact {
            let mut bytes = [0; 4];
            self.file.read_exact_at(&mut bytes, after(array.offset, 24 + 4 * place)?)?;
            u64::from(u32::from_le_bytes(bytes))
        } else {
            let mut bytes = [0; 8];
            self.file.read_exact_at(&mut bytes, after(array.offset, 24 + 8 * place)?)?;
            u64::from_le_bytes(bytes)
        };
        if offset == 0 { Err(damaged("an entry that is not there")) } else { Ok(offset) }
    }
}

impl Listing {
    /// How many entries there are.
    pub(super) fn len(&self) -> u64 {
        self.entries
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn header(features: u32) -> Vec<u8> {
        let mut bytes = vec![0; 272];
        bytes[..8].copy_from_slice(b"LPKSHHRH");
        bytes[12..16].copy_from_slice(&features.to_le_bytes());
        bytes[88..96].copy_from_slice(&272_u64.to_le_bytes());
        bytes
    }

    #[test]
    fn what_is_no_journal_is_refused() {
        assert!(JournalFile::open(file_of(b"").path()).is_err());
        assert!(JournalFile::open(file_of(&[7; 4096]).path()).is_err());
        let newer = JournalFile::open(file_of(&header(1 << 5)).path()).unwrap_err();
        assert!(newer.to_string().contains("newer systemd"), "{newer}");
        let empty = file_of(&header(FEATURE_KEYED | FEATURE_COMPACT));
        let journal = JournalFile::open(empty.path()).unwrap();
        assert_eq!(journal.all().unwrap().len(), 0);
        assert!(journal.with(b"A=b").unwrap().is_none());
    }

    proptest! {
        #[test]
        fn a_damaged_file_is_an_error_and_no_panic(
            features in 0_u32..32,
            noise in proptest::collection::vec(any::<u8>(), 0..2000),
            numbers in proptest::collection::vec(0_u64..320, 1..40),
            offset in 0_u64..300,
        ) {
            let mut bytes = header(features);
            for (place, number) in (104..216).step_by(8).zip(&numbers) {
                bytes[place..place + 8].copy_from_slice(&(number * 8).to_le_bytes());
            }
            bytes.extend(numbers.iter().flat_map(|number| (number * 8).to_le_bytes()));
            bytes.extend(noise);
            let file = file_of(&bytes);
            if let Ok(journal) = JournalFile::open(file.path()) {
                let _ = journal.entry(offset * 8);
                let _ = journal.field(offset * 8);
                let _ = journal.with(b"_SYSTEMD_UNIT=a.service");
                if let Ok(all) = journal.all() {
                    let _ = journal.nth(&all, all.len().saturating_sub(1));
                    let _ = journal.nth(&all, 0);
                }
            }
        }
    }
}
