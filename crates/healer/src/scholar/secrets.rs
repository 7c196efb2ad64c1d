//! Lines without what may be a secret. Programs print their settings and their requests when they fail.

use std::sync::LazyLock;

use regex::{Captures, Regex};

use crate::classify::clean;

/// What a secret becomes.
const HIDDEN: &str = "<secret>";

/// A name that says so and the value after it; what follows a scheme of authorisation; the user's part of a URL; words
/// that are made like a key.
static SECRET: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r#"(?i)(?P<name>\b[a-z0-9_.-]*(?:passw(?:or)?d|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credential|cookie|session[_-]?id|signature)[a-z0-9_-]*["']?\s{0,2}[:=]\s{0,2})"#,
        r#"(?:"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?|[^\s,;&"')\]}]+)"#,
        r#"|(?P<scheme>\b(?:authorization["']?\s{0,2}[:=]\s{0,2}["']?)?(?:bearer|basic|digest)\s+)[a-z0-9+/=_.~-]{6,}"#,
        r#"|(?P<url>\b[a-z][a-z0-9+.-]{1,15}://)[^\s/@"']+@"#,
        r#"|(?P<key>\b(?:sk|pk|rk|gh[pousr]|github_pat|glpat|xox[abprs]|hf|npm|dop_v1|lares)[_-][a-z0-9_-]{12,}|\bAKIA[0-9A-Z]{12,}|\beyJ[a-z0-9_-]{8,}(?:\.[a-z0-9_-]+){1,2})"#,
        r#"|(?P<long>[a-z0-9+/_-]{24,}={0,2})"#,
    ))
    .expect("a test compiles the same constant text")
});

/// A line fit to be shown and kept, with what looks like a password, a token or a key taken out.
pub(crate) fn hide(line: &str) -> String {
    SECRET.replace_all(&clean(line), hidden).into_owned()
}

fn hidden(found: &Captures<'_>) -> String {
    let whole = &found[0];
    if let Some(url) = found.name("url") {
        return format!("{}{HIDDEN}@", url.as_str());
    }
    if let Some(long) = found.name("long") {
        return if is_random(long.as_str()) { HIDDEN.to_owned() } else { whole.to_owned() };
    }
    let kept = found.name("name").or_else(|| found.name("scheme")).map_or("", |kept| kept.as_str());
    format!("{kept}{HIDDEN}")
}

/// Whether a long word is made like a key: capitals, small letters and digits mixed. Paths, names and hashes are not.
fn is_random(word: &str) -> bool {
    let has = |of: fn(&char) -> bool| word.chars().filter(of).count() >= 3;
    let slashes = word.matches('/').count();
    has(char::is_ascii_uppercase) && has(char::is_ascii_lowercase) && has(char::is_ascii_digit) && slashes < 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn is(line: &str, hidden: &str) {
        assert_eq!(hide(line), hidden);
    }

    #[test]
    fn secrets_are_taken_out() {
        is("login failed: user=eva password=hunter2, host=db", "login failed: user=eva password=<secret>, host=db");
        is(r#"config {"api_key": "abc def", "port": 1}"#, r#"config {"api_key": <secret>, "port": 1}"#);
        is("DB_PASSWORD='it''s' unset", "DB_PASSWORD=<secret>'s' unset");
        is("Authorization: Bearer abcdef.ghi", "Authorization: Bearer <secret>");
        is("cannot reach postgres://eva:geheim@db/app", "cannot reach postgres://<secret>@db/app");
        is("got sk-abcdefghijklmnop from env", "got <secret> from env");
        is("refused eyJhbGciOiJI.eyJzdWIi.c2ln now", "refused <secret> now");
        is("bad seed Q7xYp2LmZ9aKd83HsTvB0wQe for node", "bad seed <secret> for node");
        is("\u{1b}[31mtoken=\u{1b}[0mabc", "token=<secret>");
    }

    #[test]
    fn what_is_no_secret_stays() {
        for line in [
            "unexpected token at line 3",
            "password authentication failed for user \"app\"",
            "/nix/store/q1w2e3r4t5y6u7i8o9p0a1s2d3f4g5h6-app-1.0/bin/app: not found",
            "java.util.concurrent.CompletionException in AbstractUnsafe",
            "commit 0a693e4d82ac71184ad9bde071b06636f94f0000 is missing",
            "see https://example.org/docs",
        ] {
            is(line, line);
        }
    }
}
