//! PagedAttention over keys and values in blocks: head norms, rotary embedding, writing the new keys and
//! values, then the weighted sums of values, without ever repeating a key head or holding all scores.
//!
//! The scores of a query are made a few blocks of keys at a time; sums so far are scaled down whenever
//! a larger score turns up (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018).
//! The query heads that share a key head are rows of one small product. Long sequences with few new
//! tokens are cut into ranges of keys that several threads sum apart.

mod float;
pub mod kv_block;
mod texts;
mod whole;

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

pub use self::texts::{EncoderAttention, RelativePositionBias};

use self::float::FloatRows;
use self::kv_block::{BLOCK_TOKENS, KvBlock, KvElement, KvFormat, KvLayout, with_kv_element};
use self::whole::WholeRows;
use super::isa::Isa;
use super::simd::{Kernel, LANES, Simd, dispatch, exp, tanh};
use super::threads::disjoint::DisjointSlice;
use super::threads::pool;

/// What a layer's attention is.
#[derive(Debug, Clone, Copy)]
pub struct PagedAttention<'a> {
    pub n_heads: usize,
    pub layout: KvLayout,
    pub layer: usize,
    /// Multiplies the product of a query and a key.
    pub scale: f32,
    /// Bounds the scores: `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// How many keys a query sees at most, its own among them.
    pub window: Option<usize>,
    /// Norms of query and key heads.
    pub head_norms: Option<HeadNorms<'a>>,
    pub rope: Option<RopeTable<'a>>,
}

/// RMS norms of each query and each key head; weights `[head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorms<'a> {
    pub query: &'a [f32],
    pub key: &'a [f32],
    pub eps: f32,
}

/// Cosines and sines of each token, `[n_tokens, n_pairs]`. Numbers `i` and `n_pairs + i` of a head
/// form a pair; numbers past the pairs stay as they are.
#[derive(Debug, Clone, Copy)]
pub struct RopeTable<'a> {
    pub cos: &'a [f32],
    pub sin: &'a [f32],
    pub n_pairs: usize,
}

/// New tokens of one sequence, and where its keys and values are.
#[derive(Debug)]
pub struct SequenceKv<'a> {
    /// Position of the first new token.
    pub start: usize,
    /// How many new tokens.
    pub len: usize,
    /// The sequence's blocks, with room for the new tokens; those that new tokens are written to are
    /// its own.
    pub blocks: Vec<KvRef<'a>>,
}

/// A block of a sequence.
#[derive(Debug)]
pub enum KvRef<'a> {
    /// Only read; other sequences may read it too.
    Shared(&'a KvBlock),
    Own(&'a mut KvBlock),
    /// Not there: all its tokens are out of sight of the new ones.
    OutOfWindow,
}

/// The first key that a query at `position` sees, where it sees `window` keys at most, its own among them.
pub fn window_start(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

impl KvRef<'_> {
    /// The block, if it is there.
    pub fn get(&self) -> Option<&KvBlock> {
        match self {
            Self::Shared(block) => Some(block),
            Self::Own(block) => Some(block),
            Self::OutOfWindow => None,
        }
    }

    /// The block, if it may be written.
    pub fn get_mut(&mut self) -> Option<&mut KvBlock> {
        match self {
            Self::Shared(_) | Self::OutOfWindow => None,
            Self::Own(block) => Some(block),
        }
    }
}

/// A [`SequenceKv`] as the threads see it.
struct Place {
    start: usize,
    len: usize,
    blocks: Vec<BlockPtr>,
}

/// Where a block is. Threads write different tokens of it, if it is its sequence's own, then all read it.
#[derive(Clone, Copy)]
struct BlockPtr(*mut u8);

// SAFETY: the block is borrowed for as long as `PagedAttention::forward` runs: exclusively if it is collect_rows, and
// then no two threads write the same place, nor one while another reads.
unsafe impl Send for BlockPtr {}
// SAFETY: as above.
unsafe impl Sync for BlockPtr {}

/// Rows of a piece of work with many new tokens: query heads times tokens.
const TILE_ROWS: usize = 48;

/// New tokens up to which a sequence's keys, not its tokens, are shared out.
const FEW_TOKENS: usize = 4;

/// Keys whose weighted values are summed on their own. The sums of ranges, which begin at multiples of
/// this, are then added in order, so that a result depends neither on what else is computed at the
/// same time nor on who computes what.
const RANGE_KEYS: usize = 256;

/// Pieces of work that a thread should have, so that none waits long for another.
const PIECES_PER_THREAD: usize = 4;

/// Projection of queries and keys, by their number of multiplications, that are not worth sharing out.
const SMALL: usize = 1 << 15;

/// A piece of work: some queries of some heads against some keys.
struct Piece {
    sequence: usize,
    /// New tokens, from the sequence's first on.
    tokens: Range<usize>,
    kv_heads: Range<usize>,
    keys: Range<usize>,
    /// Where the sums of its first range of keys go, if these keys are not all; those of its other ranges
    /// follow.
    part: Option<usize>,
}

impl Piece {
    /// The ranges of its keys.
    fn ranges(&self) -> Range<usize> {
        self.keys.start / RANGE_KEYS..self.keys.end.div_ceil(RANGE_KEYS)
    }

    /// The first block of its keys, and the one after the last.
    fn first_block(&self) -> usize {
        self.keys.start / BLOCK_TOKENS
    }

    fn end_block(&self) -> usize {
        self.keys.end.div_ceil(BLOCK_TOKENS)
    }

    /// Where their sums go, if they are not all.
    fn parts(&self) -> Range<usize> {
        self.part.map_or(0..0, |first| first..first + self.ranges().len())
    }
}

/// Unfinished sums of a row: the largest score, the sum of weights; values stand elsewhere.
#[derive(Debug, Clone, Copy)]
struct Part {
    largest: f32,
    weight: f32,
}

impl Part {
    const NOTHING: Self = Self { largest: f32::NEG_INFINITY, weight: 0.0 };

    /// Adds another part, whose weighted values are `other_values`; whole vectors, as many as its own.
    #[inline(always)]
    unsafe fn add<S: Simd>(&mut self, simd: S, values: &mut [f32], other: Self, other_values: &[f32]) {
        if other.weight == 0.0 {
            return;
        }
        if self.weight == 0.0 {
            *self = other;
            values.copy_from_slice(other_values);
            return;
        }
        let largest = self.largest.max(other.largest);
        // SAFETY: the caller's promise.
        unsafe {
            let factor = |part: Self| exp(simd, simd.splat(part.largest - largest));
            let (own, others) = (factor(*self), factor(other));
            let weight =
                simd.mul_add(simd.splat(other.weight), others, simd.mul(simd.splat(self.weight), own));
            *self = Self { largest, weight: simd.reduce_max(weight) };
            let vectors = values.chunks_exact_mut(LANES).zip(other_values.chunks_exact(LANES));
            for (value, other) in vectors {
                let sum =
                    simd.mul_add(simd.load(other.as_ptr()), others, simd.mul(simd.load(value.as_ptr()), own));
                simd.store(sum, value.as_mut_ptr());
            }
        }
    }
}

thread_local! {
    /// Room for the values of parts: every layer needs it.
    static SPARE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

impl PagedAttention<'_> {
    fn padded_dim(&self) -> usize {
        self.layout.padded_dim()
    }

    /// Query heads that share a key head.
    fn group(&self) -> usize {
        self.n_heads / self.layout.n_kv_heads
    }

    fn window_start(&self, position: usize) -> usize {
        window_start(position, self.window)
    }

    /// PagedAttention of new tokens: `qkv` holds the queries, keys and values of each, `[n_tokens,
    /// (n_heads + 2 * n_kv_heads) * head_dim]`, those of the sequences one after the other. Writes
    /// keys and values into the blocks; the result is `[n_tokens, n_heads * head_dim]`.
    ///
    /// # Panics
    /// When a length does not fit the others, or a block is of another layout.
    pub fn forward(&self, isa: Isa, qkv: &[f32], sequences: &mut [SequenceKv]) -> Vec<f32> {
        let Self { n_heads, layout, .. } = *self;
        let KvLayout { n_kv_heads, head_dim, .. } = layout;
        let row_len = (n_heads + 2 * n_kv_heads) * head_dim;
        let n_tokens: usize = sequences.iter().map(|sequence| sequence.len).sum();
        assert_eq!(qkv.len(), n_tokens * row_len);
        assert!(self.layer < layout.n_layers && n_heads.is_multiple_of(n_kv_heads));
        let sequences: Vec<Place> = sequences.iter().map(|sequence| self.place(sequence)).collect();
        if let Some(RopeTable { cos, sin, n_pairs }) = self.rope {
            assert!(2 * n_pairs <= head_dim);
            assert!(cos.len() == n_tokens * n_pairs && sin.len() == n_tokens * n_pairs);
        }
        if let Some(HeadNorms { query, key, .. }) = self.head_norms {
            assert!(query.len() == head_dim && key.len() == head_dim);
        }

        let (pieces, n_parts) = self.pieces(&sequences);
        let mut y = vec![0.0; n_tokens * n_heads * head_dim];
        let few = sequences.iter().map(|sequence| sequence.len).filter(|&len| len <= FEW_TOKENS);
        let rows_of_part = few.max().unwrap_or_default() * n_heads;
        let mut parts = vec![Part::NOTHING; n_parts * rows_of_part];
        let mut part_values = SPARE.take();
        part_values.resize(part_values.len().max(n_parts * rows_of_part * self.padded_dim()), 0.0);
        let first_rows: Vec<usize> = sequences
            .iter()
            .scan(0, |next, sequence| {
                let first = *next;
                *next += sequence.len;
                Some(first)
            })
            .collect();
        let work = Work {
            attention: self,
            qkv,
            sequences: &sequences,
            first_rows: &first_rows,
            rows_of_part,
            y: DisjointSlice::new(&mut y),
            parts: DisjointSlice::new(&mut parts),
            part_values: DisjointSlice::new(&mut part_values),
        };
        let do_piece = |idx: usize| {
            let (piece, next) = (&pieces[idx], pieces.get(idx + 1));
            match layout.format {
                KvFormat::F32 => {
                    dispatch(isa, PieceKernel::<FloatRows<kv_block::F32>>::new(&work, piece, next))
                }
                KvFormat::F16 => {
                    dispatch(isa, PieceKernel::<FloatRows<kv_block::F16>>::new(&work, piece, next))
                }
                KvFormat::Int8 => dispatch(isa, PieceKernel::<WholeRows>::new(&work, piece, next)),
            }
        };
        // Keys and values that several pieces read.
        let shared: Vec<NewToken> = sequences
            .iter()
            .enumerate()
            .filter(|(_, sequence)| sequence.len > FEW_TOKENS)
            .flat_map(|(sequence, place)| (0..place.len).map(move |token| NewToken { sequence, token }))
            .collect();
        let store = |idx: usize| {
            let store = work.store(shared[idx], 0..layout.n_kv_heads);
            with_kv_element!(layout.format, N => dispatch(isa, StoreAs::<N>(store, PhantomData)));
        };
        if pieces.len() == 1 && shared.is_empty() {
            do_piece(0);
        } else {
            pool::run(|team| {
                if !shared.is_empty() {
                    let at_once = shared.len().div_ceil(8 * team.n_threads());
                    team.claim_chunks(shared.len(), at_once).flatten().for_each(store);
                    team.barrier();
                }
                team.claim_chunks(pieces.len(), 1).flatten().for_each(do_piece);
            });
        }
        if n_parts > 0 {
            let combine = Combine {
                attention: self,
                pieces: &pieces,
                first_rows: &first_rows,
                rows_of_part,
                parts: &parts,
                values: &part_values,
                y: &mut y,
            };
            dispatch(isa, combine);
        }
        SPARE.set(part_values);
        y
    }

    /// Checks a sequence's blocks, which what follows relies on.
    fn place(&self, sequence: &SequenceKv) -> Place {
        let SequenceKv { start, len, ref blocks } = *sequence;
        assert!(
            blocks.len() * BLOCK_TOKENS >= start + len,
            "{} blocks for {} tokens",
            blocks.len(),
            start + len
        );
        let written = start / BLOCK_TOKENS..(start + len).div_ceil(BLOCK_TOKENS);
        let is_own = |block: &KvRef| matches!(block, KvRef::Own(_));
        assert!(blocks[written].iter().all(is_own), "new tokens would be written to a shared block");
        let n_unseen = self.window_start(start) / BLOCK_TOKENS;
        assert!(
            blocks[n_unseen..].iter().all(|block| block.get().is_some()),
            "a block is not there whose tokens are seen"
        );
        // What is not there is never asked for.
        let pointer = |block: &KvRef| {
            BlockPtr(block.get().map_or(std::ptr::null_mut(), |block| block.start_for(&self.layout)))
        };
        Place { start, len, blocks: blocks.iter().map(pointer).collect() }
    }

    /// Shares out the work; gives the pieces, those that take longest first, and the number of parts.
    fn pieces(&self, sequences: &[Place]) -> (Vec<Piece>, usize) {
        let n_kv_heads = self.layout.n_kv_heads;
        let wanted = PIECES_PER_THREAD * pool::n_threads();
        let n_products: usize =
            sequences.iter().map(|sequence| sequence.len * (sequence.start + sequence.len)).sum();
        let is_small = sequences.len() == 1 && n_products * self.n_heads * self.layout.head_dim <= SMALL;
        let ranges_of = |sequence: &Place| {
            self.window_start(sequence.start) / RANGE_KEYS
                ..(sequence.start + sequence.len).div_ceil(RANGE_KEYS)
        };
        let n_ranges: usize = sequences.iter().map(|sequence| ranges_of(sequence).len()).sum();
        // The heads of a block lie side by side, so it is better to share out keys.
        let shares_keys = sequences.len() < wanted && !is_small;
        let shares_heads = n_ranges < wanted && !is_small;
        let heads_at_once = if shares_heads { 1 } else { n_kv_heads };
        let ranges_at_once = (n_ranges * n_kv_heads / heads_at_once).div_ceil(wanted);
        let mut pieces = Vec::new();
        let mut n_parts = 0;
        for (idx, sequence) in sequences.iter().enumerate() {
            let end = sequence.start + sequence.len;
            if sequence.len <= FEW_TOKENS {
                let first = self.window_start(sequence.start);
                let ranges = ranges_of(sequence);
                for head in (0..n_kv_heads).step_by(heads_at_once) {
                    let piece = |keys, part| Piece {
                        sequence: idx,
                        tokens: 0..sequence.len,
                        kv_heads: head..head + heads_at_once,
                        keys,
                        part,
                    };
                    if !shares_keys || ranges.len() == 1 {
                        pieces.push(piece(first..end, None));
                        continue;
                    }
                    for range in ranges.clone().step_by(ranges_at_once) {
                        let last = (range + ranges_at_once) * RANGE_KEYS;
                        let piece = piece(first.max(range * RANGE_KEYS)..end.min(last), Some(n_parts));
                        n_parts += piece.ranges().len();
                        pieces.push(piece);
                    }
                }
                continue;
            }
            let tile = (TILE_ROWS / self.group()).max(1);
            // Later tokens see more keys.
            for start in (0..sequence.len).step_by(tile).rev() {
                let tokens = start..sequence.len.min(start + tile);
                for head in 0..n_kv_heads {
                    let keys = self.window_start(sequence.start + tokens.start)..sequence.start + tokens.end;
                    let kv_heads = head..head + 1;
                    pieces.push(Piece { sequence: idx, tokens: tokens.clone(), kv_heads, keys, part: None });
                }
            }
        }
        (pieces, n_parts)
    }
}

/// Adds up the parts of sequences whose keys were shared out.
struct Combine<'a> {
    attention: &'a PagedAttention<'a>,
    pieces: &'a [Piece],
    first_rows: &'a [usize],
    rows_of_part: usize,
    parts: &'a [Part],
    values: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { attention, pieces, first_rows, rows_of_part, parts, values, y } = self;
        let (head_dim, padded, group) =
            (attention.layout.head_dim, attention.padded_dim(), attention.group());
        let same_rows = |a: &Piece, b: &Piece| a.sequence == b.sequence && a.kv_heads == b.kv_heads;
        let mut sum = vec![0.0; padded];
        for of_rows in pieces.chunk_by(same_rows).filter(|pieces| pieces[0].part.is_some()) {
            let Piece { sequence, ref tokens, ref kv_heads, .. } = of_rows[0];
            let rows_of_head = tokens.len() * group;
            for row in 0..rows_of_head * kv_heads.len() {
                let mut total = Part::NOTHING;
                for part in of_rows.iter().flat_map(Piece::parts) {
                    let idx = part * rows_of_part + row;
                    // SAFETY: the caller's promise.
                    unsafe {
                        total.add(simd, &mut sum, parts[idx], &values[idx * padded..(idx + 1) * padded])
                    };
                }
                let (kv_head, rest) = (kv_heads.start + row / rows_of_head, row % rows_of_head);
                let (token, head) = (rest / group, kv_head * group + rest % group);
                let start = ((first_rows[sequence] + token) * attention.n_heads + head) * head_dim;
                for (y, value) in y[start..start + head_dim].iter_mut().zip(&sum) {
                    *y = value / total.weight;
                }
            }
        }
    }
}

/// A new token of a sequence.
#[derive(Clone, Copy)]
struct NewToken {
    sequence: usize,
    token: usize,
}

/// A new token's keys and values on their way into its block.
struct Store<'a> {
    attention: &'a PagedAttention<'a>,
    /// Row of the batch.
    row: usize,
    /// Its queries, keys and values.
    qkv: &'a [f32],
    kv_heads: Range<usize>,
    block: BlockPtr,
    slot: usize,
}

struct StoreAs<'a, N>(Store<'a>, PhantomData<N>);

impl<N: KvElement> Kernel for StoreAs<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: the caller's promise.
        unsafe {
            self.0.fetch::<S, N>(simd);
            self.0.write::<S, N>(simd);
        }
    }
}

/// # Safety
/// Of all unsafe functions: as [`Simd`], the block is of the attention's layout, and nobody else writes to this
/// slot of these heads or reads it meanwhile.
impl Store<'_> {
    /// Where the keys of a head are.
    fn keys(&self, head: usize) -> *mut u8 {
        self.block.0.wrapping_add(self.attention.layout.keys_offset(self.attention.layer, head))
    }

    /// Fetches the lines that are written: a key is written to as many as its block has.
    #[inline(always)]
    fn fetch<S: Simd, N: KvElement>(&self, simd: S) {
        let layout = &self.attention.layout;
        let padded = layout.padded_dim();
        for head in self.kv_heads.clone() {
            let keys = self.keys(head);
            let values = keys.wrapping_add(layout.values_offset() + N::value_offset(padded, self.slot, 0));
            fetch(simd, keys, layout.values_offset());
            fetch(simd, values, padded * N::BYTES);
        }
    }

    /// Norms and rotates the keys, writes keys and values.
    #[inline(always)]
    unsafe fn write<S: Simd, N: KvElement>(&self, simd: S) {
        let Self { attention, row, qkv, slot, .. } = *self;
        let KvLayout { n_kv_heads, head_dim, .. } = attention.layout;
        let padded = attention.padded_dim();
        let (key, value) = qkv[attention.n_heads * head_dim..].split_at(n_kv_heads * head_dim);
        let norm = attention.head_norms.map(|norms| (norms.key, norms.eps));
        let mut whole = vec![0.0; padded];
        for head in self.kv_heads.clone() {
            let of_head = head * head_dim..(head + 1) * head_dim;
            let keys = self.keys(head);
            whole[..head_dim].copy_from_slice(&key[of_head.clone()]);
            // SAFETY: the caller's promise: the block has these places, and this slot is this token's.
            unsafe {
                turn(attention, row, &mut whole[..head_dim], norm, 1.0);
                let scales = keys.add(attention.layout.scales_offset()).cast::<f32>();
                let inverse = simd.splat(scaled::<S, N>(simd, &whole, scales.add(slot)));
                for start in (0..head_dim).step_by(LANES) {
                    let mut numbers = [0u8; LANES * 4];
                    N::store(
                        simd,
                        simd.mul(simd.load(whole.as_ptr().add(start)), inverse),
                        numbers.as_mut_ptr(),
                    );
                    for i in 0..LANES.min(head_dim - start) {
                        let to = keys.add(N::key_offset(slot, start + i));
                        to.copy_from_nonoverlapping(numbers.as_ptr().add(i * N::BYTES), N::BYTES);
                    }
                }
                whole[..head_dim].copy_from_slice(&value[of_head]);
                let inverse = simd.splat(scaled::<S, N>(simd, &whole, scales.add(BLOCK_TOKENS + slot)));
                let values = keys.add(attention.layout.values_offset());
                for start in (0..padded).step_by(LANES) {
                    let x = simd.mul(simd.load(whole.as_ptr().add(start)), inverse);
                    if N::IS_WHOLE {
                        let mut numbers = [0u8; LANES];
                        N::store(simd, x, numbers.as_mut_ptr());
                        for (i, number) in numbers.into_iter().enumerate() {
                            *values.add(N::value_offset(padded, slot, start + i)) = number;
                        }
                    } else {
                        N::store(simd, x, values.add(N::value_offset(padded, slot, start)));
                    }
                }
            }
        }
    }
}

/// Writes the scale of a row, where rows have one; gives what its numbers are to be multiplied with.
#[inline(always)]
unsafe fn scaled<S: Simd, N: KvElement>(simd: S, row: &[f32], scale: *mut f32) -> f32 {
    if !N::IS_WHOLE {
        return 1.0;
    }
    // SAFETY: the caller's promise: rows are whole vectors, and there is room for a scale.
    let largest = unsafe {
        let mut largest = simd.splat(0.0);
        for x in row.chunks_exact(LANES) {
            largest = simd.max_magnitude(largest, simd.load(x.as_ptr()));
        }
        let largest = simd.reduce_max_magnitude(largest);
        scale.write(largest / kv_block::Int8::LARGEST);
        largest
    };
    if largest > 0.0 { kv_block::Int8::LARGEST / largest } else { 0.0 }
}

/// Norms, rotates and scales a head in place.
#[inline(always)]
fn turn(attention: &PagedAttention, row: usize, head: &mut [f32], norm: Option<(&[f32], f32)>, scale: f32) {
    if let Some((weight, eps)) = norm {
        let squares: f32 = head.iter().map(|x| x * x).sum();
        let factor = 1.0 / (squares / head.len() as f32 + eps).sqrt();
        for (x, weight) in head.iter_mut().zip(weight) {
            *x *= factor * weight;
        }
    }
    if let Some(rotation) = &attention.rope {
        rotate(rotation, row, head);
    }
    if scale != 1.0 {
        for x in head {
            *x *= scale;
        }
    }
}

/// Rotates a head of a row of the batch in place.
#[inline(always)]
fn rotate(rotation: &RopeTable, row: usize, head: &mut [f32]) {
    let RopeTable { cos, sin, n_pairs } = *rotation;
    let of_row = row * n_pairs..(row + 1) * n_pairs;
    let (first, second) = head[..2 * n_pairs].split_at_mut(n_pairs);
    let pairs = first.iter_mut().zip(second);
    for ((a, b), (cos, sin)) in pairs.zip(cos[of_row.clone()].iter().zip(&sin[of_row])) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// What all pieces share.
struct Work<'a> {
    attention: &'a PagedAttention<'a>,
    /// Queries, keys and values of each new token.
    qkv: &'a [f32],
    sequences: &'a [Place],
    /// The row of each sequence's first new token.
    first_rows: &'a [usize],
    /// Rows that a part has room for.
    rows_of_part: usize,
    y: DisjointSlice<'a, f32>,
    parts: DisjointSlice<'a, Part>,
    part_values: DisjointSlice<'a, f32>,
}

impl Work<'_> {
    /// Queries, keys and values of a row of the batch.
    fn qkv_of(&self, row: usize) -> &[f32] {
        let KvLayout { n_kv_heads, head_dim, .. } = self.attention.layout;
        let row_len = (self.attention.n_heads + 2 * n_kv_heads) * head_dim;
        &self.qkv[row * row_len..(row + 1) * row_len]
    }

    fn store(&self, NewToken { sequence, token }: NewToken, kv_heads: Range<usize>) -> Store<'_> {
        let row = self.first_rows[sequence] + token;
        let position = self.sequences[sequence].start + token;
        let block = self.sequences[sequence].blocks[position / BLOCK_TOKENS];
        let slot = position % BLOCK_TOKENS;
        Store { attention: self.attention, row, qkv: self.qkv_of(row), kv_heads, block, slot }
    }
}

struct PieceKernel<'a, R> {
    work: &'a Work<'a>,
    piece: &'a Piece,
    /// The piece that its thread is likely to do next.
    next: Option<&'a Piece>,
    rows: PhantomData<R>,
}

/// The rows of a piece, as keys and values of some format meet them.
///
/// # Safety
/// Of all unsafe functions: as [`Simd`], the step's blocks are there with all their numbers, and slices
/// have room for its rows.
trait Rows {
    /// What keys and values are.
    type Number: KvElement;

    /// `queries` are `[n_rows, padded_dim]`; those of `n_rows_of_head` rows meet the same key head.
    unsafe fn new<S: Simd>(simd: S, layout: &KvLayout, queries: Vec<f32>, n_rows_of_head: usize) -> Self;

    /// The scores of a step's keys for its rows, `[n_blocks, n_rows, BLOCK_TOKENS]`.
    unsafe fn scores<S: Simd>(&mut self, simd: S, step: &Step, scores: &mut [f32]);

    /// Adds to each row's `values`, `[n_rows, padded_dim]`, those of a step's keys times their `weights`, which
    /// stand where the scores stood and may change.
    unsafe fn add_values<S: Simd>(&mut self, simd: S, step: &Step, weights: &mut [f32], values: &mut [f32]);
}

/// A few blocks of one key head, and the rows that meet them.
struct Step<'a> {
    layout: &'a KvLayout,
    /// The keys of each block.
    blocks: [*const u8; STEP_BLOCKS],
    /// Those to fetch from memory meanwhile.
    ahead: [Option<*const u8>; STEP_BLOCKS],
    n_blocks: usize,
    /// Keys of all blocks; only the last may have fewer than there is room for.
    n_keys: usize,
    rows: Range<usize>,
}

impl Step<'_> {
    /// Numbers from the scores of a block to those of the next.
    fn stride(&self) -> usize {
        self.rows.len() * LANES
    }
}

/// Sixteen times a number between sixteen times a smaller one: read from some place on, the smaller one
/// is in the first or the last lanes.
struct Outside([f32; 3 * LANES]);

impl Outside {
    const fn new(inner: f32, outer: f32) -> Self {
        let mut numbers = [outer; 3 * LANES];
        let mut i = LANES;
        while i < 2 * LANES {
            numbers[i] = inner;
            i += 1;
        }
        Self(numbers)
    }
}

/// Added to scores.
static HIDING: Outside = Outside::new(0.0, f32::NEG_INFINITY);

/// Multiplied with weights.
static ABSENT: Outside = Outside::new(1.0, 0.0);

/// Blocks whose keys are weighed at once: what the weights of a row wait for is long and is then waited
/// for once. Steps begin at multiples of this, for the same reason as ranges.
const STEP_BLOCKS: usize = 4;

/// A bound of the scores and its inverse, which takes long to compute.
#[derive(Clone, Copy)]
struct Softcap {
    cap: f32,
    inverse: f32,
}

impl<R: Rows> Kernel for PieceKernel<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { work, piece, .. } = self;
        let attention = work.attention;
        let layout = attention.layout;
        let (group, padded, head_dim) = (attention.group(), attention.padded_dim(), layout.head_dim);
        let sequence = &work.sequences[piece.sequence];
        let rows_of_head = piece.tokens.len() * group;
        let n_heads = piece.kv_heads.len();
        let n_rows = rows_of_head * n_heads;
        let first_row = work.first_rows[piece.sequence] + piece.tokens.start;

        // Rows: key heads, then tokens, then the query heads of the key head.
        let place = |row: usize| {
            let (kv_head, rest) = (piece.kv_heads.start + row / rows_of_head, row % rows_of_head);
            (first_row + rest / group, kv_head * group + rest % group)
        };
        // Nobody else reads the keys and values of few new tokens. The lines that they are written to come while
        // the queries are turned.
        let new = if sequence.len <= FEW_TOKENS { piece.tokens.clone() } else { 0..0 };
        let new = new.filter(|token| piece.keys.contains(&(sequence.start + token)));
        let stores =
            new.map(|token| work.store(NewToken { sequence: piece.sequence, token }, piece.kv_heads.clone()));
        for store in stores.clone() {
            store.fetch::<S, R::Number>(simd);
        }
        let mut queries = vec![0.0f32; n_rows * padded];
        let norm = attention.head_norms.map(|norms| (norms.query, norms.eps));
        for (row, to) in queries.chunks_exact_mut(padded).enumerate() {
            let (row, head) = place(row);
            let to = &mut to[..head_dim];
            to.copy_from_slice(&work.qkv_of(row)[head * head_dim..(head + 1) * head_dim]);
            turn(attention, row, to, norm, attention.scale);
        }
        for store in stores {
            // SAFETY: the caller's promise; nobody else writes these tokens' places of these heads, or reads them.
            unsafe { store.write::<S, R::Number>(simd) };
        }
        let mut totals = vec![Part::NOTHING; n_rows];
        let mut total_values = vec![0.0f32; n_rows * padded];
        let mut values = vec![0.0f32; n_rows * padded];
        let mut largest = vec![f32::NEG_INFINITY; n_rows];
        let mut weights = vec![0.0f32; n_rows * LANES];
        // Of each block of a step those of all rows.
        let step_stride = rows_of_head * LANES;
        let mut scores = vec![0.0f32; STEP_BLOCKS * step_stride];

        let softcap = attention.softcap.map(|cap| Softcap { cap, inverse: 1.0 / cap });
        // SAFETY: the caller's promise.
        let mut of_format = unsafe { R::new(simd, &layout, queries, rows_of_head) };
        // SAFETY: a sequence has blocks for all keys that are seen.
        let keys_of = |piece: &Piece, kv_head: usize, block: usize| unsafe {
            let block = work.sequences[piece.sequence].blocks[block];
            block.0.add(layout.keys_offset(attention.layer, kv_head)).cast_const()
        };
        let end_block = piece.end_block();
        let mut block = piece.first_block();
        while block < end_block {
            let n_blocks = (end_block - block).min(STEP_BLOCKS - block % STEP_BLOCKS);
            for head in 0..n_heads {
                let kv_head = piece.kv_heads.start + head;
                // What comes next: the next head, the first one further on, or the next piece's first.
                let ahead = if head + 1 < n_heads {
                    Some((piece, kv_head + 1, block))
                } else if block + n_blocks < end_block {
                    Some((piece, piece.kv_heads.start, block + n_blocks))
                } else {
                    self.next.map(|next| (next, next.kv_heads.start, next.first_block()))
                };
                let ahead_of = |n| {
                    let (piece, kv_head, first) = ahead?;
                    (first + n < piece.end_block()).then(|| keys_of(piece, kv_head, first + n))
                };
                let step = Step {
                    layout: &layout,
                    blocks: std::array::from_fn(|n| keys_of(piece, kv_head, block + n.min(n_blocks - 1))),
                    ahead: std::array::from_fn(ahead_of),
                    n_blocks,
                    n_keys: (n_blocks * BLOCK_TOKENS).min(piece.keys.end - block * BLOCK_TOKENS),
                    rows: head * rows_of_head..(head + 1) * rows_of_head,
                };
                // SAFETY: the caller's promise; all buffers have room for the rows.
                unsafe {
                    of_format.scores(simd, &step, &mut scores);
                    for row in 0..rows_of_head {
                        let position = sequence.start + piece.tokens.start + row / group;
                        let seen: [Range<usize>; STEP_BLOCKS] =
                            std::array::from_fn(|n| self.seen(position, block + n));
                        let scores = &mut scores[row * LANES..];
                        let row = step.rows.start + row;
                        weigh(
                            simd,
                            softcap,
                            &seen[..n_blocks],
                            scores,
                            step_stride,
                            &mut largest[row],
                            &mut weights[row * LANES..(row + 1) * LANES],
                            &mut values[row * padded..(row + 1) * padded],
                        );
                    }
                    let values = &mut values[step.rows.start * padded..step.rows.end * padded];
                    of_format.add_values(simd, &step, &mut scores, values);
                }
            }
            block += n_blocks;
            if block.is_multiple_of(RANGE_KEYS / BLOCK_TOKENS) || block == end_block {
                for row in 0..n_rows {
                    let of_row = row * padded..(row + 1) * padded;
                    let of_weights = &mut weights[row * LANES..(row + 1) * LANES];
                    // SAFETY: the buffer has a vector for each row.
                    let weight = unsafe { simd.reduce_add(simd.load(of_weights.as_ptr())) };
                    let part = Part { largest: largest[row], weight };
                    let of_range = &values[of_row.clone()];
                    match piece.part {
                        // SAFETY: the values are whole vectors.
                        None => unsafe {
                            totals[row].add(simd, &mut total_values[of_row.clone()], part, of_range);
                        },
                        Some(first) => {
                            let range = (block - 1) * BLOCK_TOKENS / RANGE_KEYS;
                            let idx = first + range - piece.ranges().start;
                            let idx = idx * work.rows_of_part + row;
                            // SAFETY: the parts are this piece's.
                            unsafe {
                                work.parts.slice(idx, 1)[0] = part;
                                work.part_values.slice(idx * padded, padded).copy_from_slice(of_range);
                            }
                        }
                    }
                    of_weights.fill(0.0);
                    values[of_row].fill(0.0);
                    largest[row] = f32::NEG_INFINITY;
                }
            }
        }

        if piece.part.is_none() {
            for (row, (total, values)) in totals.iter().zip(total_values.chunks_exact(padded)).enumerate() {
                let (row, head) = place(row);
                // SAFETY: this row and head are this piece's.
                let y = unsafe { work.y.slice((row * attention.n_heads + head) * head_dim, head_dim) };
                for (y, value) in y.iter_mut().zip(values) {
                    *y = value / total.weight;
                }
            }
        }
    }
}

impl<'a, R> PieceKernel<'a, R> {
    fn new(work: &'a Work<'a>, piece: &'a Piece, next: Option<&'a Piece>) -> Self {
        Self { work, piece, next, rows: PhantomData }
    }

    /// Which lanes of a block a query at `position` sees.
    fn seen(&self, position: usize, block: usize) -> Range<usize> {
        let start = block * BLOCK_TOKENS;
        let first = self.work.attention.window_start(position);
        let end = (position + 1).saturating_sub(start).min(BLOCK_TOKENS);
        first.saturating_sub(start).min(end)..end
    }
}

/// Turns a row's scores of some blocks, which are `stride` apart, into weights, in place, and brings its
/// sums so far to the same scale. Weights of what is not seen are zero.
#[inline(always)]
unsafe fn weigh<S: Simd>(
    simd: S,
    softcap: Option<Softcap>,
    seen: &[Range<usize>],
    scores: &mut [f32],
    stride: usize,
    largest: &mut f32,
    weights: &mut [f32],
    values: &mut [f32],
) {
    // SAFETY: the caller's promise: scores and weights are a vector each, values several.
    unsafe {
        let mut x = [simd.splat(f32::NEG_INFINITY); STEP_BLOCKS];
        let mut new = simd.splat(f32::NEG_INFINITY);
        for (n, seen) in seen.iter().enumerate() {
            x[n] = simd.load(scores[n * stride..].as_ptr());
            if let Some(Softcap { cap, inverse }) = softcap {
                x[n] = simd.mul(tanh(simd, simd.mul(x[n], simd.splat(inverse))), simd.splat(cap));
            }
            if *seen != (0..LANES) {
                x[n] = simd.add(x[n], outside(simd, &HIDING, seen));
            }
            new = simd.max(new, x[n]);
        }
        let new = simd.reduce_max(new);
        if new > *largest {
            let factor = if *largest == f32::NEG_INFINITY {
                simd.splat(0.0)
            } else {
                exp(simd, simd.splat(*largest - new))
            };
            simd.store(simd.mul(simd.load(weights.as_ptr()), factor), weights.as_mut_ptr());
            for values in values.chunks_exact_mut(LANES) {
                simd.store(simd.mul(simd.load(values.as_ptr()), factor), values.as_mut_ptr());
            }
            *largest = new;
        }
        let mut sum = simd.load(weights.as_ptr());
        for (n, seen) in seen.iter().enumerate() {
            let mut weight = exp(simd, simd.sub(x[n], simd.splat(*largest)));
            if *seen != (0..LANES) {
                // Where nothing has been seen yet, the weight is not a number.
                let least = outside(simd, &ABSENT, seen);
                weight = if seen.is_empty() { least } else { simd.mul(weight, least) };
            }
            simd.store(weight, scores[n * stride..].as_mut_ptr());
            sum = simd.add(sum, weight);
        }
        simd.store(sum, weights.as_mut_ptr());
    }
}

/// A table's middle number in the lanes of `seen`, its outer one in the others.
#[inline(always)]
unsafe fn outside<S: Simd>(simd: S, table: &Outside, seen: &Range<usize>) -> S::Floats {
    // SAFETY: the caller's promise; the table has a vector on both sides of any lane.
    unsafe {
        let before = simd.load(table.0.as_ptr().add(LANES - seen.start));
        let behind = simd.load(table.0.as_ptr().add(2 * LANES - seen.end));
        // One of them is the middle number where the other is the outer one.
        simd.min(before, behind)
    }
}

/// Rows that meet keys or values at once: their sums stay in registers.
const fn rows_at_once<S: Simd>() -> usize {
    if S::GEMV_TILE_ROWS >= 8 { 4 } else { 1 }
}

/// Fetches bytes from memory: a few at a time, in between, since many at once keep other loads waiting.
#[inline(always)]
fn fetch<S: Simd>(simd: S, from: *const u8, n_bytes: usize) {
    for line in (0..n_bytes).step_by(64) {
        simd.prefetch_l2(from.wrapping_add(line));
    }
}
