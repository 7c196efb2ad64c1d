//! Every pattern against lines of real programs, one by one.
//!
//! `measured-lines.tsv` was captured from running programs or quoted from reports; its source column says which.
//! `known-lines.tsv` has the wording of programs' source code and documentation, with values of our own.

use lares_healer::classify::Classifier;
use lares_healer::measure::{self, Labelled};
use lares_healer::patterns::Patterns;

const MEASURED: &str = include_str!("data/measured-lines.tsv");
const KNOWN: &str = include_str!("data/known-lines.tsv");

#[track_caller]
fn all_right(table: &str) {
    let classifier = Classifier::builtin();
    let labelled = measure::read(table, &classifier).expect("it is a table");
    let measured = measure::measure(&classifier, &labelled);
    let said: Vec<String> = measured
        .mistakes
        .iter()
        .map(|m| format!("{:>4} {} taken for {:?}: {}", m.number, m.label, m.taken_for, m.line))
        .collect();
    assert!(said.is_empty(), "{} of {} lines:\n{}", said.len(), labelled.len(), said.join("\n"));
}

#[test]
fn measured_lines_are_recognised() {
    all_right(MEASURED);
}

#[test]
fn known_lines_are_recognised() {
    all_right(KNOWN);
}

#[test]
fn examples_and_counterexamples_of_the_patterns_hold() {
    let classifier = Classifier::new(Patterns::builtin()).map_err(|error| error.to_string());
    assert_eq!(classifier.err(), None);
}

#[test]
fn every_pattern_is_tried_from_both_sides() {
    let classifier = Classifier::builtin();
    let rows: Vec<Labelled<'_>> =
        [MEASURED, KNOWN].iter().flat_map(|table| measure::read(table, &classifier).expect("it is a table")).collect();
    for pattern in classifier.patterns().iter() {
        let count = |negative| rows.iter().filter(|r| r.pattern == pattern.name && r.negative == negative).count();
        let enough = if pattern.remedy.name() == "alert" { (8, 2) } else { (23, 11) };
        assert!(count(false) >= enough.0, "{}: {} positive lines", pattern.name, count(false));
        assert!(count(true) >= enough.1, "{}: {} negative lines", pattern.name, count(true));
    }
}

#[test]
fn a_users_pattern_that_misses_its_own_example_is_refused() {
    let refused = |pattern: &str| {
        let mut patterns = Patterns::builtin();
        patterns.add(&format!("version = 1\n{pattern}")).expect("its shape is right");
        Classifier::new(patterns).expect_err("it should have been refused").to_string()
    };
    let head = "[[pattern]]\nname = \"own\"\ndescription = \"d\"\nremedy = \"alert\"\n";
    let said = refused(&format!("{head}[[pattern.rule]]\nname = \"a\"\nregex = ['lost']\nexamples = ['found']"));
    assert!(said.contains("pattern `own`, rule `a`, examples: \"found\" is recognised as nothing"), "{said}");
    let said = refused(&format!("{head}counterexamples = ['lost']\n[[pattern.rule]]\nname = \"a\"\nregex = ['lost']"));
    assert!(said.contains("pattern `own`, counterexamples: \"lost\" is matched by rule `a`"), "{said}");
    let said = refused(&format!("{head}[[pattern.rule]]\nname = \"a\"\nregex = ['lost(']"));
    assert!(said.contains("pattern `own`, rule `a`, regex: `lost(`"), "{said}");
    let said = refused(&format!("{head}evidence = ['(?P<a>[)']\n[[pattern.rule]]\nname = \"a\"\nregex = ['lost']"));
    assert!(said.contains("pattern `own`, evidence: "), "{said}");
    let said = refused("[[untrusted]]\nname = \"x\"\nregex = ['said .*']");
    assert!(said.contains("`untrusted x`, regex: ") && said.contains("(?P<text>"), "{said}");
    let bomb = format!("{head}[[pattern.rule]]\nname = \"a\"\nregex = ['(?:a{{1000}}){{1000}}']");
    assert!(refused(&bomb).contains("size limit"), "{}", refused(&bomb));
}
