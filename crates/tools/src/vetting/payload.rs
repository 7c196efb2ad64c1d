//! Shell commands, and texts that must be decoded to be read.

use std::sync::LazyLock;

use regex::Regex;

use super::texts::{Role, Text};
use super::{Findings, Rule, Severity, phrases};

/// Shortest encoded text that can hold an order.
const SHORTEST: usize = 20;
/// Layers of encoding that are taken off.
const LAYERS: u8 = 2;

static COMMANDS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let parts = [
        r"\b(curl|wget|fetch|iwr|irm|invoke-webrequest|invoke-restmethod)\b[^\n|;]{0,300}\|\s*(sudo\s+)?(-?\w*/)*(ba|z|da|k)?sh\b",
        r"\b(curl|wget|iwr|irm)\b[^\n|;]{0,300}\|\s*(sudo\s+)?(python3?|perl|ruby|node|php|iex)\b",
        r"\b(ba|z)?sh\s+(-c\s+)?.{0,3}[<$]\(\s*(curl|wget)\b",
        r"base64\s+(-d|--decode|-D)\b[^\n]{0,80}\|\s*\w*sh\b",
        r"\b(ba)?sh\s+-i\b|/dev/tcp/|\bnc(at)?\s+(-\w+\s+)*-\w*e\b|\bmkfifo\s+/tmp",
        r"\brm\s+(-\w+\s+)*-(rf|fr|r|f)\w*\s+(--no-preserve-root\s+)?['\x22]?(/|~|\$home|\*)",
        r"\bchmod\s+(-\w+\s+)*0?(666|777)\s+(~|/|\$home)|\bchmod\s+-r\s+0?[67]66",
        r"\bpowershell(\.exe)?\b[^\n]{0,60}\s-(e|enc|encodedcommand)\b",
        r"\bcurl\b[^\n]{0,200}(-d|--data(-binary|-raw)?|-f|-t|--upload-file)\s*['\x22]?[^\n]{0,40}(@|\$\(|<)[^\n]{0,80}",
        r">>\s*['\x22]?(~|\$home|/home/\S+)/?\.?(bashrc|zshrc|profile|ssh/authorized_keys)",
        r"\bcrontab\s+-(\s|$)|\bdd\s+if=\S+\s+of=/dev/|:\(\)\s*\{\s*:\|:",
    ];
    Regex::new(&format!("(?i){}", parts.join("|"))).ok()
});
static ORDERED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)\b(must|first|please|always|prefix|then|before|also|execute|run|paste|ensure|need(s)? to|required|use the)\b").ok()
});
static REPORTED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)\b(detect|scan|flag|block|refus|reject|dangerous|deny|denied|denies|forbid|prevent|not allowed|never|disallow|prohibit|e\.g\.|such as|warn|shows|readme|documentation|example)")
        .ok()
});
/// What a decoded text must not be, however plain it would be in the open.
static DECODED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)\b(curl|wget|chmod|rm|bash|sh|nc|ncat|python3?|powershell|eval|exec|sudo|scp|ssh)\b\s+(-|\+|/|~|https?:|\S*[|;&$])").ok()
});
/// Words of which an order has at least one, with their letters moved by thirteen.
const TURNED: [&str; 13] = [
    "vtaber",
    "vafgehpg",
    "qvfertneq",
    "cnffjbeq",
    "frperg",
    "perqragvny",
    "hfre",
    "cebzcg",
    ".ffu",
    "efn",
    "sbejneq",
    "gbxra",
    "fraq",
];
/// The same backwards.
const BACKWARDS: [&str; 9] =
    ["erongi", "snoitcurtsn", "tpmorp", "resu eht", "drageris", "laitnederc", "hss.", "asr_di", "drowssap"];
static ENTITIES: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(&#x?[0-9a-fA-F]{2,6};\s?){4}|(%[0-9a-fA-F]{2}[^%\s]{0,12}){4}|(\\u[0-9a-fA-F]{4}){4}|(\\x[0-9a-fA-F]{2}){4}",
    )
    .ok()
});

pub(super) fn vet(text: &Text<'_>, found: &mut Findings) {
    commands(text, found);
    for (start, token) in tokens(text.raw) {
        if let Some(plain) = decoded(token)
            && let Some(why) = hides(&plain, LAYERS)
        {
            found.add(Rule::EncodedPayload, why.0, text, start..start + token.len(), &why.1);
        }
    }
    if text.raw.contains(['&', '%', '\\'])
        && let Some(at) = ENTITIES.as_ref().and_then(|pattern| pattern.find(text.raw))
        && let Some((_, why)) = hides(&unescape(text.raw), 0).filter(|(severity, _)| *severity == Severity::Danger)
    {
        found.add(Rule::EncodedPayload, Severity::Danger, text, at.range(), &why);
    }
    // A text that says something only when its letters are moved by thirteen, or read backwards, hides it.
    if text.raw.len() >= SHORTEST {
        let lower = text.raw.to_ascii_lowercase();
        let has = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
        let turned = has(&TURNED).then(|| text.raw.chars().map(rot13).collect::<String>());
        if let Some((_, why)) = turned.and_then(|turned| phrases::worst(&turned)) {
            let why = format!("Its letters are moved by thirteen. {why}");
            found.add(Rule::EncodedPayload, Severity::Danger, text, 0..text.raw.len(), &why);
        } else if has(&BACKWARDS) {
            let turned: String = text.raw.chars().rev().collect();
            if let Some((_, why)) = phrases::worst(&turned) {
                let why = format!("It is written backwards. {why}");
                found.add(Rule::EncodedPayload, Severity::Danger, text, 0..text.raw.len(), &why);
            }
        }
    }
}

fn commands(text: &Text<'_>, found: &mut Findings) {
    let Some(at) = COMMANDS.as_ref().and_then(|pattern| pattern.find(text.raw)) else { return };
    let before = &text.raw[..at.start()];
    let sentence = before.rfind(". ").map_or(0, |end| end + 2);
    let before = &before[sentence..];
    let is = |pattern: &LazyLock<Option<Regex>>| pattern.as_ref().is_some_and(|pattern| pattern.is_match(before));
    let severity = if is(&REPORTED) && text.role != Role::Unread {
        Severity::Info
    } else if is(&ORDERED) || text.role == Role::Unread {
        Severity::Danger
    } else {
        Severity::Warning
    };
    found.add(
        Rule::ShellCommand,
        severity,
        text,
        at.range(),
        "It names a shell command that does harm or runs foreign code.",
    );
}

/// Pieces that could be encoded text.
fn tokens(raw: &str) -> impl Iterator<Item = (usize, &str)> {
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '-' | '_');
    raw.split(move |c| !part(c))
        .filter(|token| token.len() >= SHORTEST)
        .map(move |token| (token.as_ptr() as usize - raw.as_ptr() as usize, token))
}

/// Base64 or hexadecimal digits that decode to a text.
fn decoded(token: &str) -> Option<String> {
    let digits = token.strip_prefix("0x").unwrap_or(token);
    let bytes = if digits.len().is_multiple_of(2) && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        digits
            .as_bytes()
            .chunks(2)
            .filter_map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok())
            .collect()
    } else {
        base64(token)?
    };
    let text = String::from_utf8(bytes).ok()?;
    let readable = text.chars().filter(|c| !c.is_control() || c.is_whitespace()).count();
    (text.len() >= SHORTEST / 2 && readable == text.chars().count()).then_some(text)
}

/// Standard or URL-safe alphabet, padding optional.
fn base64(token: &str) -> Option<Vec<u8>> {
    let token = token.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(token.len() * 3 / 4);
    let (mut bits, mut held) = (0_u32, 0_u8);
    for byte in token.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xFFFF;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xFF) as u8);
        }
    }
    Some(bytes)
}

/// What a decoded text would do. Prose alone is worth a look.
fn hides(plain: &str, layers: u8) -> Option<(Severity, String)> {
    if let Some((_, why)) = phrases::worst(plain) {
        return Some((Severity::Danger, format!("An encoded text hides an order. {why}")));
    }
    if [&COMMANDS, &DECODED].into_iter().any(|pattern| pattern.as_ref().is_some_and(|pattern| pattern.is_match(plain)))
    {
        return Some((Severity::Danger, "An encoded text hides a shell command.".to_owned()));
    }
    if layers > 0
        && let Some(found) =
            tokens(plain).filter_map(|(_, token)| hides(&decoded(token)?, layers - 1)).max_by_key(|f| f.0)
    {
        return Some(found);
    }
    let words =
        plain.split_whitespace().filter(|word| word.chars().all(|c| c.is_alphabetic() || c == ',' || c == '.')).count();
    (words >= 3).then(|| (Severity::Info, "An encoded text hides prose that a person does not read.".to_owned()))
}

/// Resolves `&#105;`, `%69`, `\u0069` and `\x69`; other text stays.
fn unescape(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(c) = rest.chars().next() {
        let digits =
            |from: usize, length: usize| rest.get(from..from + length).and_then(|d| u32::from_str_radix(d, 16).ok());
        let read = if rest.starts_with("&#") {
            let end = rest.bytes().take(10).position(|b| b == b';');
            end.and_then(|end| {
                let number = rest.get(2..end)?;
                let code = match number.strip_prefix(['x', 'X']) {
                    Some(hex) => u32::from_str_radix(hex, 16),
                    None => number.parse(),
                };
                Some((code.ok()?, end + 1))
            })
        } else if rest.starts_with("\\u") {
            digits(2, 4).map(|code| (code, 6))
        } else if rest.starts_with("\\x") {
            digits(2, 2).map(|code| (code, 4))
        } else if c == '%' {
            digits(1, 2).map(|code| (code, 3))
        } else {
            None
        };
        let (letter, length) = match read.and_then(|(code, length)| Some((char::from_u32(code)?, length))) {
            Some(read) => read,
            None => (c, c.len_utf8()),
        };
        out.push(letter);
        rest = rest.get(length..).unwrap_or_default();
    }
    out
}

fn rot13(c: char) -> char {
    match c {
        'a'..='m' | 'A'..='M' => char::from(c as u8 + 13),
        'n'..='z' | 'N'..='Z' => char::from(c as u8 - 13),
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_taken_off() {
        assert_eq!(decoded("SWdub3JlIGFsbCBwcmV2aW91cw").as_deref(), Some("Ignore all previous"));
        assert_eq!(decoded("49676e6f726520616c6c2070726576").as_deref(), Some("Ignore all prev"));
        assert_eq!(unescape("&#105;g&#x6E;%6f\\u0072\\x65 5% é"), "ignore 5% é");
        assert_eq!("Ignore".chars().map(rot13).collect::<String>(), "Vtaber");
        assert!(COMMANDS.is_some() && ORDERED.is_some() && REPORTED.is_some() && ENTITIES.is_some());
    }
}
