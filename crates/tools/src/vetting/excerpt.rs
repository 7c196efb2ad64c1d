//! Foreign text as a person may safely look at it.

use std::fmt::Write as _;
use std::ops::Range;

use super::hidden::is_hidden;

/// Longest excerpt, in characters.
pub const MAX_EXCERPT: usize = 200;
/// How much of the text before a find is shown, in characters.
const LEAD: usize = 30;

/// The text at `at` with a little before and after it: one line, hidden characters escaped, at most [`MAX_EXCERPT`]
/// characters.
pub fn shown(text: &str, at: Range<usize>) -> String {
    let mut start = at.start.min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    let begin = text[..start].char_indices().rev().take(LEAD).last().map_or(start, |(index, _)| index);
    let mut out = String::new();
    let mut length = 0;
    if begin > 0 {
        out.push('…');
        length += 1;
    }
    let mut space = false;
    for c in text[begin..].chars() {
        let mut piece = String::new();
        if c.is_whitespace() && !is_hidden(c) {
            if space {
                continue;
            }
            space = true;
            piece.push(' ');
        } else {
            space = false;
            if is_hidden(c) || c.is_control() {
                let _ = write!(piece, "\\u{{{:X}}}", u32::from(c));
            } else {
                piece.push(c);
            }
        }
        let more = piece.chars().count();
        if length + more >= MAX_EXCERPT {
            out.push('…');
            break;
        }
        length += more;
        out.push_str(&piece);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_shown_and_what_is_long_is_cut() {
        assert_eq!(shown("a\u{200b}b \n\t c\u{1b}[8m", 0..1), "a\\u{200B}b c\\u{1B}[8m");
        let long = "é".repeat(5000);
        let cut = shown(&long, 4001..4003);
        assert!(cut.starts_with('…') && cut.ends_with('…'), "{cut}");
        assert_eq!(cut.chars().count(), MAX_EXCERPT);
        assert_eq!(shown("abc", 9..12), "abc");
    }
}
