//! Markup that hides text, and markers that imitate the system or a speaker.

use std::sync::LazyLock;

use regex::Regex;

use super::reading::fold;
use super::texts::{Role, Text};
use super::{Findings, Rule, Severity};

struct Marker {
    rule: Rule,
    severity: Severity,
    pattern: Regex,
    why: &'static str,
}

static MARKERS: LazyLock<Vec<Marker>> = LazyLock::new(|| {
    use Severity::{Danger, Warning};
    let speaker = "It imitates the markers by which a model tells who speaks.";
    let system = "It imitates an order of the system.";
    let unseen = "Text inside this disappears when the description is rendered, and the model reads it.";
    [
        // Markers of chat templates: ChatML, Llama 2 and 3, Mistral, Gemma, Alpaca.
        (Rule::RoleMarker, Danger, r"<\|\s?(im_start|im_end|system|user|assistant|endoftext|eot_id|begin_of_text|start_header_id|end_header_id)\s?\|>", speaker),
        (Rule::RoleMarker, Danger, r"\[/?inst\]|<</?sys>>|<(start|end)_of_turn>|</?s>\s*\[", speaker),
        (Rule::RoleMarker, Danger, r"(?m)^\s*#{2,}\s*(system|instruction|human|assistant|user)s?( (prompt|message|note|override))?\s*:\s*\S+(\s+\S+){3}", speaker),
        (Rule::RoleMarker, Danger, r"\[\s*(system|admin|developer|assistant|internal|hidden|root)[ _-]*(message|note|prompt|override|instructions?|directive|command|notice|only)?\s*(:[^\]\n]{0,200})?\](\s*:)?\s*\S+\s+\S+", system),
        (Rule::RoleMarker, Danger, r"(?m)(^|[.!?\n]\s*)(system|admin|developer) +(message|note|prompt|override|instructions?|directive|command|notice|update|alert)\s*[:\]]", system),
        (Rule::RoleMarker, Danger, r"<\s*(system|secret|hidden|admin|override|assistant|internal|instructions?|important|critical|mandatory|priority|attention|note[-_ ]to[-_ ](model|ai|llm|assistant))[-_ ]*(note|prompt|message|instructions?|directive|override|only|notice|rules?|reminder)?\s*>(\s*[^\s<]+){4}[^<]*<\s*/", system),
        (Rule::RoleMarker, Danger, r"<\s*(system|secret|hidden|admin|override)[-_ ]*(note|prompt|message|instructions?|directive|override|reminder)?\s*>(\s*[^\s<]+){4}", system),
        (Rule::RoleMarker, Warning, r"<\s*(important|critical|instructions?|internal)\s*>(\s*[^\s<]+){4}", system),
        (Rule::RoleMarker, Warning, r"(\*\*|--|==|\{\{|%%)\s*(system|admin|llm|ai|model|assistant)[ _-]*(message|note|prompt|override|instructions?|directive|only)\s*:?\s*(\*\*|--|==|\}\}|%%)", system),
        (Rule::RoleMarker, Warning, r"(?m)(^|[.!?\n(\[*]\s*)(note|attention|message|instructions?|notice|reminder|memo|important)( (to|for)) (the |all |any )?(ai|llm|model|assistant|agent|language model|ai model|ai assistant|ai agent|claude|gpt|chatgpt)s?\b", "It speaks to the model past the person."),
        (Rule::RoleMarker, Danger, r"(?m)(^|[.!?\n\[(<]\s*)(system|assistant|human|model|llm|ai) ?: +(you|ignore|every|all|always|never|the user|do not|don't|before|please|read|call|send|from now|must|first|include)\b", speaker),
        (Rule::HiddenMarkup, Warning, r"<!--(\s*[^\s>-]+){3,}", unseen),
        (Rule::HiddenMarkup, Warning, r"(?m)^\[(//|comment|_|hidden)[^\]]{0,40}\]:\s*(#|<>)", unseen),
        (Rule::HiddenMarkup, Danger, r#"<[a-z]{1,10}[^>]*(display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0|opacity\s*:\s*0|color\s*:\s*(white|transparent|#fff)|\bhidden\b)[^>]*>(\s*[^\s<]+){3}"#, unseen),
        (Rule::HiddenMarkup, Danger, r"<(script|iframe)\b[^>]*\bsrc\s*=|<script\b[^>]*>[^<]{3}[^<]*</script|javascript:[a-z]|\bon(error|load|click)\s*=", "It runs code where the description is rendered."),
        (Rule::Exfiltration, Danger, r"!\[[^\]]{0,200}\]\(https?://[^)\s]{0,300}[?&][a-z_]{1,20}=(\{|<|\$|%7b|\[|data|base64|here|\.\.\.|conversation|secret|token|content|\))", "An image whose address carries data sends that data away when it is shown."),
    ]
    .into_iter()
    .filter_map(|(rule, severity, pattern, why)| {
        Regex::new(pattern).ok().map(|pattern| Marker { rule, severity, pattern, why })
    })
    .collect()
});

/// Words of a sentence that speaks about markers instead of using them.
static REPORTS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"\b(detect|scan|flag|block|sanitiz|strip|escape|remov|render|injection|template|saniti|e\.g\.|for example|such as|syntax|placeholder)").ok()
});

pub(super) fn vet(text: &Text<'_>, found: &mut Findings) {
    const SIGNS: [char; 7] = ['<', '[', '#', ':', '=', '*', ' '];
    if !text.raw.contains(SIGNS) {
        return;
    }
    let folded: String = if text.raw.is_ascii() { text.raw.to_ascii_lowercase() } else { lines(text.raw) };
    for marker in MARKERS.iter() {
        let Some(at) = marker.pattern.find(&folded) else { continue };
        let sentence = folded[..at.start()].rfind(['\n', '.']).map_or(0, |end| end + 1);
        let reports = text.role != Role::Unread
            && REPORTS.as_ref().is_some_and(|reports| reports.is_match(&folded[sentence..at.start()]));
        let severity = if reports { Severity::Info } else { marker.severity };
        found.add(
            marker.rule,
            severity,
            text,
            at.start().min(text.raw.len())..at.end().min(text.raw.len()),
            marker.why,
        );
    }
    imitation(text, found);
}

/// Folds each line for itself, since folding a text as a whole would lose look-alikes in one foreign word.
fn lines(raw: &str) -> String {
    raw.split_inclusive(char::is_whitespace).map(fold).collect()
}

/// Words that mix letters of several alphabets that look alike.
fn imitation(text: &Text<'_>, found: &mut Findings) {
    if text.raw.is_ascii() {
        return;
    }
    let mut start = None;
    for (at, c) in text.raw.char_indices().chain([(text.raw.len(), ' ')]) {
        if c.is_alphabetic() {
            start.get_or_insert(at);
        } else if let Some(start) = start.take() {
            let word = &text.raw[start..at];
            if is_mixed(word) {
                let why = "A word mixes letters of several alphabets that look alike.";
                found.add(Rule::MixedScripts, Severity::Warning, text, start..at, why);
                return;
            }
        }
    }
}

/// Whether a word of at least three letters has Latin letters and look-alikes of such.
pub(super) fn is_mixed(word: &str) -> bool {
    let foreign = |c: char| matches!(c, '\u{370}'..='\u{58F}' | '\u{13A0}'..='\u{13FF}' | '\u{1C80}'..='\u{1C8F}');
    !word.is_ascii()
        && word.chars().count() > 2
        && word.chars().any(|c| c.is_ascii_alphabetic())
        && word.chars().any(foreign)
        && word.chars().filter(|c| foreign(*c)).all(|c| super::reading::look_alike(c).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_compiles() {
        assert_eq!(MARKERS.len(), 16);
        assert!(REPORTS.is_some());
    }

    #[test]
    fn a_word_of_two_alphabets_is_seen_and_a_formula_is_not() {
        assert!(is_mixed("рaypal") && is_mixed("ignоre"));
        for fine in ["paypal", "привет", "Δt", "naïve", "λx"] {
            assert!(!is_mixed(fine), "{fine}");
        }
    }
}
