//! Reading lines of a program that may send anything: none grows beyond a bound.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// How much of the beginning and of the end of a line that is too long is kept: enough to find whose answer it is.
const EDGE: usize = 256;
/// How much is read at a time: the size of a pipe.
const READ_SIZE: usize = 64 << 10;

/// A line, without its newline.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// All of it.
    Whole(Vec<u8>),
    /// It was too long; its beginning and its end.
    Long { head: Vec<u8>, tail: Vec<u8> },
}

/// Reads lines. A read that is dropped loses nothing.
#[derive(Debug)]
pub(super) struct Lines<R> {
    reader: BufReader<R>,
    most: usize,
    line: Vec<u8>,
    /// The last bytes of a line that is too long.
    tail: Option<Vec<u8>>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Lines of at most `most` bytes.
    pub(super) fn new(reader: R, most: usize) -> Self {
        Self { reader: BufReader::with_capacity(READ_SIZE, reader), most, line: Vec::new(), tail: None }
    }

    /// The next line; `None` at the end. What follows the last newline is a line too.
    pub(super) async fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let bytes = self.reader.fill_buf().await?;
            if bytes.is_empty() {
                let rest = !self.line.is_empty() || self.tail.is_some();
                return Ok(rest.then(|| self.take()));
            }
            let newline = bytes.iter().position(|&byte| byte == b'\n');
            let part = &bytes[..newline.unwrap_or(bytes.len())];
            let used = part.len() + usize::from(newline.is_some());
            match &mut self.tail {
                None if self.line.len() + part.len() <= self.most => self.line.extend_from_slice(part),
                None => {
                    let mut tail = std::mem::take(&mut self.line);
                    self.line = tail.iter().chain(part).take(EDGE).copied().collect();
                    extend_tail(&mut tail, part);
                    self.tail = Some(tail);
                }
                Some(tail) => extend_tail(tail, part),
            }
            self.reader.consume(used);
            if newline.is_some() {
                return Ok(Some(self.take()));
            }
        }
    }

    fn take(&mut self) -> Line {
        let line = std::mem::take(&mut self.line);
        match self.tail.take() {
            None => Line::Whole(line),
            Some(tail) => Line::Long { head: line, tail },
        }
    }
}

fn extend_tail(tail: &mut Vec<u8>, part: &[u8]) {
    tail.extend_from_slice(&part[part.len().saturating_sub(EDGE)..]);
    tail.drain(..tail.len().saturating_sub(EDGE));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8], most: usize) -> Vec<Line> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut lines = Lines::new(bytes, most);
            let mut all = Vec::new();
            while let Some(line) = lines.next().await.unwrap() {
                all.push(line);
            }
            all
        })
    }

    #[test]
    fn of_a_long_line_both_ends_are_kept_and_the_next_one_is_whole() {
        let long = [b"{\"id\":7,".as_slice(), &vec![b'x'; 300_000], b",\"id\":8}"].concat();
        let lines = read(&[&long, b"\nnext\nlast".as_slice()].concat(), 1000);
        let Line::Long { head, tail } = &lines[0] else { unreachable!("{lines:?}") };
        assert!(head.starts_with(b"{\"id\":7,xx") && tail.ends_with(b"xx,\"id\":8}"), "{head:?} {tail:?}");
        assert!(head.len() == EDGE && tail.len() == EDGE);
        assert_eq!(lines[1..], [Line::Whole(b"next".to_vec()), Line::Whole(b"last".to_vec())]);
    }

    proptest! {
        #[test]
        fn lines_come_as_they_were_sent(texts in prop::collection::vec("[a-z]{0,40}", 0..20), most in 0usize..40) {
            let sent = texts.iter().flat_map(|text| [text.as_bytes(), b"\n"].concat()).collect::<Vec<u8>>();
            let lines = read(&sent, most);
            prop_assert_eq!(lines.len(), texts.len());
            for (line, text) in lines.iter().zip(&texts) {
                match line {
                    Line::Whole(line) => prop_assert_eq!(line, text.as_bytes()),
                    Line::Long { head, tail } => {
                        prop_assert!(text.len() > most);
                        prop_assert!(text.as_bytes().ends_with(tail) && text.as_bytes().starts_with(head));
                    }
                }
            }
        }
    }
}
