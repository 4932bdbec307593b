//! The budget of one rendering: a deadline, and a number of list items that it may copy.
//!
//! minijinja's fuel pays for instructions and for the bytes of texts; this budget pays for the rest. A rendering has
//! a thread to itself, so its budget is a variable of the thread.

use std::cell::Cell;
use std::fmt;
use std::time::{Duration, Instant};

use minijinja::{Error, ErrorKind};

/// Time for one rendering.
pub const RENDER_TIME: Duration = Duration::from_secs(2);

/// List items that one rendering may copy, of 24 bytes each.
const MAX_ITEMS: usize = 1 << 22;

/// Items between two looks at the clock.
const ITEMS_PER_CHECK: usize = 1 << 12;

/// The longest text that a template may make.
pub const MAX_TEXT_BYTES: usize = 16 << 20;

thread_local! {
    static BUDGET: Cell<Option<Budget>> = const { Cell::new(None) };
}

#[derive(Clone, Copy)]
struct Budget {
    deadline: Instant,
    items_left: usize,
}

/// Gives this thread the budget of one rendering.
pub fn start() {
    BUDGET.set(Some(Budget { deadline: Instant::now() + RENDER_TIME, items_left: MAX_ITEMS }));
}

/// Checks the deadline.
///
/// # Errors
/// When it has passed.
pub fn check_time() -> Result<(), Error> {
    match BUDGET.get() {
        Some(budget) if Instant::now() >= budget.deadline => {
            Err(exceeded(format!("rendering takes longer than {} s", RENDER_TIME.as_secs())))
        }
        _ => Ok(()),
    }
}

/// Charges for copying `n` items, and checks the deadline now and then.
///
/// # Errors
/// When the budget is used up.
pub fn charge_items(n: usize) -> Result<(), Error> {
    let Some(budget) = BUDGET.get() else { return Ok(()) };
    let Some(items_left) = budget.items_left.checked_sub(n) else {
        return Err(exceeded(format!("its lists have more than {MAX_ITEMS} items in all")));
    };
    BUDGET.set(Some(Budget { items_left, ..budget }));
    if items_left / ITEMS_PER_CHECK == budget.items_left / ITEMS_PER_CHECK { Ok(()) } else { check_time() }
}

/// Refuses a text longer than [`MAX_TEXT_BYTES`], best before it is made.
///
/// # Errors
/// When the text is longer.
pub fn check_size(n_bytes: usize) -> Result<(), Error> {
    if n_bytes > MAX_TEXT_BYTES {
        return Err(exceeded(format!("a text of it is longer than {MAX_TEXT_BYTES} bytes")));
    }
    Ok(())
}

/// The error of a limit that a template exceeds. `what` is the limit.
pub fn exceeded(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, "the template exceeds a limit").with_source(LimitExceeded(what))
}

/// The limit that a template exceeds.
#[derive(Debug)]
pub struct LimitExceeded(pub String);

impl fmt::Display for LimitExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LimitExceeded {}
