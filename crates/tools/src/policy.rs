//! Who may call what, and who sees what: the rules and the toolsets of the configuration.

use std::collections::BTreeMap;

use lares_config::{GatewayMode, ToolAction, Tools};

use crate::api::Policy;
use crate::definition::ToolId;

/// The rules and the toolsets, ready to be asked.
#[derive(Debug, Clone)]
pub struct Policies {
    rules: Vec<Rule>,
    default: Policy,
    toolsets: BTreeMap<String, Toolset>,
}

#[derive(Debug, Clone)]
struct Rule {
    tools: Vec<Pattern>,
    keys: Vec<String>,
    policy: Policy,
}

/// A named selection of tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolset {
    name: String,
    tools: Vec<Pattern>,
    keys: Vec<String>,
    mode: GatewayMode,
    namespaces: bool,
}

impl Toolset {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its clients are shown.
    pub fn mode(&self) -> GatewayMode {
        self.mode
    }

    /// Whether names carry their server's.
    pub fn namespaces(&self) -> bool {
        self.namespaces
    }

    /// Whether a tool is in it.
    pub fn contains(&self, tool: &ToolId) -> bool {
        self.tools.iter().any(|pattern| pattern.matches(tool.as_str()))
    }

    /// Whether a key may use it.
    fn is_for(&self, key: &str) -> bool {
        self.keys.is_empty() || self.keys.iter().any(|name| name == key)
    }
}

/// A toolset that a key may not use, or that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no toolset `{0}` for this key")]
pub struct NoToolset(pub String);

impl Policies {
    /// Those of a configuration.
    pub fn new(config: &Tools) -> Self {
        let patterns = |texts: &[String]| texts.iter().map(|text| Pattern::new(text)).collect();
        let rules = config.policy.iter().map(|rule| Rule {
            tools: patterns(&rule.tools),
            keys: rule.keys.clone(),
            policy: policy(rule.action),
        });
        let toolsets = config.toolsets.iter().map(|(name, toolset)| {
            let toolset = Toolset {
                name: name.clone(),
                tools: patterns(&toolset.tools),
                keys: toolset.keys.clone(),
                mode: toolset.mode.unwrap_or(config.gateway.mode),
                namespaces: toolset.namespaces,
            };
            (name.clone(), toolset)
        });
        Self { rules: rules.collect(), default: policy(config.default_policy), toolsets: toolsets.collect() }
    }

    /// What happens when the key of this name calls a tool: the first rule that names both says it.
    pub fn decide(&self, key: &str, tool: &ToolId) -> Policy {
        let names = |rule: &&Rule| {
            (rule.keys.is_empty() || rule.keys.iter().any(|name| name == key))
                && rule.tools.iter().any(|pattern| pattern.matches(tool.as_str()))
        };
        self.rules.iter().find(names).map_or(self.default, |rule| rule.policy)
    }

    /// The toolset that a key is bound to: it sees that and nothing else.
    pub fn toolset_of(&self, key: &str) -> Option<&Toolset> {
        self.toolsets.values().find(|toolset| toolset.keys.iter().any(|name| name == key))
    }

    /// A toolset by name, whoever may use it.
    pub fn toolset(&self, name: &str) -> Option<&Toolset> {
        self.toolsets.get(name)
    }

    /// What a key sees at `/mcp` (`asked` absent) or `/mcp/NAME`; `None`: everything that the rules leave it.
    ///
    /// # Errors
    /// When there is no such toolset, it is for other keys, or the key is bound to another one.
    pub fn toolset_for(&self, key: &str, asked: Option<&str>) -> Result<Option<&Toolset>, NoToolset> {
        let bound = self.toolset_of(key);
        let Some(asked) = asked else { return Ok(bound) };
        let usable = |toolset: &&Toolset| bound.map_or(toolset.is_for(key), |bound| bound.name == toolset.name);
        self.toolset(asked).filter(usable).map(Some).ok_or_else(|| NoToolset(asked.to_owned()))
    }
}

fn policy(action: ToolAction) -> Policy {
    match action {
        ToolAction::Allow => Policy::Allow,
        ToolAction::Ask => Policy::Ask,
        ToolAction::Deny => Policy::Deny,
    }
}

/// Text in which `*` stands for anything, also for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    /// What stands before the first `*`.
    start: String,
    /// What stands between two.
    middle: Vec<String>,
    /// What stands behind the last; absent where there is no `*`.
    end: Option<String>,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let mut parts = text.split('*').map(str::to_owned);
        let start = parts.next().unwrap_or_default();
        let mut middle: Vec<String> = parts.collect();
        let end = middle.pop();
        middle.retain(|part| !part.is_empty());
        Self { start, middle, end }
    }

    /// Every part is looked for once, from left to right, so the time grows with the text and the pattern and not with
    /// their product.
    fn matches(&self, text: &str) -> bool {
        let Some(end) = &self.end else { return text == self.start };
        let Some(inner) = text.strip_prefix(self.start.as_str()).and_then(|rest| rest.strip_suffix(end.as_str()))
        else {
            return false;
        };
        let after = |rest: &'_ str, part: &String| rest.find(part.as_str()).map(|at| at + part.len());
        let mut rest = inner;
        for part in &self.middle {
            let Some(next) = after(rest, part) else { return false };
            rest = &rest[next..];
        }
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Duration, Instant};

    use lares_config::{ToolRule, Toolset as Declared};
    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> ToolId {
        text.parse().unwrap()
    }

    fn rule(tools: &[&str], keys: &[&str], action: ToolAction) -> ToolRule {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        ToolRule { tools: owned(tools), keys: owned(keys), action }
    }

    #[test]
    fn the_first_rule_that_names_tool_and_key_counts() {
        let policies = Policies::new(&Tools {
            policy: vec![
                rule(&["git__git_push"], &["eva"], ToolAction::Ask),
                rule(&["git__*_push", "shell__*"], &[], ToolAction::Deny),
                rule(&["*"], &["eva", "tom"], ToolAction::Allow),
            ],
            default_policy: ToolAction::Ask,
            ..Tools::default()
        });
        for (key, tool, expected) in [
            ("eva", "git__git_push", Policy::Ask),
            ("tom", "git__git_push", Policy::Deny),
            ("tom", "git__git_status", Policy::Allow),
            ("ann", "git__git_status", Policy::Ask),
            ("ann", "shell__run", Policy::Deny),
            ("ann", "shell2__run", Policy::Ask),
        ] {
            assert_eq!(policies.decide(key, &id(tool)), expected, "{key} {tool}");
        }
        let nothing_said = Policies::new(&Tools::default());
        assert_eq!(nothing_said.decide("ann", &id("git__git_push")), Policy::Allow);
    }

    #[test]
    fn a_key_sees_its_toolset_and_nothing_else() {
        let set = |tools: &str, keys: &[&str], mode| Declared {
            tools: vec![tools.to_owned()],
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            mode,
            namespaces: false,
        };
        let policies = Policies::new(&Tools {
            toolsets: BTreeMap::from([
                ("git".to_owned(), set("git__*", &[], Some(GatewayMode::List))),
                ("night".to_owned(), set("time__*", &["worker"], None)),
            ]),
            ..Tools::default()
        });
        let name = |key, asked| policies.toolset_for(key, asked).map(|toolset| toolset.map(Toolset::name));
        assert_eq!(name("eva", None), Ok(None));
        assert_eq!(name("eva", Some("git")), Ok(Some("git")));
        assert_eq!(name("eva", Some("night")), Err(NoToolset("night".to_owned())));
        assert_eq!(name("eva", Some("day")), Err(NoToolset("day".to_owned())));
        assert_eq!(name("worker", None), Ok(Some("night")));
        assert_eq!(name("worker", Some("night")), Ok(Some("night")));
        assert_eq!(name("worker", Some("git")), Err(NoToolset("git".to_owned())));
        let git = policies.toolset("git").unwrap();
        assert_eq!((git.mode(), git.namespaces()), (GatewayMode::List, false));
        assert_eq!(policies.toolset("night").unwrap().mode(), Tools::default().gateway.mode);
        assert!(git.contains(&id("git__status")) && !git.contains(&id("gitx__status")));
        assert_eq!(policies.toolset_of("eva"), None);
    }

    /// As the words say it, without any thought of time.
    fn naive(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|at| naive(rest, &text[at..])),
            Some((first, rest)) => text.first() == Some(first) && naive(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn patterns_mean_what_the_naive_matcher_says(pattern in "[ab_*]{0,8}", text in "[ab_]{0,12}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(Pattern::new(&pattern).matches(&text), naive(&chars(&pattern), &chars(&text)));
        }

        #[test]
        fn a_pattern_made_of_the_text_matches_it(text in "[a-zA-Z0-9_.é-]{0,20}", holes in any::<u32>()) {
            let pattern: String =
                text.chars().enumerate().map(|(place, c)| if holes >> (place % 32) & 1 == 1 { '*' } else { c }).collect();
            prop_assert!(Pattern::new(&pattern).matches(&text), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_longer() {
        let (pattern, text) = (Pattern::new(&"*a".repeat(100)), "a".repeat(99) + "b");
        let began = Instant::now();
        for _ in 0..1000 {
            assert!(!pattern.matches(&text));
        }
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}
