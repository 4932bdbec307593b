//! The error for a head that hyper cannot parse, in OpenAI's envelope.
//!
//! The request never reaches the router: hyper answers it itself, without a body. Its answer is recognized among
//! the bytes that it writes, and given the body.

use axum::http::StatusCode;

use crate::http::error::unparsed_request;

/// hyper's own status line.
const STATUS_LINE: &[u8] = b"HTTP/1.1 ";

/// The field of hyper's answer that says that it has no body.
const NO_BODY: &str = "content-length: 0\r\n";

/// An answer that is being sent in place of hyper's.
pub struct HeadError {
    bytes: Vec<u8>,
    n_sent: usize,
}

impl HeadError {
    /// The answer in place of `answer`, if that is a response with an error and without a body. `max_bytes` is the
    /// limit on heads.
    pub fn in_place_of(answer: &[u8], max_bytes: usize) -> Option<Self> {
        let status = StatusCode::from_bytes(answer.strip_prefix(STATUS_LINE)?.get(..3)?).ok()?;
        if !status.is_client_error() {
            return None;
        }
        let (before, after) = std::str::from_utf8(answer).ok()?.split_once(NO_BODY)?;
        if !after.ends_with("\r\n") || before.contains("\r\n\r\n") {
            return None;
        }
        let body = unparsed_request(status, max_bytes).into_json();
        let n_bytes = body.len();
        let head = format!("{before}content-type: application/json\r\ncontent-length: {n_bytes}\r\n{after}");
        Some(Self { bytes: [head.into_bytes(), body].concat(), n_sent: 0 })
    }

    /// The bytes that are left to send.
    pub fn unsent(&self) -> &[u8] {
        &self.bytes[self.n_sent..]
    }

    /// Notes that `n_bytes` more are sent.
    pub fn advance(&mut self, n_bytes: usize) {
        self.n_sent += n_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_a_body_gets_the_envelope() {
        let hypers = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let mut error = HeadError::in_place_of(hypers, 4096).unwrap();
        let text = String::from_utf8(error.unsent().to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{head}");
        assert!(head.ends_with("\r\ndate: x") && head.contains("content-type: application/json"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["code"], "head_too_large");
        error.advance(text.len() - 1);
        assert_eq!(error.unsent(), b"}");
    }

    #[test]
    fn other_bytes_are_left_alone() {
        for other in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "data: HTTP/1.1 400 x\r\n",
            "HTTP/1.1 4",
            "",
        ] {
            assert!(HeadError::in_place_of(other.as_bytes(), 4096).is_none(), "{other}");
        }
    }
}
