//! Reads the `--help` of a llama-server: which flags it has, and what each takes.

use std::sync::LazyLock;

use regex::Regex;

/// One entry of `--help`, with all its spellings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// Spellings, short and long, and `--no-…` where there is one.
    pub names: Vec<String>,
    /// Placeholder of the value, such as `N` or `[on|off|auto]`; `None` for a switch.
    pub hint: Option<String>,
    /// The values it accepts, where the help lists them; empty when anything goes.
    pub values: Vec<String>,
    /// What happens without the flag, in the help's words.
    pub default: Option<String>,
    /// The description, on one line.
    pub text: String,
    /// Listed only to say that it is gone.
    pub removed: bool,
}

impl Flag {
    /// Whether the flag takes `value`, as far as the help tells.
    pub fn accepts(&self, value: &str) -> bool {
        self.hint.is_some() && (self.values.is_empty() || self.values.iter().any(|v| v == value))
    }
}

/// The flags that a help text lists, in its order.
pub fn parse(help: &str) -> Vec<Flag> {
    let mut flags: Vec<(Flag, Vec<&str>)> = Vec::new();
    for line in help.lines() {
        if line.starts_with("-----") {
            continue;
        }
        if let Some((names, hint, text)) = header(line) {
            let flag = Flag { names, hint, values: Vec::new(), default: None, text: String::new(), removed: false };
            flags.push((flag, vec![text]));
        } else if let Some((_, lines)) = flags.last_mut()
            && line.starts_with(char::is_whitespace)
        {
            lines.push(line.trim());
        }
    }
    flags.into_iter().map(|(flag, lines)| describe(flag, &lines)).collect()
}

/// The names, the value's placeholder and the first words of the text of a line such as
/// `-c,    --ctx-size N                     size of the prompt context`.
fn header(line: &str) -> Option<(Vec<String>, Option<String>, &str)> {
    static NAME: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"^(--?[A-Za-z0-9][A-Za-z0-9._-]*)(,\s*)?").expect("the pattern is a constant that compiles")
    });
    let mut names = Vec::new();
    let mut rest = line;
    while let Some(found) = NAME.captures(rest) {
        names.push(found[1].to_owned());
        rest = &rest[found[0].len()..];
        if found.get(2).is_none() {
            break;
        }
    }
    if names.is_empty() {
        return None;
    }
    // Two blanks end the placeholder, which may hold single ones.
    let (hint, text) = if rest.starts_with("  ") { ("", rest) } else { rest.split_once("  ").unwrap_or((rest, "")) };
    let hint = hint.trim();
    Some((names, (!hint.is_empty()).then(|| hint.to_owned()), text.trim()))
}

fn describe(mut flag: Flag, lines: &[&str]) -> Flag {
    static DEFAULT: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"default: '?([^',;)]*[^',;)\s])").expect("the pattern is a constant that compiles")
    });
    flag.text = lines.iter().copied().filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    flag.default = DEFAULT.captures(&flag.text).map(|found| found[1].to_owned());
    flag.removed = flag.text.contains("argument has been removed") || flag.text.starts_with("[REMOVED]");
    if let Some(hint) = &flag.hint {
        flag.values = listed_in_hint(hint);
        if flag.values.is_empty() {
            flag.values = listed_as_allowed(&flag.text);
        }
        if flag.values.is_empty() {
            flag.values = listed_as_items(lines);
        }
        if flag.values.is_empty() {
            flag.values = listed_in_quotes(&flag.text);
        }
    }
    flag
}

/// `{none,layer,row}`, `[on|off|auto]`, `<0|1>`.
fn listed_in_hint(hint: &str) -> Vec<String> {
    let inner = [('{', '}'), ('[', ']'), ('<', '>')]
        .into_iter()
        .find_map(|(open, close)| hint.strip_prefix(open)?.strip_suffix(close));
    let separator = if hint.contains('|') { '|' } else { ',' };
    match inner {
        // `<dev1,dev2,..>` is a list to write, not a choice.
        Some(inner) if inner.contains(separator) && !inner.contains("..") => {
            inner.split(separator).map(|v| v.trim().to_owned()).collect()
        }
        _ => Vec::new(),
    }
}

/// `allowed values: f32, f16, q8_0 (default: f16)`.
fn listed_as_allowed(text: &str) -> Vec<String> {
    let Some((_, after)) = text.split_once("allowed values: ") else { return Vec::new() };
    let end = after.find('(').unwrap_or(after.len());
    after[..end].split(',').map(|v| v.trim().to_owned()).filter(|v| !v.is_empty()).collect()
}

/// Lines such as `- mlock: keep the model in RAM`.
fn listed_as_items(lines: &[&str]) -> Vec<String> {
    let value = |line: &str| {
        let (name, _) = line.strip_prefix("- ")?.split_once(':')?;
        let name = name.split_whitespace().next()?;
        name.chars().all(|c| c.is_ascii_alphanumeric() || "+_-".contains(c)).then(|| name.to_owned())
    };
    lines.iter().filter_map(|line| value(line)).collect()
}

/// `set Flash Attention use ('on', 'off', or 'auto', default: 'auto')`.
fn listed_in_quotes(text: &str) -> Vec<String> {
    static CHOICE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\(((?:'\w+', )+or '\w+')").expect("the pattern is a constant that compiles"));
    let Some(found) = CHOICE.captures(text) else { return Vec::new() };
    found[1].split('\'').skip(1).step_by(2).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CURRENT: &str = "\
----- common params -----

-h,    --help, --usage                  print usage and exit
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
                                        (env: LLAMA_ARG_CTX_SIZE)
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto', default: 'auto')
                                        (env: LLAMA_ARG_FLASH_ATTN)
-ctk,  --cache-type-k TYPE              KV cache data type for K
                                        allowed values: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1
                                        (default: f16)
                                        (env: LLAMA_ARG_CACHE_TYPE_K)
-lm,   --load-mode MODE                 model loading mode (default: auto)
                                        - auto: mmap, unless a device does not support it
                                        - none: no special loading mode
                                        - mlock: force system to keep model in RAM rather than swapping or
                                        compressing
                                        - mmap+mlock: mmap + force system to keep model in RAM rather than
                                        swapping or compressing

                                        (env: LLAMA_ARG_LOAD_MODE)
-kvu,  --kv-unified, -no-kvu, --no-kv-unified
                                        use single unified KV buffer shared across all sequences (default:
                                        enabled if number of slots is auto)
-dev,  --device <dev1,dev2,..>          comma-separated list of devices to use for offloading (none = don't
                                        offload)
--draft, --draft-n, --draft-max N       the argument has been removed. use --spec-draft-n-max or
                                        --spec-ngram-mod-n-max
--pooling {none,mean,cls,last,rank}     pooling type for embeddings, use model default if unspecified
--host HOST                             IP addresses to listen on, comma-separated, or UNIX socket paths
                                        ending in .sock (default:
                                        127.0.0.1)
-sm,   --split-mode {none,layer,row,tensor}
                                        how to split the model across multiple GPUs, one of:
                                        - none: use one GPU only
-tbd,  --threads-batch-draft, --lora-scaled FNAME SCALE
                                        number of threads
";

    const OLDER: &str = "\
ggml_cuda_init: found 1 CUDA devices:
  Device 0: a card, compute capability 8.6
----- common params -----

-fa,   --flash-attn                     enable Flash Attention (default: disabled)
                                        (env: LLAMA_ARG_FLASH_ATTN)
-dt,   --defrag-thold N                 KV cache defragmentation threshold (default: 0.1, < 0 - disabled)
--mlock                                 force system to keep model in RAM rather than swapping or compressing
                                        (env: LLAMA_ARG_MLOCK)
--numa TYPE                             attempt optimizations that help on some NUMA systems
                                        - distribute: spread execution evenly over all nodes
                                        - isolate: only spawn threads on CPUs on the node that execution started on
                                        - numactl: use the CPU map provided by numactl
-ngl,  --gpu-layers, --n-gpu-layers N   number of layers to store in VRAM
-a,    --alias STRING                   set alias for model name (to be used by REST API)
";

    #[test]
    fn entries_of_a_current_build_are_read_with_their_values() {
        insta::assert_debug_snapshot!(parse(CURRENT));
    }

    #[test]
    fn entries_of_an_older_build_are_read_with_their_values() {
        insta::assert_debug_snapshot!(parse(OLDER));
    }

    #[test]
    fn a_middle_aged_build_lists_values_in_quotes() {
        let flags =
            parse("-fa,   --flash-attn FA   set Flash Attention use ('on', 'off', or 'auto', default: 'auto')\n");
        assert_eq!(flags[0].values, ["on", "off", "auto"]);
        assert_eq!(flags[0].default.as_deref(), Some("auto"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "[-a-z ,<>{}\\[\\]|'():\n]{0,200}") {
            for flag in parse(&text) {
                proptest::prop_assert!(flag.names.iter().all(|name| name.starts_with('-')));
            }
        }
    }
}
