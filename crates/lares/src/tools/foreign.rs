//! Text of tool servers on a person's terminal: nothing in it moves the cursor, hides, or runs backwards.

use std::fmt::Write as _;

/// Longest description, excerpt or value that is shown, in characters.
const LONG: usize = 4000;

/// Whether a character would not be seen as what it is: control and format characters, among them those that change the
/// direction of text, have no width, or tag other text (Unicode categories Cc and Cf, variation selectors aside, and
/// blank Hangul fillers).
const fn is_hidden(c: char) -> bool {
    matches!(c,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
        | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{e0fff}' | '\u{f0000}'..='\u{10ffff}')
}

/// A text in one line, at most `most` characters of it.
pub fn line(text: &str, most: usize) -> String {
    let mut shown = String::new();
    // White space of any kind is one space; nothing can be pushed out of sight.
    for (index, word) in text.split_whitespace().enumerate() {
        if index > 0 {
            shown.push(' ');
        }
        visible(word, &mut shown);
        if shown.chars().count() > most {
            break;
        }
    }
    if shown.chars().count() > most {
        shown = shown.chars().take(most.saturating_sub(1)).collect();
        shown.push('…');
    }
    shown
}

/// A text with its lines, each behind `indent`.
pub fn block(text: &str, indent: &str) -> String {
    let cut: String = text.chars().take(LONG).collect();
    let mut shown = String::new();
    for text in cut.lines() {
        let mut line = String::from(indent);
        visible(text, &mut line);
        shown.push_str(line.trim_end());
        shown.push('\n');
    }
    let left = text.chars().count().saturating_sub(LONG);
    if left > 0 {
        let _ = writeln!(shown, "{indent}… and {left} more characters; --json has all");
    }
    shown
}

/// A result for a terminal: as it is, what would act on the terminal made visible.
pub fn result(text: &str) -> String {
    let mut shown = String::new();
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            shown.push('\n');
        }
        visible(line.strip_suffix('\r').unwrap_or(line), &mut shown);
    }
    shown
}

fn visible(text: &str, shown: &mut String) {
    for c in text.chars() {
        match c {
            '\t' => shown.push(c),
            c if is_hidden(c) => {
                let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
            }
            c => shown.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hides_is_seen() {
        let text = "read\u{1b}[2J a\u{202e}elif\n\n\n and\u{200b} \u{e0041}go";
        assert_eq!(line(text, 100), "read\\u{1b}[2J a\\u{202e}elif and\\u{200b} \\u{e0041}go");
        assert_eq!(line(text, 10), "read\\u{1b…");
        assert_eq!(block("a\n\u{9b}31mb  \n", "  "), "  a\n  \\u{9b}31mb\n");
        assert_eq!(result("a\tb\r\nc\u{7}"), "a\tb\nc\\u{7}");
        assert_eq!(line("Grüße 你好 مرحبا", 100), "Grüße 你好 مرحبا");
    }

    #[test]
    fn a_long_text_says_how_much_is_left_out() {
        let shown = block(&"x".repeat(LONG + 7), "");
        assert!(shown.ends_with("… and 7 more characters; --json has all\n"), "{shown}");
    }
}
