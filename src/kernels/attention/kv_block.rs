//! Keys and values in blocks of tokens.
//!
//! A block holds those of [`BLOCK_TOKENS`] tokens for every layer and key head: first the keys,
//! `[head_dim][tokens]`, so that a query meets all tokens of a block at once, then the values,
//! `[tokens][head_dim]`, rows filled up to whole vectors. Where numbers are whole, the four of a quad lie
//! side by side, so that they are multiplied as the weights of a matrix are: keys
//! `[head_dim / 4][tokens][4]`, values `[tokens / 4][head_dim][4 tokens]`; and last stand a scale for each
//! token's key and one for its value.

use std::sync::Arc;

use half::f16;

use super::super::memory::Slab;
use super::super::simd::{LANES, QUAD_LEN, Simd};

/// Tokens of a block.
pub const BLOCK_TOKENS: usize = LANES;

/// Most bytes that are asked of the system at once, unless a block takes more.
const SLAB_BYTES: usize = 64 << 20;

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvFormat {
    F32,
    F16,
    /// Whole numbers of a byte; a float32 scale for each token's key and value of each head.
    Int8,
}

/// What blocks look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    pub n_layers: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub format: KvFormat,
}

/// Calls `$then` with `$N` standing for the [`KvNumber`] of a [`KvFormat`].
macro_rules! with_kv_number {
    ($format:expr, $N:ident => $then:expr) => {
        match $format {
            KvFormat::F32 => {
                type $N = $crate::kernels::attention::kv_block::F32;
                $then
            }
            KvFormat::F16 => {
                type $N = $crate::kernels::attention::kv_block::F16;
                $then
            }
            KvFormat::Int8 => {
                type $N = $crate::kernels::attention::kv_block::Int8;
                $then
            }
        }
    };
}
pub(super) use with_kv_number;

/// Which of a token's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    Key,
    Value,
}

impl KvLayout {
    /// New blocks of zeros, side by side in memory.
    pub fn blocks(&self) -> Vec<KvBlock> {
        let n_blocks = self.blocks_of_slab();
        let slab = Arc::new(Slab::zeroed(n_blocks * self.block_bytes()));
        (0..n_blocks).map(|slot| KvBlock { slab: slab.clone(), slot, layout: *self }).collect()
    }

    pub fn block_bytes(&self) -> usize {
        self.n_layers * self.layer_bytes()
    }

    /// Bytes of a layer of a block.
    fn layer_bytes(&self) -> usize {
        self.n_kv_heads * self.head_bytes()
    }

    /// Blocks that lie in one piece of memory. There, those of one layer lie side by side, so that a long
    /// sequence is read from few places.
    fn blocks_of_slab(&self) -> usize {
        (SLAB_BYTES / self.block_bytes()).clamp(1, 64)
    }

    /// Bytes from a layer of a block to the next.
    fn layer_stride(&self) -> usize {
        self.blocks_of_slab() * self.layer_bytes()
    }

    /// A value's length, filled up to whole vectors.
    pub(super) fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// A key's length, filled up to whole quads where numbers are whole.
    pub(super) fn key_dim(&self) -> usize {
        match self.format {
            KvFormat::F32 | KvFormat::F16 => self.head_dim,
            KvFormat::Int8 => self.head_dim.next_multiple_of(QUAD_LEN),
        }
    }

    /// Where the keys of a head begin, from the block's start on.
    pub(super) fn keys_at(&self, layer: usize, head: usize) -> usize {
        layer * self.layer_stride() + head * self.head_bytes()
    }

    /// Where the values of a head begin, from its keys on.
    pub(super) fn values_offset(&self) -> usize {
        BLOCK_TOKENS * self.key_dim() * self.number_bytes()
    }

    /// Where the scales of a head's keys begin, from its keys on; those of its values follow.
    pub(super) fn scales_offset(&self) -> usize {
        BLOCK_TOKENS * (self.key_dim() + self.padded_dim()) * self.number_bytes()
    }

    /// Bytes of a head's keys and values.
    pub(super) fn head_bytes(&self) -> usize {
        let scale_bytes = if self.format == KvFormat::Int8 { 2 * BLOCK_TOKENS * size_of::<f32>() } else { 0 };
        self.scales_offset() + scale_bytes
    }

    fn number_bytes(&self) -> usize {
        match self.format {
            KvFormat::F32 => F32::BYTES,
            KvFormat::F16 => F16::BYTES,
            KvFormat::Int8 => Int8::BYTES,
        }
    }
}

/// The keys and values of [`BLOCK_TOKENS`] tokens.
#[derive(Debug)]
pub struct KvBlock {
    /// Memory that it shares with other blocks: to each belongs what lies in its slot of each layer.
    slab: Arc<Slab>,
    slot: usize,
    layout: KvLayout,
}

impl KvBlock {
    /// Where its bytes begin: layers are [`KvLayout::keys_at`] apart.
    ///
    /// # Panics
    /// When it is of another layout.
    pub(super) fn start_of(&self, layout: &KvLayout) -> *mut u8 {
        assert!(self.layout == *layout);
        self.start()
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: the slab has as many slots as blocks were made of it.
        unsafe { self.slab.start().add(self.slot * self.layout.layer_bytes()) }
    }

    /// What belongs to it of a layer.
    ///
    /// # Panics
    /// When there is no such layer.
    fn layer(&self, layer: usize) -> &[u8] {
        assert!(layer < self.layout.n_layers);
        // SAFETY: within the slab; nobody else reaches it but through this block.
        unsafe {
            let start = self.start().add(layer * self.layout.layer_stride());
            std::slice::from_raw_parts(start, self.layout.layer_bytes())
        }
    }

    fn layer_mut(&mut self, layer: usize) -> &mut [u8] {
        assert!(layer < self.layout.n_layers);
        // SAFETY: as above, and the block is borrowed exclusively.
        unsafe {
            let start = self.start().add(layer * self.layout.layer_stride());
            std::slice::from_raw_parts_mut(start, self.layout.layer_bytes())
        }
    }

    /// Makes all its numbers zeros.
    pub fn clear(&mut self) {
        (0..self.layout.n_layers).for_each(|layer| self.layer_mut(layer).fill(0));
    }

    /// A head's key or value of the token in `slot`.
    ///
    /// # Panics
    /// When there is none.
    pub fn read(&self, layer: usize, head: usize, slot: usize, row: Row, numbers: &mut [f32]) {
        let bytes = self.layer(layer);
        let scale = self.scale_at(head, slot, row).map_or(1.0, |at| number(&bytes[at..]));
        for (i, to) in numbers.iter_mut().enumerate() {
            let bytes = &bytes[self.place(head, slot, row, i)..];
            *to = scale
                * match self.layout.format {
                    KvFormat::F32 => number(bytes),
                    KvFormat::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
                    KvFormat::Int8 => f32::from(bytes[0]) - f32::from(Int8::ZERO),
                };
        }
    }

    /// Writes one.
    ///
    /// # Panics
    /// When there is none.
    pub fn write(&mut self, layer: usize, head: usize, slot: usize, row: Row, numbers: &[f32]) {
        let mut inverse = 1.0;
        if let Some(at) = self.scale_at(head, slot, row) {
            let largest = numbers.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            self.layer_mut(layer)[at..at + 4].copy_from_slice(&(largest / Int8::LARGEST).to_le_bytes());
            inverse = if largest > 0.0 { Int8::LARGEST / largest } else { 0.0 };
        }
        for (i, x) in numbers.iter().enumerate() {
            let (at, format) = (self.place(head, slot, row, i), self.layout.format);
            let bytes = self.layer_mut(layer);
            match format {
                KvFormat::F32 => bytes[at..at + 4].copy_from_slice(&x.to_le_bytes()),
                KvFormat::F16 => bytes[at..at + 2].copy_from_slice(&f16::from_f32(*x).to_le_bytes()),
                KvFormat::Int8 => {
                    bytes[at] = ((x * inverse).round_ties_even() as i8).cast_unsigned() ^ Int8::ZERO;
                }
            }
        }
    }

    /// Where a number is in its layer.
    fn place(&self, head: usize, slot: usize, row: Row, i: usize) -> usize {
        let layout = &self.layout;
        assert!(head < layout.n_kv_heads && slot < BLOCK_TOKENS && i < layout.head_dim);
        let of_head = with_kv_number!(layout.format, N => match row {
            Row::Key => N::key_place(slot, i),
            Row::Value => layout.values_offset() + N::value_place(layout.padded_dim(), slot, i),
        });
        head * layout.head_bytes() + of_head
    }

    fn scale_at(&self, head: usize, slot: usize, row: Row) -> Option<usize> {
        let scales = head * self.layout.head_bytes() + self.layout.scales_offset();
        let idx = slot + if row == Row::Value { BLOCK_TOKENS } else { 0 };
        (self.layout.format == KvFormat::Int8).then_some(scales + idx * size_of::<f32>())
    }
}

fn number(bytes: &[u8]) -> f32 {
    bytes.first_chunk().map_or(0.0, |&bytes| f32::from_le_bytes(bytes))
}

/// The numbers of a [`KvFormat`].
pub(super) trait KvNumber {
    const BYTES: usize;

    /// Whether they are whole, and rows have a scale.
    const IS_WHOLE: bool = false;

    /// Where the `i`th number of a key is, from those of its block on.
    fn key_place(slot: usize, i: usize) -> usize {
        (i * BLOCK_TOKENS + slot) * Self::BYTES
    }

    /// The same of a value.
    fn value_place(padded_dim: usize, slot: usize, i: usize) -> usize {
        (slot * padded_dim + i) * Self::BYTES
    }

    /// # Safety
    /// As [`Simd`]; `to` points to room for sixteen numbers.
    unsafe fn store<S: Simd>(simd: S, x: S::Floats, to: *mut u8);
}

/// Those that become float32 where they are used.
pub(super) trait KvFloat: KvNumber {
    /// # Safety
    /// As [`Simd`]; `from` points to sixteen numbers.
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::Floats;
}

pub(super) struct F32;

impl KvNumber for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, x: S::Floats, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { simd.store(x, to.cast()) }
    }
}

impl KvFloat for F32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::Floats {
        // SAFETY: the caller's promise.
        unsafe { simd.load(from.cast()) }
    }
}

pub(super) struct F16;

impl KvNumber for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, x: S::Floats, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { simd.store_f16(x, to.cast()) }
    }
}

impl KvFloat for F16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::Floats {
        // SAFETY: the caller's promise.
        unsafe { simd.load_f16(from.cast()) }
    }
}

pub(super) struct Int8;

impl Int8 {
    /// What the largest number of a row becomes.
    pub const LARGEST: f32 = 127.0;

    /// What zero becomes: products are of unsigned bytes.
    pub const ZERO: u8 = 128;
}

impl KvNumber for Int8 {
    const BYTES: usize = 1;
    const IS_WHOLE: bool = true;

    fn key_place(slot: usize, i: usize) -> usize {
        (i / QUAD_LEN * BLOCK_TOKENS + slot) * QUAD_LEN + i % QUAD_LEN
    }

    fn value_place(padded_dim: usize, slot: usize, i: usize) -> usize {
        (slot / QUAD_LEN * padded_dim + i) * QUAD_LEN + slot % QUAD_LEN
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, x: S::Floats, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            simd.store_i8(x, to.cast());
            for i in 0..LANES {
                *to.add(i) ^= Self::ZERO;
            }
        }
    }
}
