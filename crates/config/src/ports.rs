//! Ports as people write them: `8000`, `8000-8100`.

use std::ops::RangeInclusive;

/// Reads one port or a range of ports; the error says what was wrong with the text.
///
/// # Errors
/// When it is neither, or the range ends before it begins.
pub fn parse(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || format!("`{text}` is neither a port nor a range of ports; write \"8000\" or \"8000-8100\"");
    let port = |digits: &str| digits.trim().parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(wrong);
    let range = match text.split_once('-') {
        Some((first, last)) => port(first)?..=port(last)?,
        None => port(text)?..=port(text)?,
    };
    if range.is_empty() { Err(wrong()) } else { Ok(range) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::parse;

    #[test]
    fn ports_and_ranges_are_read_and_nothing_else() {
        assert_eq!(parse("8000"), Ok(8000..=8000));
        assert_eq!(parse("8000 - 8100"), Ok(8000..=8100));
        for wrong in ["", "0", "70000", "9-8", "a", "1-2-3", "-5"] {
            assert!(parse(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
    }
}
