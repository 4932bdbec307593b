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

/// Calls `$then` with `$N` standing for the [`KvElement`] of a [`KvFormat`].
macro_rules! with_kv_element {
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
pub(super) use with_kv_element;

/// Either of the two rows that a head keeps of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvKind {
    /// The key, which queries are compared with.
    Key,
    /// The value, which the attention weights sum.
    Value,
}

/// The address of a token's key or value in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvRow {
    /// Index of the layer among those of the block.
    pub layer: usize,
    /// Index of the key head.
    pub head: usize,
    /// Index of the token in the block.
    pub slot: usize,
    /// Whether it is the key or the value.
    pub kind: KvKind,
}

impl KvLayout {
    /// New blocks of zeros, side by side in memory.
    pub fn allocate_blocks(&self) -> Vec<KvBlock> {
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
    pub(super) fn keys_offset(&self, layer: usize, head: usize) -> usize {
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
    /// Where its bytes begin: layers are [`KvLayout::keys_offset`] apart.
    ///
    /// # Panics
    /// When it is of another layout.
    pub(super) fn start_for(&self, layout: &KvLayout) -> *mut u8 {
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

    /// Reads a key or value into `values`, dequantized.
    ///
    /// # Panics
    /// When the block has no such row, or `values` is longer than a head.
    pub fn read(&self, row: KvRow, values: &mut [f32]) {
        let bytes = self.layer(row.layer);
        let scale = self.scale_offset(row).map_or(1.0, |at| read_f32(&bytes[at..]));
        for (i, to) in values.iter_mut().enumerate() {
            let bytes = &bytes[self.element_offset(row, i)..];
            *to = scale
                * match self.layout.format {
                    KvFormat::F32 => read_f32(bytes),
                    KvFormat::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
                    KvFormat::Int8 => f32::from(bytes[0]) - f32::from(Int8::ZERO),
                };
        }
    }

    /// Writes a key or value, quantized to the block's format.
    ///
    /// # Panics
    /// When the block has no such row, or `values` is longer than a head.
    pub fn write(&mut self, row: KvRow, values: &[f32]) {
        let mut inverse = 1.0;
        if let Some(at) = self.scale_offset(row) {
            let largest = values.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            self.layer_mut(row.layer)[at..at + 4].copy_from_slice(&(largest / Int8::LARGEST).to_le_bytes());
            inverse = if largest > 0.0 { Int8::LARGEST / largest } else { 0.0 };
        }
        for (i, x) in values.iter().enumerate() {
            let (at, format) = (self.element_offset(row, i), self.layout.format);
            let bytes = self.layer_mut(row.layer);
            match format {
                KvFormat::F32 => bytes[at..at + 4].copy_from_slice(&x.to_le_bytes()),
                KvFormat::F16 => bytes[at..at + 2].copy_from_slice(&f16::from_f32(*x).to_le_bytes()),
                KvFormat::Int8 => {
                    bytes[at] = ((x * inverse).round_ties_even() as i8).cast_unsigned() ^ Int8::ZERO;
                }
            }
        }
    }

    /// Offset of element `i` of a row in its layer, in bytes.
    fn element_offset(&self, KvRow { head, slot, kind, .. }: KvRow, i: usize) -> usize {
        let layout = &self.layout;
        assert!(head < layout.n_kv_heads && slot < BLOCK_TOKENS && i < layout.head_dim);
        let in_head = with_kv_element!(layout.format, E => match kind {
            KvKind::Key => E::key_offset(slot, i),
            KvKind::Value => layout.values_offset() + E::value_offset(layout.padded_dim(), slot, i),
        });
        head * layout.head_bytes() + in_head
    }

    /// Offset of the scale of a row in its layer, in bytes, if the format has scales.
    fn scale_offset(&self, KvRow { head, slot, kind, .. }: KvRow) -> Option<usize> {
        let scales = head * self.layout.head_bytes() + self.layout.scales_offset();
        let idx = slot + if kind == KvKind::Value { BLOCK_TOKENS } else { 0 };
        (self.layout.format == KvFormat::Int8).then_some(scales + idx * size_of::<f32>())
    }
}

fn read_f32(bytes: &[u8]) -> f32 {
    bytes.first_chunk().map_or(0.0, |&bytes| f32::from_le_bytes(bytes))
}

/// The numbers of a [`KvFormat`].
pub(super) trait KvElement {
    const BYTES: usize;

    /// Whether they are whole, and rows have a scale.
    const IS_WHOLE: bool = false;

    /// Where the `i`th number of a key is, from those of its block on.
    fn key_offset(slot: usize, i: usize) -> usize {
        (i * BLOCK_TOKENS + slot) * Self::BYTES
    }

    /// The same of a value.
    fn value_offset(padded_dim: usize, slot: usize, i: usize) -> usize {
        (slot * padded_dim + i) * Self::BYTES
    }

    /// # Safety
    /// As [`Simd`]; `to` points to room for sixteen numbers.
    unsafe fn store<S: Simd>(simd: S, x: S::Floats, to: *mut u8);
}

/// Those that become float32 where they are used.
pub(super) trait KvFloat: KvElement {
    /// # Safety
    /// As [`Simd`]; `from` points to sixteen numbers.
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::Floats;
}

pub(super) struct F32;

impl KvElement for F32 {
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

impl KvElement for F16 {
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

impl KvElement for Int8 {
    const BYTES: usize = 1;
    const IS_WHOLE: bool = true;

    fn key_offset(slot: usize, i: usize) -> usize {
        (i / QUAD_LEN * BLOCK_TOKENS + slot) * QUAD_LEN + i % QUAD_LEN
    }

    fn value_offset(padded_dim: usize, slot: usize, i: usize) -> usize {
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
