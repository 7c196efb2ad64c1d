//! What commands print: JSON for programs, tables and sentences for people.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

/// How the answer is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    pub json: bool,
}

impl Output {
    /// Prints a value as JSON, or what `human` makes of it.
    pub fn value<T: Serialize>(self, value: &T, human: impl FnOnce(&T) -> String) -> Result<()> {
        let text = if self.json { serde_json::to_string_pretty(value)? } else { human(value) };
        line(&text)
    }
}

/// Prints text and a line end to standard output. A reader that went away (`| head`) is not an error.
pub fn line(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out
        .write_all(text.trim_end_matches('\n').as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush())
    {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// Tells a person something beside the answer, on standard error. That nobody reads it is not an error.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}: {text}", console::style("note").yellow().bold().for_stderr());
}

/// Text that somebody else wrote, such as a line of a log, without what would move the cursor or change colours.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim_end().to_owned()
}

/// `2026-11-23 16:05:12 +01:00`, in the time zone of this machine.
pub fn time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %:z").to_string()
}

/// A table without lines, as wide as the terminal.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if let Some((_, columns)) = console::Term::stdout().size_checked().filter(|_| std::io::stdout().is_terminal()) {
        table.set_width(columns);
    } else {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table.set_header(header.map(str::to_uppercase));
    for row in rows {
        table.add_row(row);
    }
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// `850 ms`, `12.3 s`, `4 min 10 s`.
pub fn seconds(duration: Duration) -> String {
    match duration.as_millis() {
        ms @ 0..1_000 => format!("{ms} ms"),
        ms @ 1_000..100_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        ms => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
    }
}

/// `512 MiB`, `1.5 GiB`: rounded, for reading.
pub fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short_to_read() {
        let shown = [7, 850, 12_345, 99_999, 250_000].map(|ms| seconds(Duration::from_millis(ms)));
        assert_eq!(shown, ["7 ms", "850 ms", "12.3 s", "99.9 s", "4 min 10 s"]);
    }

    #[test]
    fn a_table_has_its_columns_aligned() {
        let text = table(["unit", "state"], [["a".into(), "active".into()], ["long-name".into(), "failed".into()]]);
        insta::assert_snapshot!(text);
    }
}
