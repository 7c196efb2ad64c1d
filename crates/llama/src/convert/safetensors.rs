//! The safetensors format: a JSON header that says where each tensor lies, and the tensors.
//!
//! A file may come from anywhere: every length and place is checked before it is used. What the format demands and other
//! readers rely on is demanded here: the tensors fill the data without holes and without overlaps.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::ConvertError;

/// Bytes of a header. The format allows 100 MB; a model with a thousand tensors has 100 KB.
const MAX_HEADER: u64 = 16 << 20;
/// Bytes before the header: its length.
const LENGTH: usize = 8;

/// A tensor's place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View<'a> {
    /// Elements in each dimension, the slowest first.
    pub(super) shape: Vec<u64>,
    /// Its elements, little-endian.
    pub(super) bytes: &'a [u8],
    kind: String,
}

impl View<'_> {
    /// The elements of a tensor of floats, as floats of 32 bits.
    pub(super) fn floats(&self, name: &str) -> Result<Vec<f32>, ConvertError> {
        if self.kind != "F32" {
            return Err(ConvertError::Unsupported(format!("tensor `{name}` has type {}, not F32", self.kind)));
        }
        let numbers: Vec<f32> = self.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        if numbers.iter().any(|n| !n.is_finite()) {
            return Err(ConvertError::Damaged(format!("tensor `{name}` holds values that are no numbers")));
        }
        Ok(numbers)
    }
}

#[derive(Deserialize)]
struct Place {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Bytes of an element; `None` for types that are not known here.
fn element_size(kind: &str) -> Option<u64> {
    Some(match kind {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" => 1,
        "U16" | "I16" | "F16" | "BF16" => 2,
        "U32" | "I32" | "F32" => 4,
        "U64" | "I64" | "F64" => 8,
        _ => return None,
    })
}

/// The tensors of a file by name.
pub(super) fn read(file: &[u8]) -> Result<BTreeMap<String, View<'_>>, ConvertError> {
    let damaged = |problem: String| ConvertError::Damaged(problem);
    let (length, rest) = file.split_first_chunk::<LENGTH>().ok_or_else(|| damaged("it has no header".to_owned()))?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER || length > rest.len() as u64 {
        return Err(damaged(format!("its header claims {length} bytes")));
    }
    let (header, data) = rest.split_at(length as usize);
    let in_header = |error: serde_json::Error| damaged(format!("its header: {error}"));
    let entries: BTreeMap<String, &RawValue> = serde_json::from_slice(header).map_err(in_header)?;
    let mut tensors = BTreeMap::new();
    let mut places = Vec::new();
    for (name, entry) in entries {
        // The only entry that is no tensor.
        if name == "__metadata__" {
            continue;
        }
        let place: Place = serde_json::from_str(entry.get()).map_err(in_header)?;
        let Some(size) = element_size(&place.dtype) else {
            return Err(ConvertError::Unsupported(format!("tensor `{name}` has type {}", place.dtype)));
        };
        let (start, end) = place.data_offsets;
        let expected = place.shape.iter().try_fold(size, |all, n| all.checked_mul(*n));
        let bytes = usize::try_from(start).ok().zip(usize::try_from(end).ok()).and_then(|(s, e)| data.get(s..e));
        let Some(bytes) = bytes.filter(|bytes| expected == Some(bytes.len() as u64)) else {
            return Err(damaged(format!("tensor `{name}` of {:?} lies at {start}..{end}", place.shape)));
        };
        places.push((start, end));
        tensors.insert(name, View { shape: place.shape, bytes, kind: place.dtype });
    }
    places.sort_unstable();
    let mut filled = 0;
    for (start, end) in places {
        if start != filled {
            return Err(damaged(format!("its tensors overlap or leave a hole at byte {filled} of the data")));
        }
        filled = end;
    }
    if filled != data.len() as u64 {
        return Err(damaged(format!("{} bytes of data, of which its tensors fill {filled}", data.len())));
    }
    Ok(tensors)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// A file with these tensors of floats, one after another.
    pub(in crate::convert) fn file(tensors: &[(&str, &[u64], Vec<f32>)]) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        let mut data = Vec::new();
        header.insert("__metadata__".to_owned(), serde_json::json!({ "format": "pt" }));
        for (name, shape, numbers) in tensors {
            let start = data.len();
            numbers.iter().for_each(|n| data.extend(n.to_le_bytes()));
            let place = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] });
            header.insert((*name).to_owned(), place);
        }
        with_header(&serde_json::to_vec(&header).unwrap(), &data)
    }

    fn with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
    }

    #[test]
    fn tensors_are_where_the_header_says() {
        let file = file(&[("a", &[2, 1], vec![1.0, 2.0]), ("b", &[1], vec![-0.5])]);
        let tensors = read(&file).unwrap();
        assert_eq!(tensors["a"].shape, [2, 1]);
        assert_eq!(tensors["a"].floats("a").unwrap(), [1.0, 2.0]);
        assert_eq!(tensors["b"].floats("b").unwrap(), [-0.5]);
        assert_eq!(tensors.len(), 2);
    }

    #[test]
    fn lies_about_size_and_place_are_refused() {
        let entry = |shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let refused = |header: &str, data: usize| {
            let error = read(&with_header(header.as_bytes(), &vec![0; data])).unwrap_err();
            assert!(matches!(error, ConvertError::Damaged(_) | ConvertError::Unsupported(_)), "{header}: {error}");
        };
        assert!(read(&with_header(entry("[2]", "[0,8]").as_bytes(), &[0; 8])).is_ok());
        refused(&entry("[2]", "[0,8]"), 7);
        refused(&entry("[2]", "[0,8]"), 9);
        refused(&entry("[3]", "[0,8]"), 8);
        refused(&entry("[2]", "[8,0]"), 8);
        refused(&entry("[1]", "[4,8]"), 8);
        refused(&entry("[2]", "[0,18446744073709551615]"), 8);
        refused(&entry("[4611686018427387904,4]", "[0,0]"), 0);
        refused(&entry("[2]", "[0,8]").replace("F32", "F31"), 8);
        refused(r#"{"a":{"x":"y"}}"#, 0);
        refused("[]", 0);
        let two = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
        refused(two, 6);
        let mut long = u64::MAX.to_le_bytes().to_vec();
        long.extend([b'{', b'}']);
        assert!(read(&long).is_err());
    }

    #[test]
    fn what_is_no_number_or_no_float_is_refused() {
        let nan = file(&[("a", &[1], vec![f32::NAN])]);
        assert!(matches!(read(&nan).unwrap()["a"].floats("a"), Err(ConvertError::Damaged(_))));
        let half = with_header(br#"{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}"#, &[0; 2]);
        assert!(matches!(read(&half).unwrap()["a"].floats("a"), Err(ConvertError::Unsupported(_))));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let _ = read(&with_header(&bytes, &[]));
        }

        #[test]
        fn a_damaged_file_is_read_or_refused_but_never_panics(at in 0usize..400, with in any::<u8>(), cut in 0usize..400) {
            let mut file = file(&[("a", &[2, 3], vec![1.0; 6]), ("b", &[5], vec![2.0; 5])]);
            if let Some(byte) = file.get_mut(at) {
                *byte = with;
            }
            for name in read(&file).unwrap_or_default().values() {
                let _ = name.floats("x");
            }
            file.truncate(cut);
            let _ = read(&file);
        }

        #[test]
        fn any_shape_and_place_is_checked(shape in proptest::collection::vec(any::<u64>(), 0..5), start in any::<u64>(), end in any::<u64>()) {
            let header = serde_json::json!({ "a": { "dtype": "F64", "shape": shape, "data_offsets": [start, end] } });
            if let Ok(tensors) = read(&with_header(header.to_string().as_bytes(), &[0; 64])) {
                prop_assert_eq!(tensors["a"].bytes.len(), 64);
            }
        }
    }
}
