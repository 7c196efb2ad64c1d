//! Whether a definition may be used: pure rules over what was known, what is listed now, and what was found in it.

use crate::api::{FindingView, Severity, ToolState};
use crate::definition::DefinitionHash;

/// Who approves what a trusted server lists.
pub const CONFIGURATION: &str = "configuration";

/// What is known of a tool already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Whether it may be used.
    pub state: ToolState,
    /// Why.
    pub reason: String,
    /// Hash of the definition listed last.
    pub hash: DefinitionHash,
    /// Hash of the definition approved last.
    pub approved: Option<DefinitionHash>,
    /// Name of the key of who put it aside.
    pub held_by: Option<String>,
}

/// What becomes of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it may be used.
    pub state: ToolState,
    /// Why.
    pub reason: String,
    /// Who approves this definition with this; `None`: nobody new.
    pub approved_by: Option<&'static str>,
    /// Name of the key of who put it aside, which stays.
    pub held_by: Option<String>,
    /// What happened, for the list of changes; `None`: nothing.
    pub change: Option<&'static str>,
}

/// Decides on one tool of a listing.
///
/// A definition is used when a person approved exactly it, or when its server is trusted and nothing dangerous was found
/// in it. One that differs from what was approved is a rug pull until somebody has looked at it. What a person put
/// aside stays aside.
pub fn judge(known: Option<&Known>, hash: &DefinitionHash, findings: &[FindingView], trusted: bool) -> Verdict {
    let danger = findings.iter().find(|finding| finding.severity == Severity::Danger);
    let fresh = |change: Option<&'static str>, news: &str| match (danger, trusted) {
        (Some(finding), _) => quarantined(format!("looks dangerous ({}): {}", finding.rule, finding.why), change),
        (None, true) => Verdict {
            state: ToolState::Approved,
            reason: "its server is trusted".to_owned(),
            approved_by: Some(CONFIGURATION),
            held_by: None,
            change,
        },
        (None, false) => quarantined(news.to_owned(), change),
    };
    let Some(known) = known else {
        return fresh(Some("tool-added"), "new: nobody has looked at it yet");
    };
    if known.hash == *hash {
        let undecided = known.state == ToolState::Quarantined && known.held_by.is_none();
        if undecided && trusted && danger.is_none() {
            return fresh(Some("tool-approved"), "");
        }
        let (state, reason, held_by) = (known.state, known.reason.clone(), known.held_by.clone());
        return Verdict { state, reason, approved_by: None, held_by, change: None };
    }
    let change = Some("tool-changed");
    if known.held_by.is_some() {
        let (state, reason, held_by) = (known.state, known.reason.clone(), known.held_by.clone());
        return Verdict { state, reason, approved_by: None, held_by, change };
    }
    match &known.approved {
        Some(approved) if approved == hash => Verdict {
            state: ToolState::Approved,
            reason: "back to the definition that was approved".to_owned(),
            approved_by: None,
            held_by: None,
            change,
        },
        Some(_) => {
            fresh(change, "its definition changed after it was approved (a rug pull, until somebody has looked)")
        }
        None => fresh(change, "its definition changed, and nobody has looked at it yet"),
    }
}

fn quarantined(reason: String, change: Option<&'static str>) -> Verdict {
    Verdict { state: ToolState::Quarantined, reason, approved_by: None, held_by: None, change }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash(text: &str) -> DefinitionHash {
        DefinitionHash::from_stored(text.to_owned())
    }

    fn finding(severity: Severity) -> FindingView {
        FindingView {
            rule: "hidden-text".to_owned(),
            severity,
            field: "description".to_owned(),
            excerpt: String::new(),
            why: "it hides text".to_owned(),
        }
    }

    fn known(state: ToolState, now: &str, approved: Option<&str>) -> Known {
        Known { state, reason: "because".to_owned(), hash: hash(now), approved: approved.map(hash), held_by: None }
    }

    use ToolState::{Approved, Blocked, Quarantined};

    #[test]
    fn a_new_tool_waits_unless_its_server_is_trusted() {
        let (warning, danger) = ([finding(Severity::Warning)], [finding(Severity::Danger)]);
        for (findings, trusted, state) in [
            (&[][..], false, Quarantined),
            (&[], true, Approved),
            (&warning, true, Approved),
            (&danger, true, Quarantined),
            (&danger, false, Quarantined),
        ] {
            let verdict = judge(None, &hash("a"), findings, trusted);
            assert_eq!((verdict.state, verdict.change), (state, Some("tool-added")), "{findings:?} {trusted}");
            assert_eq!(verdict.approved_by.is_some(), state == Approved);
        }
    }

    #[test]
    fn an_approved_tool_that_changes_is_held_until_it_changes_back() {
        let pulled = judge(Some(&known(Approved, "a", Some("a"))), &hash("b"), &[], false);
        assert_eq!((pulled.state, pulled.change), (Quarantined, Some("tool-changed")));
        assert!(pulled.reason.contains("rug pull"));
        let again = judge(Some(&known(Quarantined, "b", Some("a"))), &hash("b"), &[], false);
        assert_eq!((again.state, again.change), (Quarantined, None));
        let back = judge(Some(&known(Quarantined, "b", Some("a"))), &hash("a"), &[], false);
        assert_eq!((back.state, back.approved_by), (Approved, None));
    }

    #[test]
    fn what_a_person_put_aside_stays_aside_whatever_the_server_does() {
        for state in [Quarantined, Blocked] {
            let held = Known { held_by: Some("me".to_owned()), ..known(state, "a", Some("a")) };
            for listed in ["a", "b"] {
                let verdict = judge(Some(&held), &hash(listed), &[], true);
                assert_eq!((verdict.state, verdict.held_by.as_deref()), (state, Some("me")), "{listed}");
            }
        }
    }

    #[test]
    fn trusting_a_server_later_lets_in_what_waited() {
        let waiting = known(Quarantined, "a", None);
        assert_eq!(judge(Some(&waiting), &hash("a"), &[], true).approved_by, Some(CONFIGURATION));
        assert_eq!(judge(Some(&waiting), &hash("a"), &[finding(Severity::Danger)], true).state, Quarantined);
    }

    proptest! {
        #[test]
        fn nothing_is_used_that_nobody_approved(
            state in prop_oneof![Just(Approved), Just(Quarantined), Just(Blocked)],
            now in "[ab]", approved in proptest::option::of("[ab]"), listed in "[abc]", trusted: bool, danger: bool, held: bool,
        ) {
            // What the registry keeps: a tool in use has the definition that was approved.
            prop_assume!(state != Approved || approved.as_deref() == Some(now.as_str()));
            let mut before = known(state, &now, approved.as_deref());
            if held && state != Approved {
                before.held_by = Some("me".to_owned());
            }
            let findings = if danger { vec![finding(Severity::Danger)] } else { Vec::new() };
            let verdict = judge(Some(&before), &hash(&listed), &findings, trusted);
            if verdict.state == Approved {
                let pinned = approved.as_deref() == Some(listed.as_str());
                prop_assert!(pinned || (verdict.approved_by.is_some() && trusted && !danger));
                prop_assert!(before.held_by.is_none());
            }
        }
    }
}
