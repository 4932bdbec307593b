//! GEMV: a few rows of activations, multiplied with weights as these are read.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::isa::Isa;
use super::super::layout::{ActivationGroup, GROUP_LEN, MAX_TILE_ROWS, PANEL_ROWS};
use super::super::simd::{Kernel, LANES, QUAD_BYTES, Simd, dispatch, with_rows};
use super::super::threads::pool::{self, Team};
use super::super::weights::{
    Bf16, F16, F32, PackedMatrix, Packing, Quantized, WeightFormat, prefetch_ahead, with_format,
    with_quantized_format,
};
use super::epilogue::{Epilogue, ITEMS_PER_THREAD, OutputRows, StoreEpilogue};
use super::projection::{InputRows, Projection};
use super::quantize::GemvActivations;

/// Bytes of activations that one pass over the weights uses, so that they stay in the L2 cache.
const BLOCK_BYTES: usize = 128 << 10;

/// Vectors of products that are computed before any of them passes through the epilogue.
const PRODUCTS_AT_ONCE: usize = 64;

/// A weight format that GEMV multiplies as it reads it.
pub trait GemvFormat: Packing {
    /// The form of the activations: an [`ActivationGroup`] or a float32.
    type Activation;
    /// Activations of such a form in a block.
    const N_ACTIVATIONS: usize;

    /// The activations in this form.
    fn select_activations(x: &GemvActivations) -> &[Self::Activation];

    /// Adds the products of a block's sixteen rows with each of `M` rows of activations, and prefetches what
    /// follows the block if `prefetch`.
    ///
    /// # Safety
    /// `packed` points to a block, and each of `x` to the activations of the block's inner elements, which are
    /// `stride` elements apart.
    unsafe fn accumulate<S: Simd, const M: usize>(
        simd: S,
        packed: *const u8,
        x: [*const Self::Activation; M],
        stride: usize,
        sums: &mut [S::Floats; M],
        prefetch: bool,
    );
}

impl<Q: Quantized> GemvFormat for Q {
    type Activation = ActivationGroup;
    const N_ACTIVATIONS: usize = Q::BLOCK_LEN / GROUP_LEN;

    fn select_activations(x: &GemvActivations) -> &[ActivationGroup] {
        x.groups()
    }

    #[inline(always)]
    unsafe fn accumulate<S: Simd, const M: usize>(
        simd: S,
        packed: *const u8,
        mut x: [*const ActivationGroup; M],
        stride: usize,
        sums: &mut [S::Floats; M],
        prefetch: bool,
    ) {
        // SAFETY: the block and its activations can be read, as this function requires.
        unsafe {
            for group in 0..Self::N_ACTIVATIONS {
                if prefetch {
                    prefetch_ahead::<S, Q>(simd, packed, group, Self::N_ACTIVATIONS);
                }
                for idx in 0..Q::SCALES_PER_GROUP {
                    let one_scale = Q::SCALES_PER_GROUP == 1;
                    let mut products = [simd.splat_sums(0); M];
                    if Q::ZERO != 0 {
                        for m in 0..M {
                            let sum = if one_scale { (*x[m]).sum } else { (*x[m]).half_sums[idx] };
                            products[m] = simd.splat_sums(-Q::ZERO * sum);
                        }
                    }
                    let (first, n_pairs) = if one_scale { (0, 4) } else { (2 * idx, 2) };
                    // Without a loop, so that the number of quads before is a constant everywhere.
                    let pair = |idx: usize| (first + idx, 2 * idx);
                    add_pair::<S, Q, M>(simd, packed, group, pair(0), &x, &mut products);
                    add_pair::<S, Q, M>(simd, packed, group, pair(1), &x, &mut products);
                    if one_scale {
                        add_pair::<S, Q, M>(simd, packed, group, pair(2), &x, &mut products);
                        add_pair::<S, Q, M>(simd, packed, group, pair(3), &x, &mut products);
                    }
                    let scale = Q::scale(simd, packed, group, idx);
                    for m in 0..M {
                        let product = simd.sums_to_floats(products[m], Q::CODE_BITS, 2 * n_pairs);
                        let product = simd.mul(product, simd.splat((*x[m]).scale));
                        sums[m] = simd.mul_add(product, scale, sums[m]);
                    }
                    if Q::HAS_MINS {
                        let min = Q::min(simd, packed, group, idx);
                        for m in 0..M {
                            let sum =
                                if one_scale { (*x[m]).scaled_sum } else { (*x[m]).scaled_half_sums[idx] };
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
}

/// Adds the products of pair `pair` of a group's quads, of which `n_before` quads were added before.
///
/// # Safety
/// `packed` points to a block, and each of `x` to a group of activations.
#[inline(always)]
unsafe fn add_pair<S: Simd, Q: Quantized, const M: usize>(
    simd: S,
    packed: *const u8,
    group: usize,
    (pair, n_before): (usize, usize),
    x: &[*const ActivationGroup; M],
    products: &mut [S::Sums; M],
) {
    // SAFETY: the block and its activations can be read, as this function requires.
    unsafe {
        let codes = Q::codes(simd, packed, group, pair / 2, pair % 2);
        for quad in 0..2 {
            for m in 0..M {
                let quads = x[m].cast::<u8>().add((2 * pair + quad) * QUAD_BYTES);
                products[m] = simd.dot_codes(products[m], codes[quad], Q::CODE_BITS, quads, n_before + quad);
            }
        }
    }
}

/// Implements [`GemvFormat`] for a format whose blocks are one float for each row.
macro_rules! float_gemv {
    ($name:ident, $load:ident) => {
        impl GemvFormat for $name {
            type Activation = f32;
            const N_ACTIVATIONS: usize = 1;

            fn select_activations(x: &GemvActivations) -> &[f32] {
                x.floats()
            }

            #[inline(always)]
            unsafe fn accumulate<S: Simd, const M: usize>(
                simd: S,
                packed: *const u8,
                x: [*const f32; M],
                _: usize,
                sums: &mut [S::Floats; M],
                prefetch: bool,
            ) {
                if prefetch {
                    prefetch_ahead::<S, Self>(simd, packed, 0, 1);
                }
                // SAFETY: the block and its activations can be read, as this function requires.
                unsafe {
                    let weights = simd.$load(packed.cast());
                    for m in 0..M {
                        sums[m] = simd.mul_add(weights, simd.splat(*x[m]), sums[m]);
                    }
                }
            }
        }
    };
}

float_gemv!(F32, load);
float_gemv!(F16, load_f16);
float_gemv!(Bf16, load_bf16);

/// Some panels of a matrix, and the rows of activations that they are multiplied with; the first of the rows
/// begins a tile.
struct PanelProduct<'a> {
    matrix: &'a PackedMatrix,
    panels: Range<usize>,
    x: &'a GemvActivations,
    rows: Range<usize>,
    /// Whether to prefetch what follows each panel, since this is the first use of the panels.
    prefetch: bool,
}

impl PanelProduct<'_> {
    /// Computes the products, `[n_panels, n_rows, PANEL_ROWS]`, into `buffer`.
    ///
    /// # Panics
    /// When panels, rows or the buffer are too short, or the activations are of another length or form.
    #[inline(always)]
    fn multiply<S: Simd>(self, simd: S, buffer: &mut [MaybeUninit<[f32; LANES]>]) -> &[[f32; LANES]] {
        let Self { matrix, panels, x, rows, prefetch } = self;
        assert!(panels.end <= matrix.n_panels() && rows.end <= x.n_rows() && x.n_in() == matrix.n_in());
        let products = &mut buffer[..panels.len() * rows.len()];
        let n_blocks = matrix.n_in() / matrix.format().block_len();
        let packed = matrix.panel_start(panels.start);
        with_format!(matrix.format(), F => {
            let (all, stride) = (F::select_activations(x), x.tile_rows());
            let per_row = n_blocks * F::N_ACTIVATIONS;
            assert!(rows.start.is_multiple_of(stride));
            assert!(all.len() >= rows.end.next_multiple_of(stride) * per_row);
            let x = all[rows.start * per_row..].as_ptr();
            let tiles = PanelTiles::<F> { packed, n_blocks, x, stride, prefetch };
            // SAFETY: the panels exist with all their blocks, and so do the rows of activations, as asserted.
            unsafe { tiles.multiply(simd, rows.len(), products) }
        });
        // SAFETY: `PanelTiles::multiply` writes every row of every panel.
        unsafe { products.assume_init_ref() }
    }
}

/// Consecutive panels of `n_blocks`, and rows of activations in tiles of `stride` rows: the activations of a
/// row are `stride` elements apart, between those of the other rows.
struct PanelTiles<F: GemvFormat> {
    packed: *const u8,
    n_blocks: usize,
    x: *const F::Activation,
    stride: usize,
    prefetch: bool,
}

impl<F: GemvFormat> PanelTiles<F> {
    /// Writes the products of as many panels as `products` has room for with `n_rows` rows.
    ///
    /// # Safety
    /// The panels and the rows can be read.
    #[inline(always)]
    unsafe fn multiply<S: Simd>(&self, simd: S, n_rows: usize, products: &mut [MaybeUninit<[f32; LANES]>]) {
        let Self { packed, n_blocks, x, stride, prefetch } = *self;
        for (idx, products) in products.chunks_exact_mut(n_rows).enumerate() {
            for (of_tile, products) in products.chunks_mut(stride).enumerate() {
                let mut row = 0;
                // SAFETY: every tile lies within the rows, which can be read, as this function requires.
                unsafe {
                    let packed = packed.add(idx * n_blocks * F::PACKED_BYTES);
                    let x = x.add(of_tile * stride * n_blocks * F::N_ACTIVATIONS);
                    while row < products.len() {
                        let prefetch = prefetch && of_tile == 0 && row == 0;
                        let m = (products.len() - row).min(S::GEMV_TILE_ROWS);
                        let tile = Self { packed, n_blocks, x: x.add(row), stride, prefetch };
                        let products = &mut products[row..];
                        with_rows!(m, M in [1, 2, 3, 4, 5, 6, 7, 8] => {
                            // Larger tiles than the registers have room for are not compiled.
                            if const { M > S::GEMV_TILE_ROWS } {
                                unreachable!("no tile of {M} rows");
                            }
                            tile.multiply_tile::<S, M>(simd, products)
                        });
                        row += m;
                    }
                }
            }
        }
    }

    /// Writes the products of one panel with `M` rows, whose sums stay in registers.
    ///
    /// # Safety
    /// The panel and the rows can be read.
    #[inline(always)]
    unsafe fn multiply_tile<S: Simd, const M: usize>(
        self,
        simd: S,
        products: &mut [MaybeUninit<[f32; LANES]>],
    ) {
        let Self { packed, n_blocks, x, stride, prefetch } = self;
        let mut sums = [simd.splat(0.0); M];
        for block in 0..n_blocks {
            // SAFETY: the block and its activations can be read, as this function requires.
            unsafe {
                let packed = packed.add(block * F::PACKED_BYTES);
                let mut activations = [x; M];
                for (m, activations) in activations.iter_mut().enumerate() {
                    *activations = x.add(m + block * F::N_ACTIVATIONS * stride);
                }
                F::accumulate::<S, M>(simd, packed, activations, stride, &mut sums, prefetch);
            }
        }
        for (sums, products) in sums.into_iter().zip(products) {
            // SAFETY: `products` has room for a vector.
            unsafe { simd.store(sums, products.as_mut_ptr().cast()) };
        }
    }
}

/// Multiplies the rows of `input` with all panels of `projection`.
pub fn gemv(isa: Isa, input: InputRows, projection: &Projection, output: &OutputRows) {
    let n_rows = input.n_rows();
    if n_rows <= MAX_TILE_ROWS {
        return pool::run(|team| gemv_stage(team, isa, input, projection, output));
    }
    let mut activations = activations_for(projection, n_rows, input.n_in);
    {
        let tiles = activations.shared();
        let n_tiles = n_rows.div_ceil(MAX_TILE_ROWS);
        // SAFETY: each tile is claimed once.
        let fill = |tile| unsafe { tiles.fill(isa, tile, input) };
        pool::run(|team| team.claim_chunks(n_tiles, 1).flatten().for_each(fill));
    }
    pool::run(|team| multiply_panels(team, isa, projection, &activations, output));
    activations.recycle();
}

/// A stage of a job in which the threads multiply up to [`MAX_TILE_ROWS`] rows. Each thread quantizes the rows
/// for itself: they come from all threads, and sharing the results would send them to all threads once more.
pub fn gemv_stage(team: &Team, isa: Isa, input: InputRows, projection: &Projection, output: &OutputRows) {
    let activations = gemv_activations(isa, input, projection);
    multiply_panels(team, isa, projection, &activations, output);
    activations.recycle();
}

/// Quantizes up to [`MAX_TILE_ROWS`] rows for the matrices of a projection.
pub fn gemv_activations(isa: Isa, input: InputRows, projection: &Projection) -> GemvActivations {
    let mut activations = activations_for(projection, input.n_rows(), input.n_in);
    // SAFETY: the buffer is this thread's own.
    unsafe { activations.shared().fill(isa, 0, input) };
    activations
}

/// Multiplies up to [`MAX_TILE_ROWS`] rows with some of a projection's [groups](Projection::n_groups) of panels, which no
/// other thread multiplies.
pub fn gemv_panels(
    isa: Isa,
    projection: &Projection,
    activations: &GemvActivations,
    output: &OutputRows,
    panels: Range<usize>,
) {
    let (block_rows, n_panels) = (activations.n_rows(), projection.n_groups(1));
    run_kernel(isa, GemvKernel { projection, activations, output, block_rows, n_panels, items: panels });
}

/// Runs the kernel. One function for all callers: it is compiled for every format, and large.
#[inline(never)]
fn run_kernel(isa: Isa, kernel: GemvKernel) {
    dispatch(isa, kernel);
}

/// A buffer for rows in the forms that the matrices of `projection` need.
fn activations_for(projection: &Projection, n_rows: usize, n_in: usize) -> GemvActivations {
    let has = |quantized: bool| {
        projection.matrices().any(|weight| weight.matrix.format().is_quantized() == quantized)
    };
    GemvActivations::acquire(n_rows, n_in, has(false), has(true))
}

/// Rows of a block: whole tiles that take about [`BLOCK_BYTES`], one tile at least, however long a row is.
fn block_rows(n_rows: usize, n_in: usize) -> usize {
    let n_fitting = BLOCK_BYTES / (3 * n_in);
    n_fitting.max(1).next_multiple_of(MAX_TILE_ROWS).min(n_rows)
}

/// Claims panels and multiplies them with all rows, in blocks of rows that stay in the L2 cache.
fn multiply_panels(
    team: &Team,
    isa: Isa,
    projection: &Projection,
    activations: &GemvActivations,
    output: &OutputRows,
) {
    let (n_rows, n_panels) = (activations.n_rows(), projection.n_groups(1));
    if n_rows == 0 || n_panels == 0 {
        return;
    }
    let block_rows = block_rows(n_rows, activations.n_in());
    let n_blocks = n_rows.div_ceil(block_rows);
    let at_once = n_panels.div_ceil(ITEMS_PER_THREAD * team.n_threads());
    for items in team.claim_chunks(n_blocks * n_panels, at_once) {
        run_kernel(isa, GemvKernel { projection, activations, output, block_rows, n_panels, items });
    }
}

/// Multiplies blocks of rows with groups of panels that its thread has claimed.
struct GemvKernel<'a> {
    projection: &'a Projection<'a>,
    activations: &'a GemvActivations,
    output: &'a OutputRows<'a>,
    block_rows: usize,
    n_panels: usize,
    /// The claimed items: all panels with the first block, then with the second, and so on.
    items: Range<usize>,
}

impl Kernel for GemvKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { projection, activations, output, block_rows, n_panels, mut items } = self;
        let rows_at_once = block_rows.min(PRODUCTS_AT_ONCE);
        let mut buffers = [const { [const { MaybeUninit::uninit() }; PRODUCTS_AT_ONCE] }; 2];
        while !items.is_empty() {
            let (block, panel) = (items.start / n_panels, items.start % n_panels);
            let (column, first, second) = projection.group(panel, 1);
            let n_left = first.weight.matrix.n_panels() - first.panel;
            let n_together = n_left.min(items.len()).min(PRODUCTS_AT_ONCE / rows_at_once);
            items.start += n_together;
            let end = activations.n_rows().min((block + 1) * block_rows);
            for start in (block * block_rows..end).step_by(rows_at_once) {
                let rows = start..end.min(start + rows_at_once);
                // Later rows find the panels in the cache.
                let prefetch = start == block * block_rows;
                let mut tiles = [&[][..]; 2];
                let panels = [Some(first), second].into_iter().flatten();
                for ((panel, buffer), tiles) in panels.zip(&mut buffers).zip(&mut tiles) {
                    let product = PanelProduct {
                        matrix: panel.weight.matrix,
                        panels: panel.panel..panel.panel + n_together,
                        x: activations,
                        rows: rows.clone(),
                        prefetch,
                    };
                    *tiles = product.multiply(simd, buffer);
                }
                for idx in 0..n_together {
                    let column = column + idx * PANEL_ROWS;
                    let (first, second) = (first.offset(idx), second.map(|second| second.offset(idx)));
                    let epilogue = StoreEpilogue { projection, output, column, first, second };
                    let of_panel = idx * rows.len()..(idx + 1) * rows.len();
                    let tile = &tiles[0][of_panel.clone()];
                    let other = if second.is_some() { &tiles[1][of_panel] } else { tile };
                    // SAFETY: the thread has claimed these panels with this block.
                    unsafe { epilogue.apply(simd, rows.clone(), [tile, other]) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_whole_tiles_however_long_its_rows_are() {
        for (n_rows, n_in, expected) in [
            (1, 576, 1),
            (100, 576, 80),
            (100, 4096, 16),
            (100, 43_690, 8),
            (100, 43_691, 8),
            (100, 49_152, 8),
            (3, 1 << 24, 3),
        ] {
            assert_eq!(block_rows(n_rows, n_in), expected, "{n_rows} {n_in}");
        }
    }
}
