//! Arrays in the format of NumPy (`.npy`), version 1.0.

use std::io::{self, Write};

/// The magic string and the version.
const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";

/// The data begins at a multiple of this, as NumPy itself writes it.
const ALIGNMENT: usize = 64;

/// Writes `values` as a float32 array of shape `[n_rows, n_columns]`.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_f32(
    out: &mut impl Write,
    n_rows: usize,
    n_columns: usize,
    values: impl Iterator<Item = f32>,
) -> io::Result<()> {
    out.write_all(&header(n_rows, n_columns))?;
    values.into_iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
}

/// Everything before the data.
fn header(n_rows: usize, n_columns: usize) -> Vec<u8> {
    let dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n_rows}, {n_columns}), }}");
    // Two bytes of length precede the dict, and a line feed ends it.
    let n_before = MAGIC.len() + 2;
    let n_bytes = (n_before + dict.len() + 1).next_multiple_of(ALIGNMENT) - n_before;
    let padding = " ".repeat(n_bytes - dict.len() - 1);
    // Two numbers of 20 digits make at most 128 bytes.
    let length = (n_bytes as u16).to_le_bytes();
    [MAGIC, &length, dict.as_bytes(), padding.as_bytes(), b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_numpys() {
        // From numpy.save of zeros of this shape.
        let expected = [
            b"\x93NUMPY\x01\x00\x76\x00".as_slice(),
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }",
            &[b' '; 58],
            b"\n",
        ]
        .concat();
        assert_eq!(header(2, 3), expected);
        for (n_rows, n_columns) in [(0, 0), (1, 384), (12_345_678, 4096), (usize::MAX, usize::MAX)] {
            let header = header(n_rows, n_columns);
            assert_eq!(header.len() % ALIGNMENT, 0);
            assert_eq!(usize::from(u16::from_le_bytes([header[8], header[9]])), header.len() - 10);
        }
    }

    #[test]
    fn values_follow_row_by_row() {
        let mut file = Vec::new();
        write_f32(&mut file, 1, 2, [1.0, -2.5].into_iter()).unwrap();
        assert_eq!(file.len(), 128 + 8);
        assert_eq!(file[128..], [1.0f32.to_le_bytes(), (-2.5f32).to_le_bytes()].concat());
    }
}
