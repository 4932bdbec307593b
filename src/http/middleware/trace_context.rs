//! The W3C trace context: the `traceparent` header, by which the log lines of several programs are joined.

use axum::http::{HeaderMap, HeaderValue};

/// The header with the trace, the caller's span, and flags.
pub const TRACEPARENT: &str = "traceparent";

/// The place of a request in a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// 32 hexadecimal digits, the caller's or new.
    trace_id: String,
    /// The span of this request, 16 hexadecimal digits.
    span_id: String,
    /// Whether the caller records the trace.
    is_sampled: bool,
}

impl TraceContext {
    /// Continues the trace of the request's `traceparent` header. Begins one if it is missing or invalid.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let parent = match (values.next(), values.next()) {
            (Some(value), None) => value.to_str().ok().and_then(parse),
            _ => None,
        };
        let (trace_id, is_sampled) = match parent {
            Some((trace_id, is_sampled)) => (trace_id.to_owned(), is_sampled),
            None => (format!("{:032x}", rand::random_range(1..=u128::MAX)), false),
        };
        let span_id = format!("{:016x}", rand::random_range(1..=u64::MAX));
        Self { trace_id, span_id, is_sampled }
    }

    /// The id of the trace.
    pub fn trace_id(&self) -> &str {
        &self.trace_id
    }

    /// The header of the response: the trace with the span of this request.
    pub fn to_header(&self) -> Option<HeaderValue> {
        let Self { trace_id, span_id, is_sampled } = self;
        HeaderValue::from_str(&format!("00-{trace_id}-{span_id}-{:02x}", u8::from(*is_sampled))).ok()
    }
}

/// The trace id and whether it is sampled, by the rules of the recommendation: lower case, ids not all zero, and
/// later versions may append fields.
fn parse(value: &str) -> Option<(&str, bool)> {
    let mut fields = value.splitn(5, '-');
    let (version, trace_id, parent_id, flags) =
        (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let is_id = |text: &str, n: usize| is_hex(text, n) && text.bytes().any(|digit| digit != b'0');
    let is_version = is_hex(version, 2) && version != "ff" && (version != "00" || fields.next().is_none());
    let is_valid = is_version && is_id(trace_id, 32) && is_id(parent_id, 16) && is_hex(flags, 2);
    is_valid.then_some((trace_id, u8::from_str_radix(flags, 16).ok()? & 1 == 1))
}

fn is_hex(text: &str, n_digits: usize) -> bool {
    text.len() == n_digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    #[test]
    fn only_valid_parents_are_continued() {
        for (value, sampled) in [
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Some(true)),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02", Some(false)),
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Some(true)),
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-will-be", Some(true)),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x", None),
            ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None),
            ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", None),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", None),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", None),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", None),
            ("00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01", None),
            ("", None),
            ("----", None),
        ] {
            assert_eq!(parse(value), sampled.map(|sampled| (TRACE, sampled)), "{value}");
        }
    }

    #[test]
    fn a_request_has_a_span_of_its_own() {
        let value = HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        let mut headers =
            HeaderMap::from_iter([(axum::http::HeaderName::from_static(TRACEPARENT), value.clone())]);
        let context = TraceContext::from_headers(&headers);
        let echoed = context.to_header().unwrap();
        let (echoed, parent) = (echoed.to_str().unwrap(), value.to_str().unwrap());
        assert_eq!((&echoed[..36], &echoed[52..]), (&parent[..36], "-01"));
        assert_ne!(echoed[36..52], parent[36..52]);
        assert_eq!(parse(echoed), Some((TRACE, true)));
        // Two parents are none.
        headers.append(TRACEPARENT, value);
        let fresh = TraceContext::from_headers(&headers);
        assert!(fresh.trace_id() != TRACE && fresh != TraceContext::from_headers(&headers));
        assert!(parse(fresh.to_header().unwrap().to_str().unwrap()).is_some());
    }
}
