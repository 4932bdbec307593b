//! Bounds on the work of encoding one text: bytes that normalization may make of it, and time.
//!
//! Encoding runs on one thread from start to end, so its bounds are a variable of the thread.

use std::cell::RefCell;
use std::fmt;
use std::time::{Duration, Instant};

/// Normalized bytes for each byte of a text. Compatibility decomposition takes up to 11, but not of a whole text.
const BYTES_PER_BYTE: usize = 4;

/// Normalized bytes of any text, beside those for its own bytes.
const SPARE_BYTES: usize = 1 << 20;

/// Time for any text, beside that for its own bytes.
const SPARE_TIME: Duration = Duration::from_secs(2);

/// Time for each byte of a text; tokenizers of models need up to a twentieth.
const TIME_PER_BYTE: Duration = Duration::from_micros(4);

thread_local! {
    static BOUNDS: RefCell<Option<Bounds>> = const { RefCell::new(None) };
}

struct Bounds {
    bytes_left: usize,
    deadline: Instant,
    /// The first bound that was exceeded. The crate drops the errors of normalizers.
    exceeded: Option<OutOfBounds>,
}

/// Runs `encode`, which encodes a text of `n_bytes`, within its bounds.
///
/// # Errors
/// When a bound was exceeded.
pub fn with_bounds<T>(n_bytes: usize, encode: impl FnOnce() -> T) -> Result<T, OutOfBounds> {
    let time = SPARE_TIME + TIME_PER_BYTE * u32::try_from(n_bytes).unwrap_or(u32::MAX);
    let bytes_left = n_bytes.saturating_mul(BYTES_PER_BYTE).saturating_add(SPARE_BYTES);
    let bounds = Bounds { bytes_left, deadline: Instant::now() + time, exceeded: None };
    BOUNDS.replace(Some(bounds));
    let result = encode();
    match BOUNDS.take().and_then(|bounds| bounds.exceeded) {
        Some(exceeded) => Err(exceeded),
        None => Ok(result),
    }
}

/// Refuses a normalization step that would make `n_bytes`, of which `n_bytes_before` were there before.
///
/// # Errors
/// When all steps together would make too many.
pub fn check_growth(n_bytes_before: usize, n_bytes: usize) -> Result<(), OutOfBounds> {
    check(|bounds| {
        let bytes_left = bounds.bytes_left.checked_sub(n_bytes.saturating_sub(n_bytes_before));
        bounds.bytes_left = bytes_left.ok_or_else(|| {
            format!(
                "the tokenizer would expand the text to more than {BYTES_PER_BYTE} times its length and \
                 {SPARE_BYTES} bytes"
            )
        })?;
        Ok(())
    })
}

/// Refuses to go on after the deadline.
///
/// # Errors
/// When it has passed.
pub fn check_time() -> Result<(), OutOfBounds> {
    let is_late = |bounds: &Bounds| Instant::now() >= bounds.deadline;
    check(
        |bounds| {
            if is_late(bounds) { Err("the tokenizer takes too long for the text".to_owned()) } else { Ok(()) }
        },
    )
}

/// Records that a bound was exceeded, and returns the error.
pub fn exceeded(bound: String) -> OutOfBounds {
    match check(|_| Err(bound.clone())) {
        Err(e) => e,
        Ok(()) => OutOfBounds(bound),
    }
}

fn check(check: impl FnOnce(&mut Bounds) -> Result<(), String>) -> Result<(), OutOfBounds> {
    BOUNDS.with_borrow_mut(|bounds| {
        let Some(bounds) = bounds else { return Ok(()) };
        if let Some(exceeded) = &bounds.exceeded {
            return Err(exceeded.clone());
        }
        check(bounds).map_err(|bound| bounds.exceeded.insert(OutOfBounds(bound)).clone())
    })
}

/// The bound that a text exceeds.
#[derive(Debug, Clone)]
pub struct OutOfBounds(pub String);

impl fmt::Display for OutOfBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OutOfBounds {}
