//! MCP on a program's standard streams: a message a line, each within a bound.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rmcp::ErrorData;
use rmcp::model::{NumberOrString, RequestId, ServerJsonRpcMessage};
use rmcp::service::{RoleClient, RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::lines::{Line, Lines};
use super::traffic::Traffic;

/// So many lines that are no messages end a session: a program that prints them speaks something else.
const MAX_GARBAGE: u32 = 1000;
/// So many of them are logged.
const LOGGED_GARBAGE: u32 = 3;
/// Characters of such a line that are logged.
const GARBAGE_SHOWN: usize = 200;
/// Longest wait for a message that is being written when the stream is to be closed.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// The transport.
pub(super) struct Stdio {
    lines: Lines<pipe::Receiver>,
    stdin: Arc<Mutex<Option<pipe::Sender>>>,
    ready: VecDeque<ServerJsonRpcMessage>,
    garbage: u32,
    traffic: Arc<Traffic>,
}

impl Stdio {
    pub(super) fn new(stdin: pipe::Sender, stdout: pipe::Receiver, most: usize, traffic: Arc<Traffic>) -> Self {
        Self {
            lines: Lines::new(stdout, most),
            stdin: Arc::new(Mutex::new(Some(stdin))),
            ready: VecDeque::new(),
            garbage: 0,
            traffic,
        }
    }

    fn take(&mut self, line: &Line) {
        match line {
            Line::Whole(line) => self.parse(line.trim_ascii()),
            Line::Long { head, tail } => self.fail_too_large(head, tail),
        }
    }

    fn parse(&mut self, line: &[u8]) {
        /// Enough of an answer to know whose it is.
        #[derive(Deserialize)]
        struct Answer {
            id: RequestId,
        }
        if line.is_empty() {
            return;
        }
        if line.starts_with(b"[") {
            // A batch, as protocol revision 2025-03-26 allowed.
            if let Ok(batch) = serde_json::from_slice::<Vec<ServerJsonRpcMessage>>(line) {
                self.ready.extend(batch);
                return;
            }
        }
        match serde_json::from_slice(line) {
            Ok(message) => self.ready.push_back(message),
            Err(error) => {
                self.garbage += 1;
                if self.garbage <= LOGGED_GARBAGE {
                    let shown: String = String::from_utf8_lossy(line)
                        .chars()
                        .take(GARBAGE_SHOWN)
                        .map(|c| if c.is_control() { ' ' } else { c })
                        .collect();
                    tracing::info!(server = %self.traffic.server, line = %shown, "a tool server wrote what is no message");
                }
                if let Ok(answer) = serde_json::from_slice::<Answer>(line)
                    && self.traffic.outstanding().contains(&answer.id)
                {
                    let why = ErrorData::internal_error(format!("the tool server's answer is none: {error}"), None);
                    self.ready.push_back(ServerJsonRpcMessage::error(why, Some(answer.id)));
                }
            }
        }
    }

    /// Fails the request that a line answers which is too long to read; all of them if it cannot be told.
    fn fail_too_large(&mut self, head: &[u8], tail: &[u8]) {
        let outstanding = self.traffic.outstanding();
        let named = id_in(head, false).or_else(|| id_in(tail, true)).filter(|id| outstanding.contains(id));
        let failed = named.map_or(outstanding, |id| vec![id]);
        tracing::warn!(server = %self.traffic.server, "a tool server sent a message that is larger than tools.max_result");
        for id in failed {
            self.traffic.too_large(id.clone());
            let why = ErrorData::internal_error("the answer is larger than is taken", None);
            self.ready.push_back(ServerJsonRpcMessage::error(why, Some(id)));
        }
    }
}

/// The number behind `"id":` in the beginning (the first) or the end (the last) of a message.
fn id_in(edge: &[u8], last: bool) -> Option<RequestId> {
    let text = String::from_utf8_lossy(edge);
    let rest = if last { text.rsplit_once("\"id\"") } else { text.split_once("\"id\"") }?.1;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    // Without what follows, the number may have been cut in two.
    rest[digits.len()..].trim_start().starts_with([',', '}']).then_some(())?;
    digits.parse().ok().map(NumberOrString::Number)
}

impl Transport<RoleClient> for Stdio {
    type Error = io::Error;

    fn send(&mut self, item: TxJsonRpcMessage<RoleClient>) -> impl Future<Output = io::Result<()>> + Send + 'static {
        let stdin = self.stdin.clone();
        async move {
            let mut line = serde_json::to_vec(&item)?;
            line.push(b'\n');
            match stdin.lock().await.as_mut() {
                Some(stdin) => stdin.write_all(&line).await,
                None => Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            if self.garbage >= MAX_GARBAGE {
                tracing::warn!(server = %self.traffic.server, "a tool server writes what is no message, and is ended");
                return None;
            }
            let line = self.lines.next().await.ok().flatten()?;
            self.take(&line);
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        // One that does not read its input may block a writer, which ends with this transport.
        if let Ok(mut stdin) = timeout(CLOSE_TIMEOUT, self.stdin.lock()).await {
            *stdin = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_of_an_answer_is_found_at_either_end_and_never_guessed() {
        for (edge, last, expected) in [
            (&br#"{"jsonrpc":"2.0","id":17,"result":{"content""#[..], false, Some(17)),
            (br#"xxx"}]},"jsonrpc":"2.0","id": 9 }"#, true, Some(9)),
            (br#"{"jsonrpc":"2.0","result":{"content":[{"text":"xx"#, false, None),
            (br#"{"jsonrpc":"2.0","id":12"#, false, None),
            (br#""id":"text"}"#, true, None),
            (b"", true, None),
        ] {
            assert_eq!(id_in(edge, last), expected.map(NumberOrString::Number));
        }
    }
}
