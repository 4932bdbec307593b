//! An incremental detokenizer: turns the bytes of tokens into text as they arrive, without splitting UTF-8
//! characters.

/// Collects the bytes of tokens, and returns text as soon as its characters are complete.
#[derive(Debug, Default)]
pub struct Detokenizer {
    /// The first bytes of an incomplete character: at most three.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// Takes the bytes of one token, and returns the text that they complete. Invalid UTF-8 becomes U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (valid, after) = rest.split_at(e.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    match e.error_len() {
                        Some(invalid) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &after[invalid..];
                        }
                        None => {
                            rest = after;
                            break;
                        }
                    }
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }

    /// Whether the bytes so far end within a character, which is lost if no more bytes follow.
    pub fn is_mid_character(&self) -> bool {
        !self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut detokenizer = Detokenizer::default();
        let [a, b, c, d] = *"🙂".as_bytes() else { unreachable!() };
        assert_eq!(detokenizer.push(&[b'x', a]), "x");
        assert_eq!(detokenizer.push(&[b, c]), "");
        assert!(detokenizer.is_mid_character());
        assert_eq!(detokenizer.push(&[d, b'y']), "🙂y");
        assert!(!detokenizer.is_mid_character());
    }

    proptest! {
        #[test]
        fn any_split_of_any_bytes_gives_the_same_text(
            bytes in prop::collection::vec(any::<u8>(), 0..64),
            cuts in prop::collection::vec(0usize..64, 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut detokenizer = Detokenizer::default();
            let text: String =
                cuts.windows(2).map(|cut| detokenizer.push(&bytes[cut[0]..cut[1]])).collect();
            let whole = &bytes[..bytes.len() - detokenizer.pending.len()];
            prop_assert!(detokenizer.pending.len() < 4);
            prop_assert_eq!(text, String::from_utf8_lossy(whole));
        }
    }
}
