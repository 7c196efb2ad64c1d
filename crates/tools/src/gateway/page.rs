//! Pages of lists. A cursor names the last entry of its page, so it stays good while entries come and go.

use rmcp::ErrorData;

/// Entries of a page.
pub(super) const PAGE: usize = 200;
/// Longest cursor worth reading, in bytes: names and URIs are shorter.
const MAX_CURSOR: usize = 16 * 1024;

/// The entries after `cursor`, at most a page, and the cursor of the next page. `list` says which list it is, so that the
/// cursor of one is none of another.
///
/// # Errors
/// `-32602` when the cursor is not one that was given out for this list.
pub(super) fn cut<T>(
    mut entries: Vec<T>,
    key: impl Fn(&T) -> &str,
    list: &str,
    cursor: Option<&str>,
) -> Result<(Vec<T>, Option<String>), ErrorData> {
    let after = cursor.map(|cursor| read(list, cursor)).transpose()?;
    if !entries.is_sorted_by(|a, b| key(a) <= key(b)) {
        entries.sort_by(|a, b| key(a).cmp(key(b)));
    }
    let begin = after.map_or(0, |after| entries.partition_point(|entry| key(entry) <= after.as_str()));
    let end = entries.len().min(begin + PAGE);
    let more = end < entries.len();
    entries.truncate(end);
    let page = entries.split_off(begin);
    let next = page.last().filter(|_| more).map(|last| write(list, key(last)));
    Ok((page, next))
}

fn write(list: &str, key: &str) -> String {
    format!("{list}/{key}").bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn read(list: &str, cursor: &str) -> Result<String, ErrorData> {
    let text = (cursor.len() <= MAX_CURSOR).then(|| decode(cursor)).flatten();
    let key = text.as_deref().and_then(|text| text.strip_prefix(list)?.strip_prefix('/'));
    key.map(ToOwned::to_owned).ok_or_else(|| ErrorData::invalid_params("this cursor is not one of this list", None))
}

fn decode(hex: &str) -> Option<String> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    String::from_utf8(bytes.collect::<Option<_>>()?).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn names(range: std::ops::Range<usize>) -> Vec<String> {
        range.map(|n| format!("tool-{n:05}")).collect()
    }

    #[test]
    fn pages_cover_a_list_that_changes_between_them() {
        let (first, next) = cut(names(0..450), String::as_str, "tools", None).unwrap();
        assert_eq!((first.len(), first[199].as_str()), (200, "tool-00199"));
        // The entry that the cursor names is gone, and one before it is new.
        let mut changed = names(0..450);
        changed.remove(199);
        changed.push("tool-00000a".to_owned());
        let (second, next) = cut(changed, String::as_str, "tools", next.as_deref()).unwrap();
        assert_eq!((second.len(), second[0].as_str()), (200, "tool-00200"));
        let (third, next) = cut(names(0..450), String::as_str, "tools", next.as_deref()).unwrap();
        assert_eq!((third.len(), next), (50, None));
    }

    #[test]
    fn a_cursor_of_something_else_is_refused() {
        let (_, next) = cut(names(0..300), String::as_str, "tools", None).unwrap();
        let next = next.unwrap();
        for wrong in ["", "zz", "é", "7", &next[1..], &"61".repeat(10_000), "ff"] {
            let error = cut(names(0..300), String::as_str, "tools", Some(wrong)).unwrap_err();
            assert_eq!(error.code.0, -32602, "{wrong}");
        }
        assert!(cut(names(0..300), String::as_str, "prompts", Some(&next)).is_err());
    }

    proptest! {
        #[test]
        fn every_entry_is_on_exactly_one_page(names in prop::collection::btree_set(".{0,12}", 0..900)) {
            let all: Vec<String> = names.iter().rev().cloned().collect();
            let (mut seen, mut cursor) = (Vec::new(), None);
            loop {
                let (page, next) = cut(all.clone(), String::as_str, "x", cursor.as_deref()).unwrap();
                seen.extend(page);
                cursor = next;
                if cursor.is_none() {
                    break;
                }
            }
            prop_assert_eq!(seen.len(), names.len());
            prop_assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), names);
        }
    }
}
