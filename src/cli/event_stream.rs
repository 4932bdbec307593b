//! Decoder of server-sent events, as the HTML standard defines them.

/// Decodes the data of events from bytes that arrive in pieces of any size.
#[derive(Debug, Default)]
pub struct SseDecoder {
    /// The beginning of a line.
    line: Vec<u8>,
    /// The data of the current event, if it has any.
    data: Option<String>,
}

impl SseDecoder {
    /// Adds bytes, and returns the data of each event that is complete with them. Comments, other fields and events
    /// without data are skipped; bytes that are not UTF-8 are replaced.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut events = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend(piece);
            if piece.ends_with(b"\n") {
                events.extend(self.end_line());
            }
        }
        events
    }

    /// Interprets a complete line; an empty one ends the event.
    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches(['\n', '\r']);
        if line.is_empty() {
            return self.data.take();
        }
        if let Some(value) = line.strip_prefix("data:") {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                None => self.data = Some(value.to_owned()),
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": ping\n\ndata: {\"a\": \"é字\"}\r\n\r\nevent: x\nid: 5\ndata: one\ndata:two\n\ndata\n\n\
                          data: [DONE]\n\ndata: cut";

    #[test]
    fn a_stream_may_be_cut_anywhere() {
        let expected = ["{\"a\": \"é字\"}", "one\ntwo", "[DONE]"];
        let bytes = STREAM.as_bytes();
        assert_eq!(SseDecoder::default().push(bytes), expected);
        for cut in 0..=bytes.len() {
            let mut decoder = SseDecoder::default();
            let mut events = decoder.push(&bytes[..cut]);
            events.extend(decoder.push(&bytes[cut..]));
            assert_eq!(events, expected, "{cut}");
        }
        let mut decoder = SseDecoder::default();
        let events: Vec<String> = bytes.iter().flat_map(|byte| decoder.push(&[*byte])).collect();
        assert_eq!(events, expected);
    }
}
