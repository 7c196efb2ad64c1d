//! Reading server-sent events (WHATWG HTML, "Server-sent events") from chunks of bytes as they arrive.

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its `id`, if the stream gave one.
    pub id: Option<String>,
    /// Its `event`, `message` when the stream gave none.
    pub name: String,
    /// Its `data`, lines joined by line ends.
    pub data: String,
}

/// Puts events together from chunks that may end anywhere.
#[derive(Debug, Default)]
pub struct Parser {
    buffer: Vec<u8>,
    id: Option<String>,
    name: Option<String>,
    data: Option<String>,
}

impl Parser {
    /// Takes the next chunk and gives the events it completed.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<Event> {
        self.buffer.extend_from_slice(chunk);
        let mut events = Vec::new();
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            events.extend(self.line(line.trim_end_matches(['\n', '\r'])));
        }
        events
    }

    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let name = self.name.take().unwrap_or_else(|| "message".to_owned());
            let id = self.id.take();
            return self.data.take().map(|data| Event { id, name, data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.id = Some(value.to_owned()),
            "event" => self.name = Some(value.to_owned()),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            // A comment, or a field that is not for us.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b": hello\n\nid: 1\nevent: log\ndata: a\ndata: \xc3\xa4\n\ndata:b\r\n\r\nid: 3\n\n";

    #[test]
    fn events_are_the_same_however_the_stream_is_cut() {
        let whole = Parser::default().push(STREAM);
        assert_eq!(
            whole,
            [
                Event { id: Some("1".into()), name: "log".into(), data: "a\nä".into() },
                Event { id: None, name: "message".into(), data: "b".into() },
            ]
        );
        for size in 1..STREAM.len() {
            let mut parser = Parser::default();
            let cut: Vec<Event> = STREAM.chunks(size).flat_map(|chunk| parser.push(chunk)).collect();
            assert_eq!(cut, whole, "in chunks of {size}");
        }
    }
}
