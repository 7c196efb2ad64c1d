//! `lares heal classify`: what lines look like, without asking anything of the machine.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use lares_healer::classify::{Classifier, Entry, Match};
use lares_healer::measure::{self, Measurement};
use lares_healer::patterns::{Origin, Patterns, Remedy};
use serde::Serialize;
use serde_json::Value;

use crate::cli::{self, exit};
use crate::output::{self, Output};

/// Longest line that is kept, in bytes; what comes behind is read and dropped, so that no input fills the memory.
const LINE_MAX: usize = 64 * 1024;
/// Bytes read at once.
const READ_SIZE: usize = 64 * 1024;
/// Largest table of labelled lines, in bytes.
const TABLE_MAX: u64 = 64 * 1024 * 1024;

/// Carries it out.
pub fn run(output: Output, arguments: &cli::Classify) -> Result<u8> {
    let classifier = match &arguments.patterns {
        Some(path) => {
            let named = || format!("in the pattern file {}", path.display());
            Patterns::with_file(path).and_then(Classifier::new).with_context(named)?
        }
        None => Classifier::builtin(),
    };
    match &arguments.tsv {
        Some(path) => measure_table(output, &classifier, path),
        None => classify(&classifier, arguments.journal).map(|()| exit::OK),
    }
}

/// One line of the answer.
#[derive(Serialize)]
struct Answer<'a> {
    line: &'a str,
    pattern: Option<&'a str>,
    rule: Option<&'a str>,
    evidence: &'a BTreeMap<String, String>,
    remedy: Option<Remedy>,
}

fn classify(classifier: &Classifier, journal: bool) -> Result<()> {
    let mut input = BufReader::with_capacity(READ_SIZE, io::stdin().lock());
    let mut out = BufWriter::with_capacity(READ_SIZE, io::stdout().lock());
    match answer_all(classifier, journal, &mut input, &mut out) {
        // Whoever read the answers has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(i32::from(exit::OK)),
        other => other.context("cannot go on with classifying standard input"),
    }
}

fn answer_all<R: io::Read>(
    classifier: &Classifier,
    journal: bool,
    input: &mut BufReader<R>,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    while read_line(input, &mut buffer)? {
        let text = String::from_utf8_lossy(&buffer);
        if journal {
            let fields: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
            let message = message_of(&fields);
            let strings = fields.as_object().into_iter().flatten();
            let strings: Vec<_> = strings.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))).collect();
            let entry = Entry { message: &message, origin: origin_of(&fields), fields: &strings };
            answer(out, &message, classifier.classify(entry).as_ref())?;
        } else {
            answer(out, &text, classifier.classify(Entry::text(&text)).as_ref())?;
        }
        // Answers wait only while there are more lines to answer: `journalctl -f | lares heal classify` shows each at once.
        if !input.buffer().contains(&b'\n') {
            out.flush()?;
        }
    }
    out.flush()
}

fn answer(out: &mut impl Write, line: &str, found: Option<&Match>) -> io::Result<()> {
    let nothing = BTreeMap::new();
    let answer = Answer {
        line,
        pattern: found.map(|found| found.pattern.as_str()),
        rule: found.map(|found| found.rule.as_str()),
        evidence: found.map_or(&nothing, |found| &found.evidence),
        remedy: found.map(|found| found.remedy),
    };
    serde_json::to_writer(&mut *out, &answer)?;
    out.write_all(b"\n")
}

/// Reads a line without its end, at most [`LINE_MAX`] bytes of it; says whether there was one.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut any = false;
    loop {
        let available = match input.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if available.is_empty() {
            break;
        }
        any = true;
        let end = available.iter().position(|byte| *byte == b'\n');
        let text = &available[..end.unwrap_or(available.len())];
        line.extend_from_slice(&text[..text.len().min(LINE_MAX - line.len())]);
        let read = text.len() + usize::from(end.is_some());
        input.consume(read);
        if end.is_some() {
            break;
        }
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(any)
}

/// The text of an entry of `journalctl -o json`: a string, or bytes as numbers where it is not UTF-8.
fn message_of(fields: &Value) -> String {
    match &fields["MESSAGE"] {
        Value::String(text) => text.clone(),
        Value::Array(bytes) => {
            let bytes: Vec<u8> = bytes.iter().filter_map(|b| b.as_u64().and_then(|b| u8::try_from(b).ok())).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        _ => String::new(),
    }
}

/// journald sets these fields itself; a service cannot.
fn origin_of(fields: &Value) -> Origin {
    let text = |name: &str| fields[name].as_str();
    match (text("_TRANSPORT"), text("_PID")) {
        (Some("kernel"), _) => Origin::Kernel,
        (_, Some("1")) => Origin::Systemd,
        (None, _) => Origin::Unknown,
        _ => Origin::Unit,
    }
}

/// The measurement with the two numbers that people ask for.
#[derive(Serialize)]
struct Report<'a> {
    table: &'a Path,
    lines: usize,
    precision: f64,
    recall: f64,
    #[serde(flatten)]
    measurement: &'a Measurement,
}

fn measure_table(output: Output, classifier: &Classifier, path: &Path) -> Result<u8> {
    let unreadable = || format!("cannot read the table {}", path.display());
    let size = std::fs::metadata(path).with_context(unreadable)?.len();
    anyhow::ensure!(size <= TABLE_MAX, "{}: it has {size} bytes, more than {TABLE_MAX}", unreadable());
    let bytes = std::fs::read(path).with_context(unreadable)?;
    let text = String::from_utf8_lossy(&bytes);
    let labelled = measure::read(&text, classifier).with_context(unreadable)?;
    let measurement = measure::measure(classifier, &labelled);
    let total = measurement.total();
    let report = Report {
        table: path,
        lines: labelled.len(),
        precision: total.precision(),
        recall: total.recall(),
        measurement: &measurement,
    };
    output.value(&report, |report| shown(report.measurement))?;
    Ok(if measurement.mistakes.is_empty() { exit::OK } else { exit::FAILURE })
}

fn shown(measurement: &Measurement) -> String {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let row = |name: &str, count: &measure::Count| {
        let numbers = [count.positive, count.negative, count.missed, count.mistaken].map(|n| n.to_string());
        let [positive, negative, missed, mistaken] = numbers;
        let (precision, recall) = (percent(count.precision()), percent(count.recall()));
        [name.to_owned(), positive, negative, missed, mistaken, precision, recall]
    };
    let rows = measurement.patterns.iter().map(|(name, count)| row(name, count));
    let rows = rows.chain([row("all", &measurement.total())]);
    let mut text = output::table(["pattern", "lines", "look alike", "missed", "mistaken", "precision", "recall"], rows);
    for mistake in &measurement.mistakes {
        let taken = mistake.taken_for.as_ref().map_or("nothing".to_owned(), |(p, rule)| format!("{p} (rule {rule})"));
        let line: String = mistake.line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        text.push_str(&format!("\nline {}, {}: taken for {taken}: {line}", mistake.number, mistake.label));
    }
    if measurement.unjudged > 0 {
        let count = measurement.unjudged;
        text.push_str(&format!("\n{count} of the lines that look alike were recognised as something else"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(input: &[u8], journal: bool) -> Vec<Value> {
        let mut out = Vec::new();
        let mut reader = BufReader::with_capacity(16, input);
        answer_all(&Classifier::builtin(), journal, &mut reader, &mut out).expect("memory does not fail");
        String::from_utf8(out).expect("JSON").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[test]
    fn lines_are_cut_and_never_joined() {
        let mut input = vec![b'x'; 3 * LINE_MAX];
        input.extend_from_slice(b"\r\nlast \xff line");
        let answers = answers(&input, false);
        assert_eq!(answers.len(), 2);
        assert_eq!(answers[0]["line"].as_str().map(str::len), Some(LINE_MAX));
        assert_eq!(answers[1]["line"], "last \u{fffd} line");
    }

    #[test]
    fn a_forged_kernel_line_is_known_by_the_journal() {
        let line = "Out of memory: Killed process 12 (a) total-vm:1kB";
        let entry = |transport: &str| format!("{{\"_TRANSPORT\":\"{transport}\",\"MESSAGE\":\"{line}\"}}\n");
        let input = entry("kernel") + &entry("stdout") + "no json\n";
        let patterns: Vec<Value> = answers(input.as_bytes(), true).iter().map(|a| a["pattern"].clone()).collect();
        assert_eq!(patterns, [Value::from("oom_kill"), Value::Null, Value::Null]);
    }
}
