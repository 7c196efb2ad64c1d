//! How well the patterns recognise lines of which somebody knows what they are.
//!
//! Labelled lines are a table of tab-separated columns: pattern, software, line, source. `neg:PATTERN` marks a line
//! that looks like the pattern and is not.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::classify::{Classifier, Entry};

/// One line with what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Labelled<'a> {
    /// Where it stands in the table, from 1.
    pub number: usize,
    /// The pattern it shows, or must not show.
    pub pattern: &'a str,
    /// Whether it only looks like it.
    pub negative: bool,
    /// Which program wrote it.
    pub software: &'a str,
    /// The line.
    pub line: &'a str,
    /// Where it comes from.
    pub source: &'a str,
}

/// A table that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A row without the columns.
    #[error("line {0} of the table has no three columns; write pattern, software, line and source with tabs between")]
    Columns(usize),
    /// A pattern that there is not.
    #[error("line {number} of the table names the pattern `{pattern}`, which does not exist; known are {known}")]
    UnknownPattern {
        /// Where.
        number: usize,
        /// Which.
        pattern: String,
        /// Those that exist.
        known: String,
    },
    /// Nothing but a header.
    #[error("the table has no lines")]
    Empty,
}

/// Reads a table. Empty rows, rows that begin with `#` and a header are left out.
pub fn read<'a>(table: &'a str, classifier: &Classifier) -> Result<Vec<Labelled<'a>>, Error> {
    let mut labelled = Vec::new();
    for (position, row) in table.lines().enumerate() {
        let number = position + 1;
        let header = position == 0 && row.starts_with("pattern\t");
        if header || row.trim().is_empty() || row.starts_with('#') {
            continue;
        }
        let mut columns = row.split('\t');
        let (Some(label), Some(software), Some(line)) = (columns.next(), columns.next(), columns.next()) else {
            return Err(Error::Columns(number));
        };
        let (pattern, negative) = label.strip_prefix("neg:").map_or((label, false), |pattern| (pattern, true));
        if classifier.patterns().get(pattern).is_none() {
            let known: Vec<&str> = classifier.patterns().iter().map(|pattern| pattern.name.as_str()).collect();
            return Err(Error::UnknownPattern { number, pattern: pattern.into(), known: known.join(", ") });
        }
        let source = columns.next().unwrap_or_default();
        labelled.push(Labelled { number, pattern, negative, software, line, source });
    }
    if labelled.is_empty() { Err(Error::Empty) } else { Ok(labelled) }
}

/// Lines of one pattern, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Count {
    /// Lines that show it.
    pub positive: usize,
    /// Lines that look like it and are not.
    pub negative: usize,
    /// Lines that show it and were recognised.
    pub found: usize,
    /// Lines that show it and were not.
    pub missed: usize,
    /// Lines taken for it that are something else.
    pub mistaken: usize,
}

impl Count {
    /// The share of what was taken for it that is it; 1 when nothing was.
    pub fn precision(&self) -> f64 {
        share(self.found, self.found + self.mistaken)
    }

    /// The share of its lines that were recognised; 1 when there are none.
    pub fn recall(&self) -> f64 {
        share(self.found, self.found + self.missed)
    }
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

/// A line that was not recognised as what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Mistake {
    /// Where it stands in the table, from 1.
    pub number: usize,
    /// What it is: a pattern, or `neg:` and one.
    pub label: String,
    /// The pattern and the rule it was taken for, if any.
    pub taken_for: Option<(String, String)>,
    /// The line.
    pub line: String,
}

/// What came of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Measurement {
    /// By pattern.
    pub patterns: BTreeMap<String, Count>,
    /// Everything that went wrong, in the order of the table.
    pub mistakes: Vec<Mistake>,
    /// Lines marked `neg:` that were recognised as some other pattern: the label does not say whether that is right.
    pub unjudged: usize,
}

impl Measurement {
    /// All patterns together.
    pub fn total(&self) -> Count {
        self.patterns.values().fold(Count::default(), |sum, count| Count {
            positive: sum.positive + count.positive,
            negative: sum.negative + count.negative,
            found: sum.found + count.found,
            missed: sum.missed + count.missed,
            mistaken: sum.mistaken + count.mistaken,
        })
    }
}

/// Classifies each line alone and compares.
pub fn measure(classifier: &Classifier, labelled: &[Labelled<'_>]) -> Measurement {
    let mut result = Measurement::default();
    for row in labelled {
        let taken = classifier.classify(Entry::text(row.line)).map(|found| (found.pattern, found.rule));
        let same = taken.as_ref().is_some_and(|(pattern, _)| pattern == row.pattern);
        let own = result.patterns.entry(row.pattern.to_owned()).or_default();
        match (row.negative, same) {
            (false, true) => (own.positive, own.found) = (own.positive + 1, own.found + 1),
            (false, false) => (own.positive, own.missed) = (own.positive + 1, own.missed + 1),
            (true, true) => (own.negative, own.mistaken) = (own.negative + 1, own.mistaken + 1),
            (true, false) => {
                own.negative += 1;
                result.unjudged += usize::from(taken.is_some());
            }
        }
        if row.negative == same {
            if let Some((other, _)) = taken.as_ref().filter(|_| !row.negative) {
                result.patterns.entry(other.clone()).or_default().mistaken += 1;
            }
            let label = if row.negative { format!("neg:{}", row.pattern) } else { row.pattern.to_owned() };
            result.mistakes.push(Mistake { number: row.number, label, taken_for: taken, line: row.line.to_owned() });
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_mistake_is_counted() {
        let classifier = Classifier::builtin();
        let table = "pattern\tsoftware\tline\tsource\n\
            port_conflict\ta\tlisten tcp :80: bind: address already in use\t\n\
            port_conflict\ta\tall is well\t\n\
            oom_kill\ta\tbash: /x: Permission denied\t\n\
            neg:disk_full\ta\tdatabase or disk is full\t\n\
            neg:oom_kill\ta\tstd::bad_alloc\t\n\
            neg:oom_kill\ta\tgood morning\t\n";
        let labelled = read(table, &classifier).expect("it is a table");
        let measured = measure(&classifier, &labelled);
        let of = |name: &str| measured.patterns[name];
        assert_eq!((of("port_conflict").found, of("port_conflict").missed), (1, 1));
        assert!((of("port_conflict").recall() - 0.5).abs() < f64::EPSILON);
        assert_eq!((of("oom_kill").missed, of("oom_kill").negative), (1, 2));
        assert_eq!(of("permission_denied").mistaken, 1);
        assert!(of("disk_full").precision().abs() < f64::EPSILON);
        assert_eq!(measured.mistakes.iter().map(|m| m.number).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(measured.unjudged, 1);
        assert_eq!(measured.total().mistaken, 2);
    }

    #[test]
    fn a_table_that_is_wrong_is_refused_with_its_line() {
        let classifier = Classifier::builtin();
        assert_eq!(read("oom_kill\tno line", &classifier), Err(Error::Columns(1)));
        assert_eq!(read("pattern\tsoftware\tline\tsource\n\n", &classifier), Err(Error::Empty));
        let error = read("# words\nneg:gone\ta\tb\tc", &classifier).expect_err("there is no such pattern");
        assert!(error.to_string().starts_with("line 2 of the table names the pattern `gone`"), "{error}");
    }
}
