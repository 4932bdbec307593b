//! Blocks of the paged KV cache.
//!
//! A block holds the keys and values of [`BLOCK_TOKENS`] tokens, for every layer and key head. The keys of a
//! head are stored as `[head_dim][token]`, so that a query is multiplied with all tokens of a block at once;
//! its values follow as `[token][padded_dim]`, rows padded to whole vectors. Layouts with shared values have no values:
//! kernels transpose the keys instead.
//!
//! [`KvFormat::Int8`] keeps the four elements of a quad side by side, as packed weights do, so that the same
//! dot-product instructions apply: keys are `[head_dim / 4][token][4]`, values
//! `[token / 4][padded_dim][4 tokens]`. A head then ends with a float32 scale per key and one per value.

use std::sync::Arc;

use half::f16;

use super::super::memory::Slab;
use super::super::simd::{LANES, QUAD_LEN, Scalar, Simd};
use super::kv_rotation::{rotate_head, rotate_head_back};

/// Tokens per block.
pub const BLOCK_TOKENS: usize = LANES;

/// Upper bound of one allocation, unless a single block is larger.
const MAX_SLAB_BYTES: usize = 64 << 20;

/// Number format of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvFormat {
    /// Float32: 4 bytes per element, exact.
    F32,
    /// Half precision: 2 bytes per element.
    F16,
    /// Quantized: 1 byte per element, and a float32 scale for each key and each value of each head.
    Int8,
}

/// Shape and format of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    /// Layers that share a block.
    pub n_layers: usize,
    /// Key heads per layer; each has a value head.
    pub n_kv_heads: usize,
    /// Elements of a head's key, and of its value.
    pub head_dim: usize,
    /// Whether a head's value is its key, as in multi-head latent attention; it is then stored once.
    pub shared_values: bool,
    /// Number format of the elements.
    pub format: KvFormat,
}

/// Evaluates `$then` with `$E` standing for the [`KvElement`] of a [`KvFormat`].
macro_rules! with_kv_element {
    ($format:expr, $E:ident => $then:expr) => {
        match $format {
            KvFormat::F32 => {
                type $E = $crate::kernels::attention::kv_block::F32;
                $then
            }
            KvFormat::F16 => {
                type $E = $crate::kernels::attention::kv_block::F16;
                $then
            }
            KvFormat::Int8 => {
                type $E = $crate::kernels::attention::kv_block::Int8;
                $then
            }
        }
    };
}
pub(super) use with_kv_element;

/// Either of the two rows that a head keeps of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvKind {
    /// The key, which queries are multiplied with.
    Key,
    /// The value, which the attention weights sum.
    Value,
}

/// Address of a token's key or value in a block.
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
    /// Allocates a slab of zeroed blocks, adjacent in memory.
    pub fn allocate_blocks(&self) -> Vec<KvBlock> {
        let n_blocks = self.blocks_per_slab();
        let slab = Arc::new(Slab::zeroed(n_blocks * self.block_bytes()));
        (0..n_blocks).map(|index| KvBlock { slab: slab.clone(), index, layout: *self }).collect()
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.n_layers * self.layer_bytes()
    }

    /// Bytes of one layer of a block.
    fn layer_bytes(&self) -> usize {
        self.n_kv_heads * self.head_bytes()
    }

    /// Blocks per slab. A slab stores layer by layer, so that a long sequence is read from few places.
    fn blocks_per_slab(&self) -> usize {
        (MAX_SLAB_BYTES / self.block_bytes()).clamp(1, 64)
    }

    /// Bytes from a layer of a block to the next layer.
    fn layer_stride(&self) -> usize {
        self.blocks_per_slab() * self.layer_bytes()
    }

    /// Length of a value, padded to whole vectors.
    pub(super) fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Length of a key, padded to whole quads in [`KvFormat::Int8`].
    pub(super) fn key_dim(&self) -> usize {
        match self.format {
            KvFormat::F32 | KvFormat::F16 => self.head_dim,
            KvFormat::Int8 => self.head_dim.next_multiple_of(QUAD_LEN),
        }
    }

    /// Rotates a head, padded to whole vectors, as its format stores it.
    #[inline(always)]
    pub(super) fn rotate<S: Simd>(&self, simd: S, head: &mut [f32]) {
        if self.is_rotated() {
            rotate_head(simd, head);
        }
    }

    /// Undoes [`KvLayout::rotate`].
    #[inline(always)]
    pub(super) fn rotate_back<S: Simd>(&self, simd: S, head: &mut [f32]) {
        if self.is_rotated() {
            rotate_head_back(simd, head);
        }
    }

    /// Whether keys and values are rotated before they are rounded.
    fn is_rotated(&self) -> bool {
        self.format == KvFormat::Int8 && self.head_dim.is_multiple_of(LANES)
    }

    /// Bytes from the start of a block to the keys of a head.
    pub(super) fn keys_offset(&self, layer: usize, head: usize) -> usize {
        layer * self.layer_stride() + head * self.head_bytes()
    }

    /// Rows that a token adds to each key head: its key, and its value unless that is the key.
    pub fn rows_per_token(&self) -> usize {
        if self.shared_values { 1 } else { 2 }
    }

    /// Bytes of a head's keys.
    pub(super) fn keys_bytes(&self) -> usize {
        BLOCK_TOKENS * self.key_dim() * self.element_bytes()
    }

    /// Bytes from a head's keys to its values; none if these are the keys.
    pub(super) fn values_offset(&self) -> usize {
        if self.shared_values { 0 } else { self.keys_bytes() }
    }

    /// Bytes from a head's keys to the scales of the keys; the scales of the values follow.
    pub(super) fn scales_offset(&self) -> usize {
        let values_len = if self.shared_values { 0 } else { BLOCK_TOKENS * self.padded_dim() };
        self.keys_bytes() + values_len * self.element_bytes()
    }

    /// Bytes of a head: its keys, its values and their scales.
    pub(super) fn head_bytes(&self) -> usize {
        let n_scales = if self.format == KvFormat::Int8 { self.rows_per_token() * BLOCK_TOKENS } else { 0 };
        self.scales_offset() + n_scales * size_of::<f32>()
    }

    /// The row that is stored for a key or value.
    fn stored_kind(&self, kind: KvKind) -> KvKind {
        if self.shared_values { KvKind::Key } else { kind }
    }

    fn element_bytes(&self) -> usize {
        with_kv_element!(self.format, E => E::BYTES)
    }
}

/// The keys and values of [`BLOCK_TOKENS`] tokens.
#[derive(Debug)]
pub struct KvBlock {
    /// Memory that several blocks share; no two of them have the same `index`.
    slab: Arc<Slab>,
    /// Index among the blocks of the slab.
    index: usize,
    layout: KvLayout,
}

impl KvBlock {
    /// Start of the block; [`KvLayout::keys_offset`] leads to its heads.
    ///
    /// # Panics
    /// When the block has another layout.
    pub(super) fn start_for(&self, layout: &KvLayout) -> *mut u8 {
        assert!(self.layout == *layout, "a block of {:?} in attention over {layout:?}", self.layout);
        self.start()
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: `allocate_blocks` numbers the blocks of a slab from 0 on and makes it large enough for all.
        unsafe { self.slab.start().add(self.index * self.layout.layer_bytes()) }
    }

    /// Bytes of one layer.
    ///
    /// # Panics
    /// When there is no such layer.
    fn layer(&self, layer: usize) -> &[u8] {
        assert!(layer < self.layout.n_layers);
        // SAFETY: `layer` was checked, so the bytes lie in the slab; no other block has this `index`.
        unsafe {
            let start = self.start().add(layer * self.layout.layer_stride());
            std::slice::from_raw_parts(start, self.layout.layer_bytes())
        }
    }

    fn layer_mut(&mut self, layer: usize) -> &mut [u8] {
        assert!(layer < self.layout.n_layers);
        // SAFETY: `layer` was checked, so the bytes lie in the slab; no other block has this `index`, and
        // this one is borrowed exclusively.
        unsafe {
            let start = self.start().add(layer * self.layout.layer_stride());
            std::slice::from_raw_parts_mut(start, self.layout.layer_bytes())
        }
    }

    /// Sets all keys and values to zero.
    pub fn clear(&mut self) {
        (0..self.layout.n_layers).for_each(|layer| self.layer_mut(layer).fill(0));
    }

    /// Reads a key or value into `values`, dequantized.
    ///
    /// # Panics
    /// When the block has no such row, or `values` is not as long as a head.
    pub fn read(&self, row: KvRow, values: &mut [f32]) {
        let head_dim = self.layout.head_dim;
        let bytes = self.layer(row.layer);
        let scale = self.scale_offset(row).map_or(1.0, |at| read_f32(&bytes[at..]));
        let mut head = vec![0.0; self.layout.padded_dim()];
        for (i, to) in head[..head_dim].iter_mut().enumerate() {
            let bytes = &bytes[self.element_offset(row, i)..];
            *to = scale
                * match self.layout.format {
                    KvFormat::F32 => read_f32(bytes),
                    KvFormat::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
                    KvFormat::Int8 => f32::from(bytes[0]) - f32::from(Int8::ZERO),
                };
        }
        self.layout.rotate_back(Scalar, &mut head);
        values.copy_from_slice(&head[..head_dim]);
    }

    /// Writes a key or value, quantized to the block's format.
    ///
    /// # Panics
    /// When the block has no such row, or `values` is not as long as a head.
    pub fn write(&mut self, row: KvRow, values: &[f32]) {
        let head_dim = self.layout.head_dim;
        let mut head = vec![0.0; self.layout.padded_dim()];
        head[..head_dim].copy_from_slice(values);
        self.layout.rotate(Scalar, &mut head);
        let values = &head[..head_dim];
        let mut inverse = 1.0;
        if let Some(at) = self.scale_offset(row) {
            let largest = values.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            self.layer_mut(row.layer)[at..at + 4].copy_from_slice(&(largest / Int8::MAX).to_le_bytes());
            inverse = if largest > 0.0 { Int8::MAX / largest } else { 0.0 };
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

    /// Bytes from the start of a layer to element `i` of a row.
    fn element_offset(&self, KvRow { head, slot, kind, .. }: KvRow, i: usize) -> usize {
        let layout = &self.layout;
        assert!(head < layout.n_kv_heads && slot < BLOCK_TOKENS && i < layout.head_dim);
        let in_head = with_kv_element!(layout.format, E => match layout.stored_kind(kind) {
            KvKind::Key => E::key_offset(slot, i),
            KvKind::Value => layout.values_offset() + E::value_offset(layout.padded_dim(), slot, i),
        });
        head * layout.head_bytes() + in_head
    }

    /// Bytes from the start of a layer to the scale of a row, in formats that have scales.
    fn scale_offset(&self, KvRow { head, slot, kind, .. }: KvRow) -> Option<usize> {
        let scales = head * self.layout.head_bytes() + self.layout.scales_offset();
        let idx = slot + if self.layout.stored_kind(kind) == KvKind::Value { BLOCK_TOKENS } else { 0 };
        (self.layout.format == KvFormat::Int8).then_some(scales + idx * size_of::<f32>())
    }
}

fn read_f32(bytes: &[u8]) -> f32 {
    bytes.first_chunk().map_or(0.0, |&bytes| f32::from_le_bytes(bytes))
}

/// The element type of a [`KvFormat`].
pub(super) trait KvElement {
    /// The format whose elements these are.
    const FORMAT: KvFormat;

    /// Bytes of an element.
    const BYTES: usize;

    /// Whether elements are integers, with a scale per row.
    const IS_QUANTIZED: bool = false;

    /// Bytes from the keys of a head to element `i` of the key in `slot`.
    fn key_offset(slot: usize, i: usize) -> usize {
        (i * BLOCK_TOKENS + slot) * Self::BYTES
    }

    /// Bytes from the values of a head to element `i` of the value in `slot`.
    fn value_offset(padded_dim: usize, slot: usize, i: usize) -> usize {
        (slot * padded_dim + i) * Self::BYTES
    }

    /// Stores sixteen elements, one after the other.
    ///
    /// # Safety
    /// `16 * BYTES` bytes can be written at `to`.
    unsafe fn store<S: Simd>(simd: S, x: S::Floats, to: *mut u8);
}

/// A [`KvElement`] that is widened to float32 where it is used.
pub(super) trait KvFloat: KvElement {
    /// Loads sixteen elements, one after the other.
    ///
    /// # Safety
    /// `16 * BYTES` bytes can be read at `from`.
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::Floats;
}

/// Elements of [`KvFormat::F32`].
pub(super) struct F32;

impl KvElement for F32 {
    const FORMAT: KvFormat = KvFormat::F32;
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, x: S::Floats, to: *mut u8) {
        // SAFETY: the caller has checked that sixteen elements of four bytes fit.
        unsafe { simd.store(x, to.cast()) }
    }
}

impl KvFloat for F32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::Floats {
        // SAFETY: the caller has checked that there are sixteen elements of four bytes.
        unsafe { simd.load(from.cast()) }
    }
}

/// Elements of [`KvFormat::F16`].
pub(super) struct F16;

impl KvElement for F16 {
    const FORMAT: KvFormat = KvFormat::F16;
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, x: S::Floats, to: *mut u8) {
        // SAFETY: the caller has checked that sixteen elements of two bytes fit.
        unsafe { simd.store_f16(x, to.cast()) }
    }
}

impl KvFloat for F16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::Floats {
        // SAFETY: the caller has checked that there are sixteen elements of two bytes.
        unsafe { simd.load_f16(from.cast()) }
    }
}

/// Elements of [`KvFormat::Int8`].
pub(super) struct Int8;

impl Int8 {
    /// The magnitude that the largest element of a row is scaled to.
    pub const MAX: f32 = 127.0;

    /// The byte that stands for zero: dot products take unsigned bytes.
    pub const ZERO: u8 = 128;
}

impl KvElement for Int8 {
    const FORMAT: KvFormat = KvFormat::Int8;
    const BYTES: usize = 1;
    const IS_QUANTIZED: bool = true;

    fn key_offset(slot: usize, i: usize) -> usize {
        (i / QUAD_LEN * BLOCK_TOKENS + slot) * QUAD_LEN + i % QUAD_LEN
    }

    fn value_offset(padded_dim: usize, slot: usize, i: usize) -> usize {
        (slot / QUAD_LEN * padded_dim + i) * QUAD_LEN + slot % QUAD_LEN
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, x: S::Floats, to: *mut u8) {
        // SAFETY: the caller has checked that sixteen bytes fit.
        unsafe {
            simd.store_i8(x, to.cast());
            for i in 0..LANES {
                *to.add(i) ^= Self::ZERO;
            }
        }
    }
}
