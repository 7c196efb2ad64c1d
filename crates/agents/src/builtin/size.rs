//! How big a model is, as far as its name says: small ones are asked for whole files.

use std::sync::LazyLock;

use regex::Regex;

/// Billions of parameters from which on search/replace edits beat whole files.
pub(super) const SEARCH_REPLACE_FROM: f64 = 14.0;

/// Billions of parameters from which on a model is shown several files at once.
pub(super) const SEVERAL_FILES_FROM: f64 = 7.0;

static SIZE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)(?:^|[^a-z0-9.])(?:(\d{1,3})x)?(\d{1,4}(?:\.\d{1,3})?)(b|m)(?:$|[^a-z0-9])")
        .expect("the pattern is a constant")
});

/// Billions of parameters in a name such as `qwen2.5-coder-0.5b-instruct` or `mixtral-8x7b`.
pub(super) fn from_name(name: &str) -> Option<f64> {
    let found = SIZE.captures(name)?;
    let number: f64 = found.get(2)?.as_str().parse().ok()?;
    let experts: f64 = found.get(1).and_then(|experts| experts.as_str().parse().ok()).unwrap_or(1.0);
    let unit = if found.get(3)?.as_str().eq_ignore_ascii_case("b") { 1.0 } else { 1e-3 };
    Some(number * experts * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_told_from_the_version_in_a_name() {
        for (name, size) in [
            ("qwen2.5-coder-0.5b-instruct-q4_k_m", Some(0.5)),
            ("Qwen2.5-Coder-14B-Instruct", Some(14.0)),
            ("qwen3-coder-30b-a3b", Some(30.0)),
            ("mixtral-8x7b", Some(56.0)),
            ("smollm2-135m", Some(0.135)),
            ("llama3.2:3b", Some(3.0)),
            ("gpt-4o", None),
            ("phi-3.5-mini", None),
            ("", None),
        ] {
            assert_eq!(from_name(name), size, "{name}");
        }
    }
}
