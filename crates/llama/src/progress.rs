//! How far a long job is: bars on a terminal, a line every tenth of the way elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What a position counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Steps, such as files compiled.
    Steps,
}

/// Hears how far a job is. One stage at a time: `begin`, any number of `position`, `end`.
pub trait Progress: Send + Sync {
    /// A stage begins; `total` where the end is known.
    fn begin(&self, stage: &str, total: Option<u64>, unit: Unit);
    /// So far the stage has come, counted from its begin.
    fn position(&self, position: u64);
    /// The stage is over.
    fn end(&self, outcome: &str);
    /// Something a person wants to know.
    fn note(&self, text: &str);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: Option<u64>, _: Unit) {}
    fn position(&self, _: u64) {}
    fn end(&self, _: &str) {}
    fn note(&self, _: &str) {}
}

/// Bars when standard error is a terminal, plain lines on it otherwise.
pub fn on_stderr() -> Box<dyn Progress> {
    if std::io::stderr().is_terminal() { Box::new(Bars::default()) } else { Box::new(Lines::new(std::io::stderr())) }
}

/// Bars on standard error.
#[derive(Debug, Default)]
pub struct Bars {
    current: Mutex<Option<ProgressBar>>,
}

impl Bars {
    fn with(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        act(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Progress for Bars {
    fn begin(&self, stage: &str, total: Option<u64>, unit: Unit) {
        let template = match (total, unit) {
            (Some(_), Unit::Bytes) => {
                "{msg} {bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left"
            }
            (Some(_), Unit::Steps) => "{msg} {bar:30} {pos} of {len}, {elapsed}",
            (None, Unit::Bytes) => "{msg} {spinner} {binary_bytes}, {elapsed}",
            (None, Unit::Steps) => "{msg} {spinner} {elapsed}",
        };
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(stage.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        self.with(|current| *current = Some(bar));
    }

    fn position(&self, position: u64) {
        self.with(|current| {
            if let Some(bar) = current {
                bar.set_position(position);
            }
        });
    }

    fn end(&self, outcome: &str) {
        self.with(|current| {
            if let Some(bar) = current.take() {
                let line = format!("{} {outcome}", bar.message());
                bar.finish_and_clear();
                eprintln!("{line}");
            }
        });
    }

    fn note(&self, text: &str) {
        self.with(|current| match current {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        });
    }
}

/// Plain lines: one at the begin, one every tenth of the way, one at the end.
pub struct Lines<W> {
    state: Mutex<State<W>>,
}

struct State<W> {
    out: W,
    stage: String,
    total: Option<u64>,
    unit: Unit,
    tenths: u64,
    said: Instant,
}

/// Where the end is not known, a line says this often that it goes on.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

impl<W: Write + Send> Lines<W> {
    /// Writes its lines to `out`.
    pub fn new(out: W) -> Self {
        let (stage, total, unit, tenths, said) = (String::new(), None, Unit::Steps, 0, Instant::now());
        Self { state: Mutex::new(State { out, stage, total, unit, tenths, said }) }
    }

    fn with(&self, act: impl FnOnce(&mut State<W>) -> std::io::Result<()>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody reads along any more: the job itself is not worse for it.
        let _ = act(&mut state);
    }
}

impl<W: Write + Send> Progress for Lines<W> {
    fn begin(&self, stage: &str, total: Option<u64>, unit: Unit) {
        self.with(|s| {
            (s.stage, s.total, s.unit, s.tenths, s.said) = (stage.to_owned(), total, unit, 0, Instant::now());
            match total {
                Some(total) => writeln!(s.out, "{stage} (0 of {})", amount(total, unit)),
                None => writeln!(s.out, "{stage}"),
            }
        });
    }

    fn position(&self, position: u64) {
        self.with(|s| match s.total {
            Some(total) if total > 0 => {
                let tenths = position.saturating_mul(10) / total;
                if tenths <= s.tenths || tenths >= 10 {
                    return Ok(());
                }
                s.tenths = tenths;
                let (position, total) = (amount(position, s.unit), amount(total, s.unit));
                writeln!(s.out, "{} {}0 % ({position} of {total})", s.stage, tenths)
            }
            _ if s.said.elapsed() >= SIGN_OF_LIFE => {
                s.said = Instant::now();
                writeln!(s.out, "{} ({} so far)", s.stage, amount(position, s.unit))
            }
            _ => Ok(()),
        });
    }

    fn end(&self, outcome: &str) {
        self.with(|s| writeln!(s.out, "{} {outcome}", s.stage));
    }

    fn note(&self, text: &str) {
        self.with(|s| writeln!(s.out, "{text}"));
    }
}

fn amount(n: u64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => format!("{}.{} MB", n / 1_000_000, n / 100_000 % 10),
        Unit::Steps => n.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn without_a_terminal_there_is_a_line_every_tenth_of_the_way() {
        let lines = Lines::new(Vec::new());
        lines.begin("fetch", Some(1_000_000_000), Unit::Bytes);
        for step in 0..=1000 {
            lines.position(step * 1_000_000);
        }
        lines.end("done");
        let text = String::from_utf8(lines.state.into_inner().unwrap().out).unwrap();
        assert_eq!(text.lines().count(), 11, "{text}");
        assert!(text.contains("fetch 30 % (300.0 MB of 1000.0 MB)\n"), "{text}");
        assert!(text.ends_with("fetch done\n"), "{text}");
    }
}
