//! The signature of a thinking block, which comes back with it.
//!
//! The server trusts what a client sends as the model's reasoning, in this API as in the others. So a signature proves
//! nothing; it only restores the text of a block whose reasoning was not shown.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::cache::name_digest;

/// The beginning of a signature that contains the reasoning.
const WITH_TEXT: &str = "text.";

/// The beginning of a signature of reasoning that is shown.
const OF_SHOWN: &str = "sha256.";

/// The signature of `thinking`, which is shown or is not.
pub fn sign(thinking: &str, is_shown: bool) -> String {
    match is_shown {
        true => format!("{OF_SHOWN}{}", name_digest(thinking.as_bytes())),
        false => format!("{WITH_TEXT}{}", STANDARD.encode(thinking)),
    }
}

/// The reasoning that a signature contains, if it is one of [`sign`].
pub fn hidden_text(signature: &str) -> Option<String> {
    let bytes = STANDARD.decode(signature.strip_prefix(WITH_TEXT)?).ok()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasoning_that_is_not_shown_comes_back() {
        assert_eq!(hidden_text(&sign("so é", false)).as_deref(), Some("so é"));
        for other in [sign("so", true).as_str(), "", "text.%", "text./w==", "EqQBCgIYAg=="] {
            assert_eq!(hidden_text(other), None, "{other}");
        }
    }
}
