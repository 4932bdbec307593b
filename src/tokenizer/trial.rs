//! A trial of a tokenizer when it is loaded, so that a damaged or hostile file is an error then, and not of each
//! request.

use std::thread;
use std::time::{Duration, Instant};

use super::Tokenizer;
use crate::error::{Error, Kind, Result, catch_panic};

/// Stack of the thread that reads and tries a tokenizer: its file may nest.
const STACK_BYTES: usize = 16 << 20;

/// Time for all texts of the trial.
const TRIAL_TIME: Duration = Duration::from_secs(5);

/// Texts that are short, but that regular expressions backtrack over and normalizers expand.
fn texts() -> Vec<String> {
    let pieces = [
        "The quick brown fox's 3 jumps, isn't it?\n\n\t ",
        "a",
        "A",
        " ",
        "\n",
        "0",
        "a ",
        "aA0",
        "_-'.",
        "日本語한국어हिन्दी",
        "é\u{301}ﷺ™½\u{200d}🙂",
        "\u{0}\u{7f}\u{85}\u{fffd}",
        "<|im_start|></s>[CLS]",
    ];
    let short = pieces.iter().map(|piece| (*piece).to_owned());
    let long = pieces.iter().map(|piece| piece.repeat(TEXT_BYTES.div_ceil(piece.len())) + "!");
    short.chain(long).collect()
}

/// Length of the long texts.
const TEXT_BYTES: usize = 2000;

/// Builds a tokenizer and encodes the texts of the trial, on a thread with a large stack.
///
/// # Errors
/// When the tokenizer cannot be built, panics, or takes too long.
pub fn run(build: impl FnOnce() -> Result<Tokenizer> + Send) -> Result<Tokenizer> {
    let build_and_try = || {
        let tokenizer = build()?;
        encode_texts(&tokenizer)?;
        Ok(tokenizer)
    };
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("tokenizer-trial".to_owned()).stack_size(STACK_BYTES);
        let running = builder.spawn_scoped(scope, || catch_panic(build_and_try)).map_err(|e| {
            Error::new(Kind::Unavailable, format!("cannot start a thread for the tokenizer: {e}"))
        })?;
        match running.join() {
            Ok(Ok(result)) => result,
            Ok(Err(place)) => {
                tracing::warn!(place, "the tokenizer's library fails");
                Err(Error::model("the tokenizer cannot be used: its file is damaged"))
            }
            Err(_) => Err(Error::internal("the thread of the tokenizer ended")),
        }
    })
}

fn encode_texts(tokenizer: &Tokenizer) -> Result<()> {
    let started = Instant::now();
    for text in texts() {
        match tokenizer.encode_with_special(&text) {
            // The vocabulary may have no token for all characters.
            Err(e) if e.kind() == Kind::Internal => {}
            Err(e) => return Err(Error::model(format!("the tokenizer fails for a short text: {e}"))),
            Ok(_) => {}
        }
        if started.elapsed() > TRIAL_TIME {
            return Err(Error::model(format!(
                "the tokenizer takes more than {} s for a few short texts; use another conversion of the model",
                TRIAL_TIME.as_secs()
            )));
        }
    }
    Ok(())
}
