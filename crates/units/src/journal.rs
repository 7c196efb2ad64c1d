//! What a unit says: split into lines, kept in a ring, handed to followers and to the logfile, none of which can hold up the unit.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{broadcast, oneshot};
use tracing::warn;

use crate::logfile::Sink;
use crate::name::UnitName;

/// Lines kept in memory for each unit: enough to see what led to a failure.
pub(crate) const RING_LINES: usize = 1000;
/// Longest line; what comes behind is counted and left out. Longer ones are dumps that nobody reads as a line.
pub(crate) const LINE_MAX: usize = 16 * 1024;
/// Lines a follower may be behind before it misses some.
pub(crate) const FOLLOWER_LINES: usize = 4096;
/// Bytes read at once; what a pipe holds by default on Linux.
const READ_SIZE: usize = 64 * 1024;

/// Most bytes a pipe holds, unless the machine's administrator raised `fs.pipe-max-size`.
const PIPE_MAX: usize = 1024 * 1024;

/// A request to catch up with what was written, answered through the sender in it.
pub(crate) type CatchUp = oneshot::Receiver<oneshot::Sender<()>>;

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// The unit's standard output.
    Stdout,
    /// The unit's standard error.
    Stderr,
    /// The supervisor, about the unit.
    Supervisor,
}

impl LogStream {
    /// Three letters, for log files.
    pub(crate) fn short(self) -> &'static str {
        match self {
            Self::Stdout => "out",
            Self::Stderr => "err",
            Self::Supervisor => "sup",
        }
    }
}

/// One line of a unit's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LogLine {
    /// Whose.
    pub unit: UnitName,
    /// When it was read.
    pub at: Timestamp,
    /// Where it came from.
    pub stream: LogStream,
    /// Its text without the line end; at most 16 KiB and a mark where the rest was cut.
    pub text: String,
}

/// The log of one unit.
#[derive(Debug)]
pub(crate) struct Journal {
    unit: UnitName,
    ring: Mutex<VecDeque<Arc<LogLine>>>,
    followers: broadcast::Sender<Arc<LogLine>>,
    followers_of_all: broadcast::Sender<Arc<LogLine>>,
    sink: Sink,
}

impl Journal {
    pub(crate) fn new(unit: UnitName, followers_of_all: broadcast::Sender<Arc<LogLine>>, sink: Sink) -> Self {
        let followers = broadcast::Sender::new(FOLLOWER_LINES);
        Self { unit, ring: Mutex::default(), followers, followers_of_all, sink }
    }

    fn ring(&self) -> MutexGuard<'_, VecDeque<Arc<LogLine>>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, stream: LogStream, texts: impl IntoIterator<Item = String>) {
        let at = Timestamp::now();
        let line = |text| Arc::new(LogLine { unit: self.unit.clone(), at, stream, text });
        let lines: Vec<_> = texts.into_iter().map(line).collect();
        if lines.is_empty() {
            return;
        }
        let mut ring = self.ring();
        for line in &lines {
            if ring.len() == RING_LINES {
                ring.pop_front();
            }
            ring.push_back(Arc::clone(line));
            for followers in [&self.followers, &self.followers_of_all] {
                if followers.receiver_count() > 0 {
                    // Fails only when the last follower has just gone.
                    let _ = followers.send(Arc::clone(line));
                }
            }
        }
        // Still under the lock, so that the file has the lines of both streams in the order of the ring.
        self.sink.write(lines);
    }

    /// The last `count` lines, oldest first.
    pub(crate) fn tail(&self, count: usize) -> Vec<Arc<LogLine>> {
        tail(&self.ring(), count)
    }

    /// The last `count` lines and all that follow, without a gap or a line twice.
    pub(crate) fn follow(&self, count: usize) -> (Vec<Arc<LogLine>>, broadcast::Receiver<Arc<LogLine>>) {
        let ring = self.ring();
        (tail(&ring, count), self.followers.subscribe())
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.sink.dropped()
    }

    /// Takes in one output of a process until nobody holds its other end. Whoever asks through `catch_up` is answered
    /// (or the sender is dropped) when everything written until then is in the log.
    pub(crate) async fn read(self: Arc<Self>, stream: LogStream, output: OwnedFd, mut catch_up: CatchUp) {
        let mut splitter = Splitter::default();
        let mut caught_up = None;
        let outcome = async {
            let mut pipe = pipe::Receiver::from_owned_fd(output)?;
            let mut buffer = vec![0; READ_SIZE];
            loop {
                tokio::select! {
                    count = pipe.read(&mut buffer) => match count? {
                        0 => return Ok::<_, std::io::Error>(()),
                        count => self.push(stream, splitter.split(&buffer[..count])),
                    },
                    asked = &mut catch_up, if caught_up.is_none() => {
                        caught_up = Some(asked.ok());
                        // Past the runtime, which may not have heard yet that there is something. Somebody who never
                        // stops writing is left after what the largest pipe holds.
                        for _ in 0..PIPE_MAX / READ_SIZE {
                            match nix::unistd::read(&pipe, &mut buffer) {
                                Ok(0) => return Ok(()),
                                Ok(count) => self.push(stream, splitter.split(&buffer[..count])),
                                Err(_) => break,
                            }
                        }
                        if let Some(Some(done)) = caught_up.replace(None) {
                            let _ = done.send(());
                        }
                    }
                }
            }
        };
        if let Err(error) = outcome.await {
            warn!(unit = %self.unit, %error, "cannot read the unit's output");
        }
        self.push(stream, splitter.finish());
        drop(caught_up);
    }
}

fn tail(ring: &VecDeque<Arc<LogLine>>, count: usize) -> Vec<Arc<LogLine>> {
    ring.range(ring.len().saturating_sub(count)..).cloned().collect()
}

/// Bytes in pieces of any size → lines of bounded length.
#[derive(Debug, Default)]
struct Splitter {
    begun: Vec<u8>,
    cut: usize,
}

impl Splitter {
    fn split(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, ended) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            let (kept, cut) = text.split_at(text.len().min(LINE_MAX - self.begun.len()));
            self.begun.extend_from_slice(kept);
            self.cut += cut.len();
            if ended {
                lines.push(self.line());
            }
        }
        lines
    }

    /// What is left when the output ends without a line end.
    fn finish(&mut self) -> Option<String> {
        if self.begun.is_empty() { None } else { Some(self.line()) }
    }

    fn line(&mut self) -> String {
        let cut = std::mem::take(&mut self.cut);
        let mut bytes = self.begun.as_slice();
        if cut == 0 {
            bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        } else if let Err(error) = std::str::from_utf8(bytes)
            && error.error_len().is_none()
        {
            // The cut went through a character.
            bytes = &bytes[..error.valid_up_to()];
        }
        let mut text = String::from_utf8_lossy(bytes).into_owned();
        if cut > 0 {
            let left_out = cut + self.begun.len() - bytes.len();
            text.push_str(&format!(" [cut: {left_out} more bytes]"));
        }
        self.begun.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let mut splitter = Splitter::default();
        let mut lines: Vec<String> = pieces.iter().flat_map(|piece| splitter.split(piece)).collect();
        lines.extend(splitter.finish());
        lines
    }

    #[test]
    fn lines_do_not_depend_on_how_they_arrive() {
        assert_eq!(lines(&[b"one\ntwo\r\n", b"\nth", b"ree"]), ["one", "two", "", "three"]);
    }

    #[tokio::test]
    async fn what_was_written_is_caught_up_with_while_somebody_still_holds_the_pipe() {
        use std::io::Write;

        let logs = tempfile::tempdir().unwrap();
        let unit = UnitName::new("db").unwrap();
        let (_writer, mut sinks) =
            crate::logfile::Writer::start(logs.path(), std::slice::from_ref(&unit), 1 << 20).unwrap();
        let journal = Arc::new(Journal::new(unit, broadcast::Sender::new(1), sinks.remove(0)));
        let said = || journal.tail(9).iter().map(|line| line.text.clone()).collect::<Vec<_>>();
        let (output, mut process) = std::io::pipe().unwrap();
        let (ask, asked) = oneshot::channel();
        let reader = tokio::spawn(Arc::clone(&journal).read(LogStream::Stdout, output.into(), asked));
        // The runtime has not looked at the pipe since: nothing but the question makes the reader read.
        process.write_all(b"last words\nand ").unwrap();
        let (done, caught_up) = oneshot::channel();
        ask.send(done).unwrap();
        caught_up.await.unwrap();
        assert_eq!(said(), ["last words"]);
        process.write_all(b"more").unwrap();
        drop(process);
        reader.await.unwrap();
        assert_eq!(said(), ["last words", "and more"]);
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(lines(&[b"a\xffb\n"]), ["a\u{fffd}b"]);
    }

    #[test]
    fn a_long_line_is_cut_and_marked() {
        let long = "x".repeat(LINE_MAX + 5);
        let got = lines(&[long.as_bytes(), b"yy\nnext\n"]);
        assert_eq!(got, [format!("{} [cut: 7 more bytes]", "x".repeat(LINE_MAX)), "next".into()]);
        let got = lines(&[format!("x{}\n", "ä".repeat(LINE_MAX)).as_bytes()]);
        assert!(!got[0].contains('\u{fffd}') && got[0].ends_with(&format!("[cut: {} more bytes]", LINE_MAX + 2)));
    }

    proptest! {
        #[test]
        fn any_bytes_give_bounded_lines(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5000), 0..20),
            filler in 0_usize..40_000,
        ) {
            let filler = vec![b'x'; filler];
            let mut pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            pieces.insert(pieces.len() / 2, &filler);
            let whole: Vec<u8> = pieces.concat();
            let got = lines(&pieces);
            prop_assert_eq!(&got, &lines(&[&whole]));
            let ends = whole.iter().filter(|&&byte| byte == b'\n').count();
            prop_assert_eq!(got.len(), ends + usize::from(whole.last().is_some_and(|&byte| byte != b'\n')));
            prop_assert!(got.iter().all(|line| line.len() <= 3 * LINE_MAX + 40));
        }
    }
}
