//! A text as a model reads it: words, whatever they are dressed up as.

use std::collections::HashMap;
use std::sync::LazyLock;

use unicode_normalization::UnicodeNormalization as _;
use unicode_security::confusable_detection::skeleton;

use super::hidden::{is_zero_width, visible};
use super::phrases::{LEXICON, PREDICATES};

/// Set of marks; bit `n` is entry `n` of the lexicon, the predicates behind them.
pub(super) type Marks = u128;

/// One word and what it may mean.
#[derive(Debug)]
pub(super) struct Word {
    pub marks: Marks,
    /// Bytes of the raw text.
    pub start: usize,
    pub end: usize,
    /// Number of the clause; commas, colons and dashes divide.
    pub clause: u32,
    /// Stands between quotation marks.
    pub quoted: bool,
    /// Could be an order: begins a clause or follows "please", "must", "then".
    pub orders: bool,
}

/// Words of a text, sentence by sentence.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub sentences: Vec<Vec<Word>>,
    /// There are scripts without spaces between words.
    pub unspaced: bool,
}

struct Lexicon {
    exact: HashMap<&'static str, Marks>,
    /// Beginnings of words by first letter.
    prefixes: HashMap<char, Vec<(&'static str, Marks)>>,
    /// Terms of several words, by the first.
    terms: HashMap<&'static str, Vec<(Vec<&'static str>, Marks)>>,
}

static WORDS: LazyLock<Lexicon> = LazyLock::new(|| {
    let mut lexicon = Lexicon { exact: HashMap::new(), prefixes: HashMap::new(), terms: HashMap::new() };
    for (bit, (_, words)) in LEXICON.iter().enumerate() {
        let mark: Marks = 1 << bit;
        for word in words.split_whitespace() {
            if let Some((first, rest)) = word.split_once('+') {
                lexicon.terms.entry(first).or_default().push((rest.split('+').collect(), mark));
            } else if let Some(prefix) = word.strip_suffix('*') {
                let first = prefix.chars().next().unwrap_or_default();
                lexicon.prefixes.entry(first).or_default().push((prefix, mark));
            } else {
                *lexicon.exact.entry(word).or_default() |= mark;
            }
        }
    }
    lexicon
});

/// Bit of a mark by name.
pub(super) fn mark(name: &str) -> Option<Marks> {
    let known = LEXICON.iter().map(|(known, _)| *known).chain(PREDICATES.iter().copied());
    known.into_iter().position(|known| known == name).map(|bit| 1 << bit)
}

macro_rules! marks {
    ($($name:ident = $text:literal),* $(,)?) => {
        $(static $name: LazyLock<Marks> = LazyLock::new(|| mark($text).unwrap_or_default());)*
    };
}
marks!(
    URL = "url",
    SINK = "sink",
    EMAIL = "email",
    PRIVATE = "private",
    KEYFILE = "keyfile",
    IDENT = "ident",
    LEAD = "lead",
    PLACEHOLDER = "slot",
);

fn look_up(word: &str) -> Marks {
    let mut marks = WORDS.exact.get(word).copied().unwrap_or_default();
    if let Some(prefixes) = word.chars().next().and_then(|first| WORDS.prefixes.get(&first)) {
        for (prefix, mark) in prefixes {
            if word.starts_with(prefix) {
                marks |= mark;
            }
        }
    }
    marks
}

/// Folds case, accents, compatibility forms, invisible characters and look-alike letters.
pub(super) fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let mut plain = String::with_capacity(text.len());
    let mut after_latin = false;
    for c in visible(text).filter_map(small_capital).nfkd() {
        // Accents of Latin letters go, so that one spelling serves; other scripts need their marks.
        if matches!(c, '\u{300}'..='\u{36F}') && after_latin {
            continue;
        }
        after_latin = c.is_ascii_alphabetic();
        plain.push(c);
    }
    let composed: String = plain.nfc().flat_map(char::to_lowercase).collect();
    if composed.is_ascii() { composed } else { latin(&composed) }
}

/// Small capitals and stroked letters have no decomposition.
fn small_capital(c: char) -> Option<char> {
    const FROM: &str = "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢıøłđ";
    const TO: &str = "abcdefghijklmnoprstuvwyziold";
    let at = FROM.chars().position(|from| from == c);
    at.map_or(Some(c), |at| TO.chars().nth(at))
}

/// A word whose letters all look like Latin ones, in Latin.
fn latin(word: &str) -> String {
    // A word of Russian or Greek has letters that look like no Latin one, and stays as it is.
    let read: Option<String> = word.chars().map(|c| if c.is_ascii() { Some(c) } else { look_alike(c) }).collect();
    read.unwrap_or_else(|| word.to_owned())
}

/// The Latin letter that a letter of another script looks like (UTS 39, confusables).
pub(super) fn look_alike(c: char) -> Option<char> {
    if c.is_ascii() || !c.is_alphabetic() {
        return match c {
            '’' | '‘' | 'ʼ' | '＇' => Some('\''),
            _ => None,
        };
    }
    let one = c.to_string();
    let mut like = skeleton(&one);
    match (like.next(), like.next()) {
        (Some(l), None) if l.is_ascii_alphanumeric() => Some(l.to_ascii_lowercase()),
        _ => None,
    }
}

/// Digits and signs that stand for letters; `None`: nothing was changed.
fn unleet(word: &str) -> Option<String> {
    let letters = word.chars().filter(char::is_ascii_alphabetic).count();
    if letters < 2 || !word.chars().any(|c| matches!(c, '0' | '1' | '3' | '4' | '5' | '7' | '@' | '$' | '!')) {
        return None;
    }
    let letter = |c| match c {
        '0' => 'o',
        '1' | '!' => 'i',
        '3' => 'e',
        '4' | '@' => 'a',
        '5' | '$' => 's',
        '7' => 't',
        c => c,
    };
    Some(word.chars().map(letter).collect())
}

/// Files that hold keys or passwords, as they are called in a path.
const KEY_FILES: &[&str] = &[
    "id_rsa",
    "id_ed25519",
    "id_ecdsa",
    "id_dsa",
    "/.ssh",
    "~/.ssh",
    ".ssh/",
    ".aws/",
    "/etc/shadow",
    ".gnupg",
    "wallet.dat",
    ".netrc",
    ".git-credentials",
    ".pgpass",
    ".vault-token",
    ".kdbx",
    "keychain",
    "login.keychain",
    "logins.json",
    "key4.db",
    "/proc/self/environ",
    ".docker/config.json",
    ".kube/config",
    ".config/gh",
    "hosts.yml",
    "ntds.dit",
    ".npmrc",
    ".pypirc",
    ".config/gcloud",
    "application_default_credentials",
    ".azure/",
    ".terraform.d/credentials",
    ".bitcoin",
    ".electrum",
    "service-account.json",
    "service_account.json",
    ".cargo/credentials",
    "authorized_keys",
    "shadow.bak",
    "secring",
];
/// Files that often hold some, or tell about the person.
const PRIVATE_FILES: &[&str] = &[
    "/etc/passwd",
    "mcp.json",
    ".cursor/",
    "claude_desktop_config",
    ".bash_history",
    ".zsh_history",
    ".bashrc",
    ".zshrc",
    "credentials.json",
    "secrets.json",
    "secrets.yaml",
    "secrets.yml",
    "cookies.sqlite",
    "login data",
    ".my.cnf",
    "kubeconfig",
    "/etc/hosts",
    ".config/",
    "/proc/",
    ".profile",
    "settings.json",
    "history.db",
    "secrets.toml",
    "/etc/sudoers",
    "tfstate",
];
/// Where people catch what others send (request bins, tunnels).
const SINKS: &[&str] = &[
    "webhook.site",
    "requestbin",
    "pipedream.net",
    "ngrok",
    "burpcollaborator",
    "oastify",
    "interact.sh",
    "oast.",
    "beeceptor",
    "requestcatcher",
    "hookbin",
    "dnslog",
    "ceye.io",
    "transfer.sh",
    "discord.com/api/webhooks",
    "discordapp.com/api/webhooks",
    "api.telegram.org/bot",
    "trycloudflare.com",
    "loca.lt",
    "serveo.net",
    "canarytokens",
    "webhookinbox",
    "postb.in",
    "ptsv",
];

/// What a piece of text without spaces is, if it is no word. `raw` has its case.
fn special(folded: &str, raw: &str) -> Option<Marks> {
    let contains = |list: &[&str]| list.iter().any(|part| folded.contains(part));
    if folded.contains("://") || folded.starts_with("www.") || folded.contains("](http") {
        let mut marks = *URL;
        let host = folded.split("://").nth(1).unwrap_or(folded);
        let literal = host.split(['/', ':', '?']).next().unwrap_or_default();
        let address: Option<std::net::Ipv4Addr> = literal.parse().ok();
        let public = address.is_some_and(|ip| {
            !(ip.is_private() || ip.is_loopback() || ip.is_unspecified() || ip.is_link_local() || ip.is_documentation())
        });
        if contains(SINKS) || public {
            marks |= *SINK;
        }
        let query = folded.split_once('?').map(|(_, query)| query).unwrap_or_default();
        if raw.contains("](http") && (query.contains(['{', '<', '$']) || query.contains("data") || raw.ends_with("=)"))
        {
            marks |= *PLACEHOLDER;
        }
        if contains(KEY_FILES) && folded.starts_with("file:") {
            marks |= *KEYFILE | *PRIVATE;
        }
        return Some(marks);
    }
    // Neither the settings of SSH nor a public key is secret.
    let public = folded.ends_with(".pub")
        || folded.ends_with("/config") && folded.contains(".ssh")
        || folded.ends_with("known_hosts");
    if contains(KEY_FILES) && !public {
        return Some(*KEYFILE | *PRIVATE);
    }
    let env = folded == ".env" || folded.ends_with("/.env") || folded.starts_with(".env.") || folded.contains("/.env.");
    if env || contains(PRIVATE_FILES) {
        return Some(*PRIVATE);
    }
    if contains(SINKS) {
        return Some(*URL | *SINK);
    }
    if let Some((user, host)) = folded.split_once('@')
        && !user.is_empty()
        && host.contains('.')
        && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))
    {
        return Some(*EMAIL);
    }
    let pieces = raw.split('_').filter(|piece| !piece.is_empty()).count();
    let camel = raw.chars().zip(raw.chars().skip(1)).any(|(a, b)| a.is_lowercase() && b.is_uppercase());
    let plain = raw.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    ((2..5).contains(&pieces) || camel).then_some(()).filter(|()| plain).map(|()| *IDENT)
}

/// Reads a text. A name is read as the words it is made of.
pub(super) fn read(raw: &str, name: bool) -> Reading {
    let mut reader = Reader { name, ..Reader::default() };
    let mut start = None;
    for (at, c) in raw.char_indices().chain([(raw.len(), ' ')]) {
        if c.is_whitespace() && !is_zero_width(c) {
            if let Some(start) = start.take() {
                reader.chunk(&raw[start..at], start);
            }
            if c == '\n' {
                reader.newline();
            }
        } else {
            if start.is_none() && matches!(c, '-' | '*' | '•' | '#') {
                reader.bullet();
            }
            start.get_or_insert(at);
        }
    }
    reader.finish()
}

#[derive(Debug, Default)]
struct Reader {
    name: bool,
    reading: Reading,
    sentence: Vec<Word>,
    /// Folded words of the sentence, beside `sentence`.
    folded: Vec<String>,
    clause: u32,
    quote: Option<char>,
    newlines: u32,
}

impl Reader {
    fn newline(&mut self) {
        self.newlines += 1;
        if self.newlines == 2 {
            self.end_sentence();
        }
    }

    /// A line that begins with a bullet begins a sentence.
    fn bullet(&mut self) {
        if self.newlines > 0 {
            self.end_sentence();
        }
    }

    fn chunk(&mut self, raw: &str, at: usize) {
        self.newlines = 0;
        let folded = fold(raw);
        if folded.chars().any(is_unspaced) {
            self.reading.unspaced = true;
        }
        if let Some(open) = raw.chars().next().filter(|c| matches!(c, '"' | '\'' | '“' | '‘' | '«' | '`' | '„'))
        {
            self.quote = Some(open);
        } else if raw.starts_with('(') {
            self.clause += 1;
            if let Some(open) = raw.chars().nth(1).filter(|c| matches!(c, '"' | '\'' | '“' | '`')) {
                self.quote = Some(open);
            }
        }
        let trimmed = folded.trim_matches(|c: char| !c.is_alphanumeric() && !matches!(c, '~' | '/' | '.' | '@' | '$'));
        let trimmed = trimmed.trim_end_matches(['.', '/', '$', '@']);
        let bare = raw.trim_matches(|c: char| !c.is_alphanumeric());
        if self.name {
            self.words(&split_case(raw), at, raw.len());
        } else if let Some(marks) = special(trimmed, bare) {
            self.push(String::new(), marks, at, raw.len());
        } else {
            self.words(trimmed, at, raw.len());
        }
        let end = raw.trim_end_matches(['"', '\'', '”', '’', '»', '`', ')', ']', '*', '“']);
        let spoken = raw.trim_end_matches(['.', ',', '!', '?', ';', ':']);
        let closes = |text: &str| text.ends_with(['"', '\'', '”', '’', '»', '`']);
        if end.len() < raw.len() && raw.chars().count() > 1 || closes(spoken) {
            self.quote = None;
        }
        let abbreviation = matches!(trimmed, "e.g" | "i.e" | "etc" | "vs" | "e.g.");
        if end.ends_with(['.', '!', '?', '。', '！', '？', '؟']) && !abbreviation {
            self.end_sentence();
        } else if end.ends_with([',', ':', ';', '—', '–']) || raw.ends_with(')') || matches!(raw, "-" | "--") {
            self.clause += 1;
        }
    }

    fn words(&mut self, text: &str, at: usize, length: usize) {
        let text = text.replace('\'', "");
        let pieces: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|piece| !piece.is_empty()).collect();
        let joined: String = pieces.concat();
        if let Some(plain) = unleet(&text) {
            let plain: String = plain.chars().filter(|c| c.is_alphanumeric()).collect();
            let marks = look_up(&plain);
            if marks != 0 && look_up(&joined) == 0 && pieces.iter().all(|piece| look_up(piece) == 0) {
                return self.push(plain, marks, at, length);
            }
        }
        // A word with signs inside ("ig-nore", "i.g.n.o.r.e") counts as the word if its parts are none.
        if pieces.len() > 1 && !self.name && pieces.iter().any(|piece| look_up(piece) == 0) {
            let marks = look_up(&joined);
            if marks != 0 && joined.len() > 4 {
                return self.push(joined, marks, at, length);
            }
        }
        for piece in pieces {
            self.push(piece.to_owned(), look_up(piece), at, length);
        }
    }

    fn push(&mut self, word: String, marks: Marks, start: usize, length: usize) {
        let clause = self.clause;
        let first = self.reading.sentences.is_empty() && self.sentence.is_empty();
        let before = self.sentence.last();
        let orders = before.map_or(!first, |before| before.clause != clause || before.marks & *LEAD != 0);
        self.sentence.push(Word { marks, start, end: start + length, clause, quoted: self.quote.is_some(), orders });
        self.folded.push(word);
        self.term();
    }

    /// Marks the end of a term of several words.
    fn term(&mut self) {
        const LONGEST: usize = 4;
        let length = self.folded.len();
        for back in 1..LONGEST.min(length) {
            let first = length - 1 - back;
            let Some(terms) = self.folded.get(first).and_then(|word| WORDS.terms.get(word.as_str())) else { continue };
            let rest = &self.folded[first + 1..];
            for (words, mark) in terms {
                let fits = |(word, term): (&String, &&str)| match term.strip_suffix('*') {
                    Some(prefix) => word.starts_with(prefix),
                    None => word == term,
                };
                if words.len() == rest.len()
                    && rest.iter().zip(words).all(fits)
                    && let Some(last) = self.sentence.last_mut()
                {
                    last.marks |= mark;
                }
            }
        }
    }

    fn end_sentence(&mut self) {
        self.clause += 1;
        self.quote = None;
        if self.sentence.is_empty() {
            return;
        }
        let (sentence, folded) = (std::mem::take(&mut self.sentence), std::mem::take(&mut self.folded));
        if !apart(&folded) {
            self.reading.sentences.push(sentence);
            return;
        }
        // Words put together may complete a term or an order, so the sentence is read once more.
        let clause = self.clause;
        for (word, text) in gather(sentence, folded) {
            self.clause = word.clause;
            self.push(text, word.marks, word.start, word.end - word.start);
        }
        self.clause = clause;
        self.folded.clear();
        let sentence = std::mem::take(&mut self.sentence);
        self.reading.sentences.push(sentence);
    }

    fn finish(mut self) -> Reading {
        self.end_sentence();
        self.reading
    }
}

/// Whether there are letters set apart or halves of known words.
fn apart(folded: &[String]) -> bool {
    folded.windows(4).any(|four| four.iter().all(|word| single(word)))
        || folded.windows(2).any(|two| matches!(two, [one, two] if half(one, two)))
}

fn single(word: &str) -> bool {
    word.chars().nth(1).is_none() && !word.is_empty()
}

/// Puts letters that were set apart, and halves of known words, together again.
fn gather(sentence: Vec<Word>, folded: Vec<String>) -> Vec<(Word, String)> {
    let mut whole = Vec::new();
    let mut left = sentence.into_iter().zip(folded).peekable();
    while let Some((mut word, mut text)) = left.next() {
        let length = text.len();
        if single(&text) {
            // Two spaces divide words written in single letters; a known word is complete as well.
            while let Some((more, letter)) =
                left.next_if(|(next, letter)| single(letter) && next.start <= word.end + 1 && !complete(&text))
            {
                text.push_str(&letter);
                word.end = more.end;
            }
        } else if let Some((more, rest)) = left.next_if(|(_, rest)| half(&text, rest)) {
            text.push_str(&rest);
            word.end = more.end;
        }
        if text.len() > length {
            word.marks = look_up(&text);
        }
        whole.push((word, text));
    }
    whole
}

/// Whether letters make a word that is not likely to go on.
fn complete(text: &str) -> bool {
    (text.len() > 3 || matches!(text, "all" | "not" | "you" | "any")) && look_up(text) != 0
}

/// Whether two words that mean nothing make one that does.
fn half(one: &str, two: &str) -> bool {
    const LEAST: usize = 6;
    one.len() + two.len() >= LEAST
        && one.len() > 1
        && two.len() > 1
        && look_up(one) == 0
        && look_up(two) == 0
        && WORDS.exact.contains_key(format!("{one}{two}").as_str())
}

fn split_case(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len() + 8);
    let mut lower = false;
    for c in raw.chars() {
        if lower && c.is_uppercase() {
            out.push(' ');
        }
        lower = c.is_lowercase() || c.is_ascii_digit();
        out.push(c);
    }
    fold(&out)
}

fn is_unspaced(c: char) -> bool {
    matches!(c, '\u{0E00}'..='\u{0EFF}' | '\u{1100}'..='\u{11FF}' | '\u{2E80}'..='\u{D7AF}' | '\u{F900}'..='\u{FAFF}')
        || matches!(c, '\u{0600}'..='\u{06FF}' | '\u{0900}'..='\u{097F}' | '\u{20000}'..='\u{3FFFF}')
}
