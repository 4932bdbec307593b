//! Sets of characters, exactly and by the first bytes of their UTF-8.

use std::fmt::Write as _;

const MAX_CHAR: u32 = 0x10_FFFF;
const SURROGATES: (u32, u32) = (0xD800, 0xDFFF);

/// A set of characters, as sorted ranges of code points that neither overlap nor touch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CharSet(Vec<(u32, u32)>);

impl CharSet {
    /// The characters of some ranges, both ends included.
    pub fn from_ranges(ranges: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut ranges: Vec<(u32, u32)> = ranges.into_iter().collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (low, high) in ranges {
            match merged.last_mut() {
                Some((_, end)) if low <= end.saturating_add(1) => *end = (*end).max(high),
                _ => merged.push((low, high)),
            }
        }
        Self(merged)
    }

    /// One character.
    pub fn from_char(c: char) -> Self {
        Self(vec![(c.into(), c.into())])
    }

    /// Every character.
    pub fn any() -> Self {
        Self(vec![(0, SURROGATES.0 - 1), (SURROGATES.1 + 1, MAX_CHAR)])
    }

    /// All other characters.
    pub fn negated(&self) -> Self {
        let mut others = Vec::new();
        let mut next = 0;
        for &(low, high) in self.0.iter().filter(|(low, _)| *low <= MAX_CHAR) {
            if low > next {
                others.push((next, low - 1));
            }
            next = next.max(high.saturating_add(1));
        }
        if next <= MAX_CHAR {
            others.push((next, MAX_CHAR));
        }
        let split = others.into_iter().flat_map(|(low, high)| {
            let below = (low, high.min(SURROGATES.0 - 1));
            let above = (low.max(SURROGATES.1 + 1), high);
            [below, above].into_iter().filter(|(low, high)| low <= high)
        });
        Self::from_ranges(split)
    }

    /// The characters of both sets.
    pub fn union(&self, other: &Self) -> Self {
        Self::from_ranges(self.0.iter().chain(&other.0).copied())
    }

    /// Whether it has no characters.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its character, if it has only one.
    pub fn single(&self) -> Option<char> {
        match self.0[..] {
            [(low, high)] if low == high => char::from_u32(low),
            _ => None,
        }
    }

    /// The set as a class of a regular expression, such as `[a-z\x{2d}]`.
    pub fn to_regex(&self) -> String {
        let mut class = "[".to_owned();
        let mut push = |code: u32| match char::from_u32(code) {
            Some(c) if c.is_ascii_alphanumeric() => class.push(c),
            _ => {
                let _ = write!(class, "\\x{{{code:x}}}");
            }
        };
        for &(low, high) in &self.0 {
            push(low);
            if high > low {
                // A dash of the class itself; characters are escaped.
                push(u32::MAX);
                push(high);
            }
        }
        class.replace("\\x{ffffffff}", "-") + "]"
    }

    /// The first bytes of its characters in UTF-8.
    pub fn first_bytes(&self) -> ByteMask {
        let mut mask = ByteMask::default();
        for &(low, high) in &self.0 {
            (first_byte(low)..=first_byte(high)).for_each(|byte| mask.insert(byte));
        }
        mask
    }
}

/// The first byte of a code point in UTF-8.
fn first_byte(code: u32) -> u8 {
    match code {
        0..0x80 => code as u8,
        0x80..0x800 => 0xC0 | (code >> 6) as u8,
        0x800..0x1_0000 => 0xE0 | (code >> 12) as u8,
        _ => 0xF0 | (code >> 18) as u8,
    }
}

/// A set of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByteMask([u64; 4]);

impl ByteMask {
    /// No byte.
    pub const EMPTY: Self = Self([0; 4]);

    /// Every byte.
    pub const ALL: Self = Self([u64::MAX; 4]);

    /// Adds a byte.
    pub fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }

    /// Adds the bytes of another set; returns whether there were new ones.
    pub fn extend(&mut self, other: Self) -> bool {
        let before = *self;
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word |= other);
        *self != before
    }

    /// Whether the sets have a byte in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.0.iter().zip(other.0).any(|(word, other)| word & other != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_merged_and_negated() {
        let set = CharSet::from_ranges([(0x62, 0x64), (0x61, 0x61), (0x63, 0x66), (0x2D, 0x2D)]);
        assert_eq!(set.to_regex(), "[\\x{2d}a-f]");
        assert_eq!(
            set.negated().to_regex(),
            "[\\x{0}-\\x{2c}\\x{2e}-\\x{60}g-\\x{d7ff}\\x{e000}-\\x{10ffff}]"
        );
        assert_eq!(set.negated().negated(), set);
        assert!(CharSet::any().negated().is_empty());
        assert_eq!(CharSet::from_char('é').single(), Some('é'));
    }

    #[test]
    fn first_bytes_are_those_of_utf8() {
        for c in ['a', 'é', '€', '😀', '\u{10FFFF}', '\u{7FF}', '\u{800}'] {
            let mut expected = ByteMask::default();
            expected.insert(c.to_string().as_bytes()[0]);
            assert_eq!(CharSet::from_char(c).first_bytes(), expected, "{c}");
        }
        assert!(CharSet::any().first_bytes().overlaps(CharSet::from_char('😀').first_bytes()));
        assert!(!CharSet::from_char('a').first_bytes().overlaps(CharSet::from_char('b').first_bytes()));
    }
}
