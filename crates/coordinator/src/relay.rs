//! The body of an answer on its way to the client: each piece goes on as it comes, watched for its tokens and for
//! silence.
//!
//! Dropping it (the client left) closes the upstream's connection, gives the permit back and writes the event.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::account::{Account, Outcome};
use crate::queue::Permit;
use crate::refusal::stream_error;
use crate::upstream::Answer;
use crate::usage::Tee;

/// The body of an answer that has begun.
pub(crate) struct Relay {
    first: Option<Bytes>,
    /// None once the answer is over, however it ended.
    running: Option<Running>,
    /// Bytes still to come, where the upstream said.
    left: Option<u64>,
}

struct Running {
    answer: Answer,
    account: Account,
    /// Held for its Drop.
    _permit: Permit,
    upstream: String,
    tee: Tee,
    is_stream: bool,
    idle_timeout: Duration,
    last_byte: Instant,
    silence: Pin<Box<Sleep>>,
}

impl Relay {
    /// Goes on with `answer`, of which `first` was already read.
    pub(crate) fn new(
        first: Option<Bytes>,
        answer: Answer,
        head: &Head,
        upstream: &str,
        idle_timeout: Duration,
        permit: Permit,
        account: Account,
    ) -> Self {
        let now = Instant::now();
        let running = Running {
            answer,
            account,
            _permit: permit,
            upstream: upstream.to_owned(),
            tee: if head.is_stream { Tee::events() } else { Tee::document() },
            is_stream: head.is_stream,
            idle_timeout,
            last_byte: now,
            silence: Box::pin(sleep_until(now + idle_timeout)),
        };
        let mut this = Self { first: None, running: Some(running), left: head.length };
        match first {
            Some(first) => this.first = Some(this.watch(first)),
            // The upstream ended without a byte.
            None => this.end(Outcome::Ok, None),
        }
        this
    }

    /// Looks at one piece; the last one ends the account, since nobody need ask for more after it.
    fn watch(&mut self, piece: Bytes) -> Bytes {
        self.left = self.left.map(|left| left.saturating_sub(piece.len() as u64));
        if let Some(running) = &mut self.running {
            running.tee.feed(&piece);
            running.last_byte = Instant::now();
            if self.left == Some(0) || running.answer.is_end_stream() {
                self.end(Outcome::Ok, None);
            }
        }
        piece
    }

    fn end(&mut self, outcome: Outcome, error: Option<&str>) {
        if let Some(mut running) = self.running.take() {
            let said = running.tee.error().map(ToOwned::to_owned);
            running.account.tokens(running.tee.tokens());
            match (outcome, said) {
                (Outcome::Ok, Some(said)) => running.account.end(Outcome::UpstreamError, Some(&said)),
                _ => running.account.end(outcome, error),
            }
        }
    }

    /// The upstream failed in the middle: a stream is told why it ends, anything else is cut off, so that nobody takes
    /// half a document for a whole one.
    fn broken(&mut self, outcome: Outcome, code: &str, why: &str) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let Some(running) = &self.running else { return Poll::Ready(None) };
        if running.tee.is_complete() {
            self.end(Outcome::Ok, None);
            return Poll::Ready(None);
        }
        let message = format!("the upstream `{}` failed in the middle of its answer: {why}", running.upstream);
        tracing::warn!(upstream = running.upstream, why, "an answer broke off");
        let last = running.is_stream.then(|| {
            let event = stream_error(&message, code);
            if running.tee.is_in_line() { Bytes::from([b"\n\n", event.as_ref()].concat()) } else { event }
        });
        self.end(outcome, Some(&message));
        Poll::Ready(Some(last.map(Frame::data).ok_or_else(|| io::Error::other(message))))
    }
}

/// What the head of an answer says about its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// Server-sent events.
    pub(crate) is_stream: bool,
    /// Bytes of the whole body.
    pub(crate) length: Option<u64>,
}

impl Body for Relay {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        loop {
            let Some(running) = &mut self.running else { return Poll::Ready(None) };
            match Pin::new(&mut running.answer).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(piece) if !piece.is_empty() => return Poll::Ready(Some(Ok(Frame::data(self.watch(piece))))),
                    // Trailers mean nothing to OpenAI's clients.
                    _ => {}
                },
                Poll::Ready(Some(Err(why))) => {
                    return self.broken(Outcome::UpstreamError, "upstream_lost", &why);
                }
                Poll::Ready(None) => {
                    self.end(Outcome::Ok, None);
                    return Poll::Ready(None);
                }
                Poll::Pending => break,
            }
        }
        loop {
            let Some(running) = &mut self.running else { return Poll::Ready(None) };
            ready!(running.silence.as_mut().poll(context));
            // The timer is not moved for every piece, only when it fires.
            let until = running.last_byte + running.idle_timeout;
            if Instant::now() >= until {
                let why = format!("silent for {} s (`coordinator.idle_timeout`)", running.idle_timeout.as_secs_f64());
                return self.broken(Outcome::Timeout, "upstream_idle", &why);
            }
            running.silence.as_mut().reset(until);
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.running.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.first, self.left) {
            (None, Some(left)) => SizeHint::with_exact(left),
            (Some(first), Some(left)) => SizeHint::with_exact(left + first.len() as u64),
            (_, None) => SizeHint::default(),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            if running.tee.is_complete() {
                // Many clients leave as soon as they read `[DONE]`.
                self.end(Outcome::Ok, None);
            } else if running.is_stream {
                running.account.tokens(running.tee.tokens());
            }
        }
    }
}
