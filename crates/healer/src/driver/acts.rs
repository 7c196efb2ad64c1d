//! What goes out: entries into the book, then the steps they announce; and what people are shown.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Driver, Input, LOOK_LIMIT};
use crate::api::{PausedUntil, WatchedUnit};
use crate::clock;
use crate::desk::Board;
use crate::page::{Line, Page};
use crate::remedy::Step;
use crate::timeline::{Entry, Event as Happening};
use crate::ward::Effect;

/// How often the board is made anew at most.
const BOARD: Duration = Duration::from_millis(100);
/// Lines kept while the disk takes none.
const UNWRITTEN: usize = 10_000;
/// Pause before they are written again.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

impl Driver {
    pub(super) fn take(&mut self, effects: Vec<Effect>) {
        self.effects.extend(effects);
    }

    /// Writes entries down, and then does what they say.
    pub(super) async fn carry_out(&mut self) {
        while self.is_due() {
            let effects = std::mem::take(&mut self.effects);
            let lines = self.lines(&effects);
            let written = self.write(lines).await;
            for effect in effects {
                match effect {
                    Effect::Record { .. } => {}
                    Effect::Look { unit } => self.look(&unit),
                    Effect::Act { incident, attempt, step, action } => match &written {
                        Ok(()) => self.begin(incident, attempt, step, action),
                        Err(why) => {
                            let now = clock::now();
                            let effects = self.ward.acted(incident, attempt, step, Some(why.clone()), &now);
                            self.take(effects);
                        }
                    },
                }
            }
            if written.is_err() {
                // What follows from the failure is written when there is room again.
                break;
            }
        }
    }

    /// Entries that belong together, a line for each incident.
    pub(super) fn lines(&mut self, effects: &[Effect]) -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        for effect in effects {
            let Effect::Record { incident, unit, entry } = effect else { continue };
            let page = self.pages.entry(*incident).or_insert_with(|| Page::new(*incident, unit));
            page.add(entry);
            self.parts.metrics.heard(&entry.event, page.incident().known_as());
            tell(*incident, unit, entry);
            let row = page.row();
            match lines.iter_mut().find(|line| line.incident.id == *incident) {
                Some(line) => {
                    line.incident = row;
                    line.entries.push(entry.clone());
                }
                None => lines.push(Line { incident: row, boot: self.boot, entries: vec![entry.clone()] }),
            }
            if page.is_closed() {
                self.pages.remove(incident);
                self.studied.remove(incident);
                self.diagnosed.remove(incident);
            }
        }
        if !lines.is_empty() {
            self.dirty();
        }
        lines
    }

    /// Writes lines, and before them those that could not be written the last time.
    pub(super) async fn write(&mut self, new: Vec<Line>) -> Result<(), String> {
        let mut lines = std::mem::take(&mut self.unwritten);
        lines.extend(new);
        self.write_again = None;
        if lines.is_empty() {
            return Ok(());
        }
        let book = Arc::clone(&self.parts.book);
        let written = spawn_blocking(move || {
            let outcome = book.write(&lines);
            (lines, outcome)
        });
        let (mut lines, outcome) = written.await.map_err(|error| error.to_string())?;
        outcome.map_err(|error| {
            let lost = lines.len().saturating_sub(UNWRITTEN);
            tracing::error!(%error, waiting = lines.len() - lost, lost, "nothing is done that cannot be written down");
            lines.drain(..lost);
            self.unwritten = lines;
            self.write_again = Some(Instant::now() + WRITE_AGAIN);
            error.to_string()
        })
    }

    /// Whether there is something to write or to do now.
    fn is_due(&self) -> bool {
        !self.effects.is_empty() || self.write_again.is_some_and(|at| at <= Instant::now())
    }

    pub(super) fn begin(&mut self, incident: Uuid, attempt: u32, step: usize, action: Step) {
        let Some(name) = self.pages.get(&incident).map(|page| page.incident().unit.clone()) else { return };
        match &action {
            // Afterwards it is inactive without a failure, as if somebody had stopped it.
            Step::Stop { unit } | Step::ResetFailed { unit } => {
                if let Some(unit) = self.units.get_mut(unit) {
                    unit.about_to_end();
                }
            }
            Step::Start { unit } | Step::Restart { unit } => {
                if let Some(unit) = self.units.get_mut(unit) {
                    unit.stopped = None;
                }
            }
            _ => {}
        }
        let hands = self.parts.hands.clone();
        // What the ward waits for has to end before it gives up waiting.
        let limit = self.parts.policies.get(&name).map_or(LOOK_LIMIT, |policy| policy.step_timeout);
        let patience = limit.saturating_sub(Duration::from_secs(2));
        self.beside.spawn(async move {
            let end = hands.carry_out(&name, &action, patience).await;
            Input::Acted { incident, attempt, step, action, end }
        });
    }

    pub(super) fn dirty(&mut self) {
        if self.board_due.is_none() {
            self.board_due = Some(Instant::now() + BOARD);
        }
    }

    /// Shows the units as they are, when that has changed.
    pub(super) fn show(&mut self, now: Instant) {
        if self.board_due.is_none_or(|at| at > now) {
            return;
        }
        let unshipped = self.parts.book.unshipped();
        self.board_due = (unshipped > 0).then(|| now + BOARD * 10);
        let shown = self.units.iter().filter(|(_, unit)| unit.config.is_some()).map(|(name, unit)| {
            let incident = self.ward.incident(name);
            let paused = self.pauses.get(name).map(|pause| PausedUntil {
                until: pause.until,
                by: pause.by.clone(),
                reason: pause.reason.clone(),
            });
            let watched = WatchedUnit {
                unit: name.clone(),
                load: unit.load,
                active: unit.active,
                probe: unit.probe,
                restarts: unit.restarts,
                incident: incident.map(|incident| incident.id),
                doing: incident.map(|incident| incident.phase().to_string()),
                paused,
            };
            (name.clone(), watched)
        });
        let board = Board { units: shown.collect(), acting: true, hearing: self.hearing, unshipped };
        self.parts.board.send_replace(Arc::new(board));
    }
}

/// The same in the journal: `journalctl LARES_INCIDENT=…` tells the story.
fn tell(incident: Uuid, unit: &str, entry: &Entry) {
    let (kind, ms, seq) = (entry.event.kind(), entry.ms, entry.seq);
    match &entry.event {
        Happening::HandedOver { .. } | Happening::Asked { .. } => {
            tracing::warn!(%incident, unit, kind, ms, seq, "{unit}: {}", entry.event);
        }
        _ => tracing::info!(%incident, unit, kind, ms, seq, "{unit}: {}", entry.event),
    }
}
