//! Characters that reach the model and that a person does not see.

use std::ops::Range;

use super::texts::{Role, Text};
use super::{Findings, Rule, Severity};

/// From this many invisible characters on, they are there on purpose: copied web pages leave one or two behind.
const MANY: usize = 4;
/// Spaces in one line that push what follows out of a window; indented code has fewer.
const WIDE: usize = 80;
/// So many have no other use.
const VERY_WIDE: usize = 200;
/// Empty lines that push what follows off the screen.
const TALL: usize = 12;

/// Whether a character has no mark of its own on the screen, or changes how others are drawn.
pub(super) fn is_hidden(c: char) -> bool {
    is_tag(c) || is_bidi(c) || is_zero_width(c) || is_selector(c) || is_private(c) || is_blank(c)
}

fn is_tag(c: char) -> bool {
    matches!(c, '\u{E0000}'..='\u{E007F}')
}

fn is_override(c: char) -> bool {
    matches!(c, '\u{202D}' | '\u{202E}')
}

fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200E}' | '\u{200F}' | '\u{061C}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

pub(super) fn is_zero_width(c: char) -> bool {
    matches!(c, '\u{200B}'..='\u{200D}' | '\u{2060}'..='\u{2065}' | '\u{206A}'..='\u{206F}' | '\u{FEFF}' | '\u{180E}')
        || matches!(c, '\u{00AD}' | '\u{034F}' | '\u{FFF9}'..='\u{FFFB}')
        || matches!(c, '\u{1D173}'..='\u{1D17A}' | '\u{1BCA0}'..='\u{1BCA3}' | '\u{13430}'..='\u{1343F}')
}

fn is_selector(c: char) -> bool {
    matches!(c, '\u{FE00}'..='\u{FE0F}' | '\u{E0100}'..='\u{E01EF}' | '\u{180B}'..='\u{180D}' | '\u{180F}')
}

fn is_private(c: char) -> bool {
    matches!(c, '\u{E000}'..='\u{F8FF}' | '\u{F0000}'..='\u{FFFFD}' | '\u{100000}'..='\u{10FFFD}')
}

/// Letters that are drawn as nothing.
fn is_blank(c: char) -> bool {
    matches!(c, '\u{115F}' | '\u{1160}' | '\u{3164}' | '\u{FFA0}' | '\u{2800}' | '\u{17B4}' | '\u{17B5}')
}

fn is_right_to_left(c: char) -> bool {
    matches!(c, '\u{0590}'..='\u{08FF}' | '\u{FB1D}'..='\u{FDFF}' | '\u{FE70}'..='\u{FEFE}' | '\u{10800}'..='\u{10FFF}')
}

/// Han, and the kana and Hangul beside it: what ideographic variation selectors follow.
fn is_han(c: char) -> bool {
    matches!(c, '\u{2E80}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}')
}

/// The text without what nobody sees.
pub(super) fn visible(text: &str) -> impl Iterator<Item = char> + '_ {
    text.chars().filter(|c| !is_hidden(*c) || is_blank(*c) || is_private(*c))
}

#[derive(Debug, Default)]
struct Seen {
    count: usize,
    first: Option<usize>,
    end: usize,
}

impl Seen {
    fn note(&mut self, at: usize, c: char) {
        self.count += 1;
        self.first.get_or_insert(at);
        self.end = at + c.len_utf8();
    }

    fn range(&self) -> Range<usize> {
        self.first.unwrap_or_default()..self.end
    }
}

pub(super) fn vet(text: &Text<'_>, found: &mut Findings) {
    if !text.raw.is_ascii() {
        characters(text, found);
    }
    controls(text, found);
    padding(text, found);
}

fn characters(text: &Text<'_>, found: &mut Findings) {
    let right_to_left = text.raw.chars().any(is_right_to_left);
    let (mut tags, mut overrides, mut directions, mut zero, mut inside, mut selectors, mut private, mut blanks) = (
        Seen::default(),
        Seen::default(),
        Seen::default(),
        Seen::default(),
        Seen::default(),
        Seen::default(),
        Seen::default(),
        Seen::default(),
    );
    let mut spelled = String::new();
    let mut flag = false;
    let mut joiners = 0;
    let mut before: Option<char> = None;
    let mut letters = text.raw.char_indices().peekable();
    while let Some((at, c)) = letters.next() {
        let next = letters.peek().map(|(_, next)| *next);
        if is_tag(c) {
            // A black flag, tags and a cancel tag make the flag of a region (UTS 51, emoji tag sequences).
            if !flag {
                tags.note(at, c);
                spelled.extend(char::from_u32(u32::from(c) - 0xE_0000).filter(|c| !c.is_control()));
            }
            continue;
        }
        flag = c == '\u{1F3F4}';
        if is_override(c) {
            overrides.note(at, c);
        } else if is_bidi(c) {
            directions.note(at, c);
        } else if is_selector(c) {
            let after_selector = before.is_some_and(is_selector);
            let fits = match c {
                '\u{FE0F}' | '\u{FE0E}' => before.is_some_and(|b| !b.is_ascii_alphabetic() && !b.is_whitespace()),
                '\u{E0100}'..='\u{E01EF}' => before.is_some_and(is_han),
                _ => before.is_some_and(|b| !b.is_ascii()),
            };
            if after_selector || !fits {
                selectors.note(at, c);
                let byte = match u32::from(c) {
                    code @ 0xFE00..=0xFE0F => code - 0xFE00,
                    code @ 0xE_0100..=0xE_01EF => code - 0xE_0100 + 16,
                    _ => 0,
                };
                spelled.extend(char::from_u32(byte).filter(|c| c.is_ascii_graphic() || *c == ' '));
            }
        } else if is_zero_width(c) {
            let foreign = |c: Option<char>| c.is_some_and(|c| !c.is_ascii() && !is_zero_width(c));
            let joins = matches!(c, '\u{200C}' | '\u{200D}') && foreign(before) && foreign(next);
            let mark_at_start = c == '\u{FEFF}' && at == 0;
            // Thai, Khmer and the like break lines at zero-width spaces; German at soft hyphens.
            let breaks = matches!(c, '\u{200B}' | '\u{AD}') && (foreign(before) || foreign(next));
            if !(joins || mark_at_start || breaks) {
                zero.note(at, c);
                // Soft hyphens, breaks and marks of byte order come along with copied text; joiners do not.
                joiners += usize::from(!matches!(c, '\u{200B}' | '\u{AD}' | '\u{FEFF}'));
                let letter = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
                if letter(before) && letter(next) && c != '\u{AD}' {
                    inside.note(at, c);
                }
            }
        } else if is_private(c) {
            private.note(at, c);
        } else if is_blank(c) {
            blanks.note(at, c);
        }
        before = Some(c);
    }

    let mut add = |rule, severity, seen: &Seen, why: &str| {
        if seen.count > 0 {
            found.add(rule, severity, text, seen.range(), why);
        }
    };
    let spelled: String = spelled.chars().take(80).collect();
    let why = format!("Invisible tag characters spell a text that only the model reads: “{spelled}”.");
    add(Rule::HiddenCharacters, Severity::Danger, &tags, &why);
    let severity = if selectors.count >= MANY { Severity::Danger } else { Severity::Warning };
    let why = if spelled.is_empty() {
        "Variation selectors stand where they select nothing; they can carry hidden bytes.".to_owned()
    } else {
        format!("Invisible variation selectors carry bytes that only the model sees: “{spelled}”.")
    };
    add(Rule::HiddenCharacters, severity, &selectors, &why);
    let why = "A character reverses the direction of the text, so a person reads something else than the model.";
    add(Rule::HiddenCharacters, Severity::Danger, &overrides, why);
    let severity = match directions.count {
        _ if right_to_left => Severity::Info,
        0..MANY => Severity::Info,
        _ => Severity::Warning,
    };
    add(Rule::HiddenCharacters, severity, &directions, "Invisible characters change the direction of the text.");
    let named = matches!(text.role, Role::Name | Role::ParameterName);
    let severity = match (zero.count, inside.count) {
        (MANY.., _) => Severity::Danger,
        (1.., _) if named => Severity::Danger,
        (_, 1..) => Severity::Warning,
        _ if joiners > 0 => Severity::Warning,
        _ => Severity::Info,
    };
    add(Rule::HiddenCharacters, severity, &zero, "Characters without width are hidden between the letters.");
    add(Rule::HiddenCharacters, Severity::Warning, &private, "Characters for private use mean nothing to a person.");
    let severity = if blanks.count >= MANY { Severity::Warning } else { Severity::Info };
    add(Rule::HiddenCharacters, severity, &blanks, "Letters that are drawn as nothing stand in the text.");
}

fn controls(text: &Text<'_>, found: &mut Findings) {
    let mut letters = text.raw.char_indices().peekable();
    while let Some((at, c)) = letters.next() {
        let (rule, severity, why) = match c {
            '\u{1B}' | '\u{9B}' | '\u{90}' | '\u{9D}' => (
                Rule::TerminalEscape,
                Severity::Danger,
                "An escape sequence changes what a terminal shows of this text.",
            ),
            '\u{8}' | '\u{7F}' => (
                Rule::TerminalEscape,
                Severity::Danger,
                "Control characters erase what stands before them on a screen.",
            ),
            '\n' | '\t' | '\u{C}' => continue,
            '\r' if letters.peek().is_none_or(|(_, next)| matches!(next, '\n' | '\r')) => continue,
            '\r' => {
                (Rule::TerminalEscape, Severity::Info, "A bare carriage return lets a terminal overwrite the line.")
            }
            c if c.is_control() => {
                (Rule::HiddenCharacters, Severity::Warning, "A control character has no place in a description.")
            }
            _ => continue,
        };
        found.add(rule, severity, text, at..at + c.len_utf8(), why);
    }
}

fn padding(text: &Text<'_>, found: &mut Findings) {
    let (mut wide, mut tall) = (0, 0);
    for (at, c) in text.raw.char_indices() {
        if matches!(c, '\n' | '\u{B}' | '\u{C}' | '\u{85}' | '\u{2028}' | '\u{2029}') {
            tall += 1;
            wide = 0;
        } else if c.is_whitespace() || is_blank(c) {
            wide += 1;
        } else if !is_hidden(c) {
            if wide >= WIDE || tall >= TALL {
                let severity = if wide >= VERY_WIDE || tall >= 2 * TALL { Severity::Danger } else { Severity::Warning };
                let why = "Long white space pushes the text behind it out of a person's sight.";
                found.add(Rule::Padding, severity, text, at..text.raw.len(), why);
            }
            (wide, tall) = (0, 0);
        }
    }
}
