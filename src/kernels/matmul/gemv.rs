#![allow(unsafe_op_in_unsafe_fn)]
//! GEMV: products of a few rows of activations with matrices, whose weights are multiplied as they are
//! read.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::isa::Isa;
use super::super::layout::{ActivationGroup, GROUP_LEN, MAX_TILE_ROWS, PANEL_ROWS};
use super::super::norm::Norm;
use super::super::simd::{Kernel, LANES, QUAD_BYTES, Simd, dispatch};
use super::super::threads::pool::{self, Team};
use super::super::weights::{
    Bf16, F16, F32, PackedMatrix, Packing, Quantized, WeightFormat, fetch, with_format, with_quantized_format,
};
use super::epilogue::{Epilogue, OutputRows, StoreEpilogue};
use super::quantize::GemvActivations;
use super::{PIECES_PER_THREAD, Projection};

/// Bytes of activations that one pass over the matrices uses, so that they stay in the second-level
/// cache.
const BLOCK_BYTES: usize = 128 << 10;

/// Vectors of products that are made before any of them are finished.
const PRODUCTS_AT_ONCE: usize = 64;

/// How weights are multiplied as they are read.
pub trait GemvFormat: Packing {
    /// What stands for the activations of a block: [`ActivationGroup`]s or float32.
    type Activation;
    /// How many of them.
    const N_ACTIVATIONS: usize;

    /// The activations that it multiplies with.
    fn of(x: &GemvActivations) -> &[Self::Activation];

    /// Adds the products of a block's sixteen rows with each of `M` rows of activations. Where it `fetches`,
    /// it fetches what follows meanwhile.
    ///
    /// # Safety
    /// As [`Simd`]; `packed` points to a block, each of `x` to the activations of its inner elements, which
    /// are `stride` apart.
    unsafe fn accumulate<S: Simd, const M: usize>(
        simd: S,
        packed: *const u8,
        x: [*const Self::Activation; M],
        stride: usize,
        sums: &mut [S::Floats; M],
        fetches: bool,
    );
}

impl<Q: Quantized> GemvFormat for Q {
    type Activation = ActivationGroup;
    const N_ACTIVATIONS: usize = Q::BLOCK_LEN / GROUP_LEN;

    fn of(x: &GemvActivations) -> &[ActivationGroup] {
        x.groups()
    }

    #[inline(always)]
    unsafe fn accumulate<S: Simd, const M: usize>(
        simd: S,
        packed: *const u8,
        mut x: [*const ActivationGroup; M],
        stride: usize,
        sums: &mut [S::Floats; M],
        fetches: bool,
    ) {
        for group in 0..Self::N_ACTIVATIONS {
            if fetches {
                fetch::<S, Q>(simd, packed, group, Self::N_ACTIVATIONS);
            }
            for idx in 0..Q::SCALES_PER_GROUP {
                let is_whole = Q::SCALES_PER_GROUP == 1;
                let mut products = [simd.splat_sums(0); M];
                if Q::ZERO != 0 {
                    for m in 0..M {
                        let sum = if is_whole { (*x[m]).sum } else { (*x[m]).half_sums[idx] };
                        products[m] = simd.splat_sums(-Q::ZERO * sum);
                    }
                }
                let pairs = if is_whole { 0..4 } else { 2 * idx..2 * idx + 2 };
                for first in pairs.clone().step_by(S::PAIRS_AT_ONCE) {
                    let mut codes = [Q::codes(simd, packed, group, first / 2, first % 2); 4];
                    for pair in first + 1..pairs.end.min(first + S::PAIRS_AT_ONCE) {
                        codes[pair - first] = Q::codes(simd, packed, group, pair / 2, pair % 2);
                    }
                    for quad in 2 * first..2 * pairs.end.min(first + S::PAIRS_AT_ONCE) {
                        let codes = codes[quad / 2 - first][quad % 2];
                        for m in 0..M {
                            let quads = x[m].cast::<u8>().add(quad * QUAD_BYTES);
                            products[m] = simd.dot_codes(products[m], codes, quads);
                        }
                    }
                }
                let scale = Q::scale(simd, packed, group, idx);
                for m in 0..M {
                    let product = simd.mul(simd.sums_to_floats(products[m]), simd.splat((*x[m]).scale));
                    sums[m] = simd.mul_add(product, scale, sums[m]);
                }
                if Q::HAS_MINS {
                    let min = Q::min(simd, packed, group, idx);
                    for m in 0..M {
                        let sum = if is_whole { (*x[m]).scaled_sum } else { (*x[m]).scaled_half_sums[idx] };
                        sums[m] = simd.mul_add(min, simd.splat(sum), sums[m]);
                    }
                }
            }
            for x in &mut x {
                *x = x.wrapping_add(stride);
            }
        }
    }
}

/// A block of one float for each row.
macro_rules! float_gemv {
    ($name:ident, $load:ident) => {
        impl GemvFormat for $name {
            type Activation = f32;
            const N_ACTIVATIONS: usize = 1;

            fn of(x: &GemvActivations) -> &[f32] {
                x.floats()
            }

            #[inline(always)]
            unsafe fn accumulate<S: Simd, const M: usize>(
                simd: S,
                packed: *const u8,
                x: [*const f32; M],
                _: usize,
                sums: &mut [S::Floats; M],
                fetches: bool,
            ) {
                if fetches {
                    fetch::<S, Self>(simd, packed, 0, 1);
                }
                let weights = simd.$load(packed.cast());
                for m in 0..M {
                    sums[m] = simd.mul_add(weights, simd.splat(*x[m]), sums[m]);
                }
            }
        }
    };
}

float_gemv!(F32, load);
float_gemv!(F16, load_f16);
float_gemv!(Bf16, load_bf16);

/// The products of the rows of some panels with rows of activations, the first of which begins a tile: for
/// each panel and each row of activations those with the sixteen rows of the panel. The first to use a
/// panel also fetches what follows it.
///
/// # Safety
/// As [`Simd`].
///
/// # Panics
/// When panels, rows or room for the products are not there, or the activations are of another length or
/// kind.
#[inline(always)]
unsafe fn panel_products<'p, S: Simd>(
    simd: S,
    matrix: &PackedMatrix,
    panels: Range<usize>,
    x: &GemvActivations,
    rows: Range<usize>,
    products: &'p mut [MaybeUninit<[f32; LANES]>],
    fetches: bool,
) -> &'p [[f32; LANES]] {
    assert!(panels.end <= matrix.n_panels() && rows.end <= x.n_rows() && x.n_in() == matrix.n_in());
    let products = &mut products[..panels.len() * rows.len()];
    let n_blocks = matrix.n_in() / matrix.format().block_len();
    let packed = matrix.panel_start(panels.start);
    with_format!(matrix.format(), F => {
        let (all, stride) = (F::of(x), x.tile_rows());
        let per_row = n_blocks * F::N_ACTIVATIONS;
        assert!(rows.start.is_multiple_of(stride));
        assert!(all.len() >= rows.end.next_multiple_of(stride) * per_row);
        let x = all[rows.start * per_row..].as_ptr();
        // SAFETY: the caller's promise; the panels are there with all their blocks, and so are the rows of
        // activations, as asserted.
        unsafe { tiles::<S, F>(simd, packed, n_blocks, x, stride, rows.len(), products, fetches) }
    });
    // SAFETY: every row of every panel has been written.
    unsafe { products.assume_init_ref() }
}

/// Projection of panels of `n_blocks`, one behind the other, with `n_rows` rows in tiles of `stride`: the
/// activations of a row are as far apart, those of the next row beside them. There is room for as many panels
/// as there are.
///
/// # Safety
/// As [`Simd`], and all that is there.
#[inline(always)]
unsafe fn tiles<S: Simd, F: GemvFormat>(
    simd: S,
    packed: *const u8,
    n_blocks: usize,
    x: *const F::Activation,
    stride: usize,
    n_rows: usize,
    products: &mut [MaybeUninit<[f32; LANES]>],
    fetches: bool,
) {
    for (idx, products) in products.chunks_exact_mut(n_rows).enumerate() {
        for (of_tile, products) in products.chunks_mut(stride).enumerate() {
            let mut row = 0;
            // SAFETY: the caller's promise holds for each of the tiles, which lie within the rows.
            unsafe {
                let panel = packed.add(idx * n_blocks * F::PACKED_BYTES);
                let x = x.add(of_tile * stride * n_blocks * F::N_ACTIVATIONS);
                while row < products.len() {
                    let fetches = fetches && of_tile == 0 && row == 0;
                    let m = (products.len() - row).min(S::GEMV_TILE_ROWS);
                    let (x, products) = (x.add(row), &mut products[row..]);
                    match m {
                        1 => tile::<S, F, 1>(simd, panel, n_blocks, x, stride, products, fetches),
                        2 => tile::<S, F, 2>(simd, panel, n_blocks, x, stride, products, fetches),
                        3 => tile::<S, F, 3>(simd, panel, n_blocks, x, stride, products, fetches),
                        4 => tile::<S, F, 4>(simd, panel, n_blocks, x, stride, products, fetches),
                        5 => tile::<S, F, 5>(simd, panel, n_blocks, x, stride, products, fetches),
                        6 => tile::<S, F, 6>(simd, panel, n_blocks, x, stride, products, fetches),
                        7 => tile::<S, F, 7>(simd, panel, n_blocks, x, stride, products, fetches),
                        _ => tile::<S, F, 8>(simd, panel, n_blocks, x, stride, products, fetches),
                    }
                    row += m;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, F: GemvFormat, const M: usize>(
    simd: S,
    panel: *const u8,
    n_blocks: usize,
    x: *const F::Activation,
    stride: usize,
    products: &mut [MaybeUninit<[f32; LANES]>],
    fetches: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [simd.splat(0.0); M];
        for block in 0..n_blocks {
            let packed = panel.add(block * F::PACKED_BYTES);
            let mut activations = [x; M];
            for (m, activations) in activations.iter_mut().enumerate() {
                *activations = x.add(m + block * F::N_ACTIVATIONS * stride);
            }
            F::accumulate::<S, M>(simd, packed, activations, stride, &mut sums, fetches);
        }
        for (sums, products) in sums.into_iter().zip(products) {
            simd.store(sums, products.as_mut_ptr().cast());
        }
    }
}

/// Multiplies the weights as they are read.
pub fn gemv(
    isa: Isa,
    x: &[f32],
    n_in: usize,
    norm: Option<&Norm>,
    products: &Projection,
    result: &OutputRows,
) {
    let n_rows = x.len() / n_in;
    if n_rows <= MAX_TILE_ROWS {
        return pool::run(|team| one_tile(team, isa, x, n_in, norm, products, result));
    }
    let mut activations = activations_for(products, n_rows, n_in);
    {
        let filling = activations.shared();
        let n_tiles = n_rows.div_ceil(MAX_TILE_ROWS);
        // SAFETY: each tile is filled once.
        let fill = |tile| unsafe { filling.fill(isa, tile, x, norm) };
        pool::run(|team| team.claim_chunks(n_tiles, 1).flatten().for_each(fill));
    }
    pool::run(|team| gemv_stage(team, isa, products, &activations, result));
    activations.recycle();
}

/// A stage in which the threads share the products with up to [`MAX_TILE_ROWS`] rows of `x`. Each prepares the
/// rows for itself: they come from all threads, and would have to go to all threads again.
pub fn one_tile(
    team: &Team,
    isa: Isa,
    x: &[f32],
    n_in: usize,
    norm: Option<&Norm>,
    products: &Projection,
    result: &OutputRows,
) {
    let mut activations = activations_for(products, x.len() / n_in, n_in);
    // SAFETY: nobody else has these.
    unsafe { activations.shared().fill(isa, 0, x, norm) };
    gemv_stage(team, isa, products, &activations, result);
    activations.recycle();
}

/// Room for rows in the forms that `products` take.
fn activations_for(products: &Projection, n_rows: usize, n_in: usize) -> GemvActivations {
    let wants = |quantized: bool| {
        products.matrices().any(|weighted| weighted.matrix.format().is_quantized() == quantized)
    };
    GemvActivations::acquire(n_rows, n_in, wants(false), wants(true))
}

/// Shares out the products with all rows.
fn gemv_stage(
    team: &Team,
    isa: Isa,
    products: &Projection,
    activations: &GemvActivations,
    result: &OutputRows,
) {
    let (n_rows, n_panels) = (activations.n_rows(), products.n_groups(1));
    let block_rows = (BLOCK_BYTES / (3 * activations.n_in())).next_multiple_of(MAX_TILE_ROWS).min(n_rows);
    let n_blocks = n_rows.div_ceil(block_rows.max(1));
    let at_once = n_panels.div_ceil(PIECES_PER_THREAD * team.n_threads());
    for pieces in team.claim_chunks(n_blocks * n_panels, at_once) {
        let kernel = GemvKernel { products, activations, result, block_rows, n_panels, pieces };
        dispatch(isa, kernel);
    }
}

/// Groups of panels with blocks of rows.
struct GemvKernel<'a> {
    products: &'a Projection<'a>,
    activations: &'a GemvActivations,
    result: &'a OutputRows<'a>,
    block_rows: usize,
    n_panels: usize,
    /// Which, block by block.
    pieces: Range<usize>,
}

impl Kernel for GemvKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { products, activations, result, block_rows, n_panels, mut pieces } = self;
        let rows_at_once = block_rows.min(PRODUCTS_AT_ONCE);
        let mut room = [const { [const { MaybeUninit::uninit() }; PRODUCTS_AT_ONCE] }; 2];
        while !pieces.is_empty() {
            let (block, panel) = (pieces.start / n_panels, pieces.start % n_panels);
            let (column, first, second) = products.group(panel, 1);
            let n_left = first.weighted.matrix.n_panels() - first.panel;
            let n_together = n_left.min(pieces.len()).min(PRODUCTS_AT_ONCE / rows_at_once);
            pieces.start += n_together;
            let end = activations.n_rows().min((block + 1) * block_rows);
            for start in (block * block_rows..end).step_by(rows_at_once) {
                let rows = start..end.min(start + rows_at_once);
                // Whoever comes after finds the panels in the cache.
                let fetches = start == block * block_rows;
                let mut tiles = [&[][..]; 2];
                let panels = [Some(first), second].into_iter().flatten();
                for ((panel, room), tiles) in panels.zip(&mut room).zip(&mut tiles) {
                    let (matrix, panels) = (panel.weighted.matrix, panel.panel..panel.panel + n_together);
                    // SAFETY: the caller's promise.
                    *tiles = unsafe {
                        panel_products(simd, matrix, panels, activations, rows.clone(), room, fetches)
                    };
                }
                for idx in 0..n_together {
                    let column = column + idx * PANEL_ROWS;
                    let (first, second) = (first.after(idx), second.map(|second| second.after(idx)));
                    let finish = StoreEpilogue { products, result, column, first, second };
                    let of_panel = idx * rows.len()..(idx + 1) * rows.len();
                    let tile = &tiles[0][of_panel.clone()];
                    let other = if second.is_some() { &tiles[1][of_panel] } else { tile };
                    // SAFETY: as above.
                    unsafe { finish.take(simd, rows.clone(), [tile, other]) };
                }
            }
        }
    }
}
