//! KV cache write: stores the keys and values of new tokens in the blocks of their sequences.

use std::marker::PhantomData;
use std::ops::Range;

use super::super::simd::{Kernel, LANES, Simd, load_array};
use super::kv_block::{BLOCK_TOKENS, Int8, KvElement, KvLayout};
use super::kv_kernel::prefetch;
use super::paged::PagedSequence;
use super::rope::{HeadNorms, norm_rope_scale};
use super::{AttentionPass, PagedAttention};

/// A new token of a sequence of the batch.
#[derive(Clone, Copy)]
pub(super) struct NewToken {
    /// Index of the sequence.
    pub(super) sequence: usize,
    /// Index among the new tokens of the sequence.
    pub(super) token: usize,
}

/// Writes the keys and values of a new token into its block, as elements `E`.
pub(super) struct KvWrite<'a, E> {
    attention: &'a PagedAttention<'a>,
    sequence: &'a PagedSequence<'a>,
    /// Row of the token in the batch.
    row: usize,
    /// Queries, keys and values of the token.
    qkv: &'a [f32],
    /// Key heads to be written.
    kv_heads: Range<usize>,
    /// Index of the block in the sequence's block table.
    block: usize,
    /// Index of the token in the block.
    slot: usize,
    element: PhantomData<E>,
}

impl<'a, E: KvElement> KvWrite<'a, E> {
    /// The write of some heads of a token.
    ///
    /// # Safety
    /// Nobody else reads or writes the token's keys and values of these heads until the write is done.
    ///
    /// # Panics
    /// When there is no such token or head, or the KV cache has another element type.
    #[inline(always)]
    pub(super) unsafe fn new(
        pass: &'a AttentionPass<'a>,
        NewToken { sequence, token }: NewToken,
        kv_heads: Range<usize>,
    ) -> Self {
        let attention = pass.attention;
        let sequence = &pass.sequences[sequence];
        assert!(token < sequence.len && kv_heads.end <= attention.layout.n_kv_heads);
        assert!(E::FORMAT == attention.layout.format);
        let (row, position) = (sequence.first_row + token, sequence.start + token);
        let (block, slot) = (position / BLOCK_TOKENS, position % BLOCK_TOKENS);
        let qkv = pass.qkv_of(row);
        Self { attention, sequence, row, qkv, kv_heads, block, slot, element: PhantomData }
    }

    /// Prefetches the cache lines to be written: a key goes to all lines that its block has for the head.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(&self, simd: S) {
        let layout = &self.attention.layout;
        let padded = layout.padded_dim();
        for head in self.kv_heads.clone() {
            let keys = self.sequence.head_ptr(head, self.block);
            prefetch(simd, keys, layout.keys_bytes());
            if !layout.shared_values {
                let value = keys.wrapping_add(layout.values_offset() + E::value_offset(padded, self.slot, 0));
                prefetch(simd, value, padded * E::BYTES);
            }
        }
    }

    /// Norms and rotates the keys, then writes keys and values.
    #[inline(always)]
    pub(super) fn write<S: Simd>(&self, simd: S) {
        let Self { attention, row, .. } = *self;
        let KvLayout { n_kv_heads, head_dim, shared_values, .. } = attention.layout;
        let (keys, values) = self.qkv[attention.n_heads * head_dim..].split_at(n_kv_heads * head_dim);
        let norm = attention.head_norms.map(HeadNorms::key_norm);
        let rope = attention.rope.as_ref().map(|rope| (rope, row));
        // Zeros behind the head fill its last vector.
        let mut padded = vec![0.0; attention.layout.padded_dim()];
        for head in self.kv_heads.clone() {
            let of_head = head * head_dim..(head + 1) * head_dim;
            padded[..head_dim].copy_from_slice(&keys[of_head.clone()]);
            norm_rope_scale(&mut padded[..head_dim], norm, rope, 1.0);
            attention.layout.rotate(simd, &mut padded);
            self.write_key(simd, head, padded.as_chunks().0);
            if shared_values {
                continue;
            }
            padded[..head_dim].copy_from_slice(&values[of_head]);
            attention.layout.rotate(simd, &mut padded);
            self.write_value(simd, head, padded.as_chunks().0);
        }
    }

    #[inline(always)]
    fn write_key<S: Simd>(&self, simd: S, head: usize, key: &[[f32; LANES]]) {
        let head_dim = self.attention.layout.head_dim;
        let keys = self.sequence.head_ptr(head, self.block);
        let inverse = self.write_scale(simd, head, self.slot, key);
        for (idx, x) in key.iter().enumerate() {
            let start = idx * LANES;
            let mut elements = [0u8; LANES * 4];
            // SAFETY: elements have at most four bytes. `new` checked the head and the format, so element
            // `start + i < head_dim` of the slot is in the head's part of the block, which
            // `PagedSequence::new` found to be the sequence's own; its caller said that nobody else uses it.
            unsafe {
                E::store(simd, simd.mul(load_array(simd, x), inverse), elements.as_mut_ptr());
                for i in 0..LANES.min(head_dim - start) {
                    let to = keys.add(E::key_offset(self.slot, start + i));
                    to.copy_from_nonoverlapping(elements.as_ptr().add(i * E::BYTES), E::BYTES);
                }
            }
        }
    }

    #[inline(always)]
    fn write_value<S: Simd>(&self, simd: S, head: usize, value: &[[f32; LANES]]) {
        let layout = &self.attention.layout;
        let values = self.sequence.head_ptr(head, self.block).wrapping_add(layout.values_offset());
        let inverse = self.write_scale(simd, head, BLOCK_TOKENS + self.slot, value);
        for (idx, x) in value.iter().enumerate() {
            let x = simd.mul(load_array(simd, x), inverse);
            let offset = |i: usize| E::value_offset(layout.padded_dim(), self.slot, idx * LANES + i);
            // SAFETY: `new` checked the head and the format, so the slot's `padded_dim` elements are in the
            // head's part of the block, which `PagedSequence::new` found to be the sequence's own; its caller
            // said that nobody else uses them.
            unsafe {
                if E::IS_QUANTIZED {
                    let mut elements = [0u8; LANES];
                    E::store(simd, x, elements.as_mut_ptr());
                    for (i, element) in elements.into_iter().enumerate() {
                        *values.add(offset(i)) = element;
                    }
                } else {
                    E::store(simd, x, values.add(offset(0)));
                }
            }
        }
    }

    /// Writes scale `idx` of a head, for a `row` to be stored, if the format has scales. Returns the factor
    /// that quantizes the row.
    #[inline(always)]
    fn write_scale<S: Simd>(&self, simd: S, head: usize, idx: usize, row: &[[f32; LANES]]) -> S::Floats {
        if !E::IS_QUANTIZED {
            return simd.splat(1.0);
        }
        let mut largest = simd.splat(0.0);
        for x in row {
            largest = simd.max_magnitude(largest, load_array(simd, x));
        }
        let largest = simd.reduce_max_magnitude(largest);
        let scales = self.attention.layout.scales_offset();
        // SAFETY: quantized formats have a scale for each key and value of a head, and `new` checked head and
        // format; this scale is the token's, and the caller of `new` said that nobody else uses it. It is
        // aligned, since slabs begin on cache lines and heads are multiples of four bytes.
        unsafe {
            let scales = self.sequence.head_ptr(head, self.block).add(scales).cast::<f32>();
            scales.add(idx).write(largest / Int8::MAX);
        }
        simd.splat(if largest > 0.0 { Int8::MAX / largest } else { 0.0 })
    }
}

impl<E: KvElement> Kernel for KvWrite<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.prefetch(simd);
        self.write(simd);
    }
}
