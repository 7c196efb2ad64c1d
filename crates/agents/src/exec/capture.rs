//! Keeps the first and the last half of an output of any length.

use std::collections::VecDeque;

/// Output within a bound.
#[derive(Debug)]
pub(super) struct Capture {
    half: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    dropped: u64,
}

impl Capture {
    pub(super) fn new(most: usize) -> Self {
        Self { half: most / 2, head: Vec::new(), tail: VecDeque::new(), dropped: 0 }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(bytes.len().min(self.half - self.head.len()));
        self.head.extend_from_slice(head);
        // Of what is longer than the tail only the end can stay.
        let (gone, kept) = rest.split_at(rest.len().saturating_sub(self.half));
        let over = (self.tail.len() + kept.len()).saturating_sub(self.half);
        self.tail.drain(..over);
        self.tail.extend(kept);
        self.dropped += (gone.len() + over) as u64;
    }

    pub(super) fn total(&self) -> u64 {
        self.dropped + (self.head.len() + self.tail.len()) as u64
    }

    /// What was kept, with a line that says how much was not.
    pub(super) fn finish(mut self) -> Vec<u8> {
        if self.dropped > 0 {
            self.head.extend_from_slice(format!("\n[{} bytes of output dropped here]\n", self.dropped).as_bytes());
        }
        self.head.extend(self.tail);
        self.head
    }

    /// The first line, for an error message.
    pub(super) fn first_line(&self) -> String {
        /// Characters shown.
        const MOST: usize = 200;
        let text = String::from_utf8_lossy(&self.head);
        text.lines().find(|line| !line.trim().is_empty()).unwrap_or("nothing").chars().take(MOST).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn first_and_last_half_are_kept_however_it_comes(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
            most in 0usize..64,
        ) {
            let all: Vec<u8> = chunks.concat();
            let mut capture = Capture::new(most);
            for chunk in &chunks {
                capture.push(chunk);
            }
            prop_assert_eq!(capture.total(), all.len() as u64);
            let kept = capture.finish();
            let half = most / 2;
            if all.len() <= 2 * half {
                prop_assert_eq!(kept, all);
            } else {
                let marker = format!("\n[{} bytes of output dropped here]\n", all.len() - 2 * half);
                let expected = [&all[..half], marker.as_bytes(), &all[all.len() - half..]].concat();
                prop_assert_eq!(kept, expected);
            }
        }
    }
}
