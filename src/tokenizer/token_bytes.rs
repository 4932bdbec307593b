//! The bytes that a token's text in the vocabulary stands for.

/// How SentencePiece vocabularies write a space.
pub const SPACE: char = '▁';

/// The bytes of a token of a byte-level vocabulary, which writes every byte as one printable character
/// (the GPT-2 alphabet). A token with any other character stands for its own text.
pub fn byte_level_bytes(token: &str) -> Vec<u8> {
    token.chars().map(gpt2_byte).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte that a character of the GPT-2 alphabet stands for: printable Latin-1 characters for themselves,
/// U+0100 and up for the other 68 bytes, in order.
pub fn gpt2_byte(c: char) -> Option<u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(c) {
        code @ 0..=0xFF => Some(code as u8).filter(|&byte| is_printable(byte)),
        code => (0..=255u8).filter(|&byte| !is_printable(byte)).nth(code as usize - 0x100),
    }
}

/// The bytes of a SentencePiece token, in which `▁` stands for a space.
pub fn sentence_piece_bytes(token: &str) -> Vec<u8> {
    token.replace(SPACE, " ").into_bytes()
}

/// The byte of a byte-fallback token such as `<0x0A>`.
pub fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>').filter(|hex| hex.len() == 2)?;
    u8::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gpt2_alphabet_is_a_bijection() {
        let mut bytes: Vec<u8> = ('\u{21}'..='\u{143}').filter_map(gpt2_byte).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(gpt2_byte('Ġ'), Some(b' '));
        assert_eq!(gpt2_byte('Ċ'), Some(b'\n'));
    }
}
