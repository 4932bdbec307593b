//! Products of rows of activations with matrices, with what comes before and after them in the same
//! go: a norm in front, a bias, a gate or a residual behind.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::activations::{Activations, Norm, load_part};
use super::amx;
use super::isa::Isa;
use super::pool::{self, Team};
use super::shared_rows::{SharedMut, written};
use super::simd::{Kernel, LANES, Simd, dispatch, exp_each, tanh};
use super::units;
use super::weights::{MAX_TILE_ROWS, PANEL_ROWS, PackedMatrix, WeightFormat};
use super::wide::{self, Panel, Then};

/// A matrix and what is added to its products.
#[derive(Debug, Clone, Copy)]
pub struct Weighted<'a> {
    pub matrix: &'a PackedMatrix,
    /// `[n_out]`
    pub bias: Option<&'a [f32]>,
}

/// What a gate is passed through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    Silu,
    /// GELU by the error function.
    Gelu,
    /// GELU by its tanh formula.
    GeluTanh,
    Tanh,
}

/// What becomes of the products.
#[derive(Debug, Clone, Copy)]
pub enum Products<'a> {
    /// Those of several matrices, side by side.
    SideBySide(&'a [Weighted<'a>]),
    /// Those of one matrix, through a function.
    Through(Weighted<'a>, Gate),
    /// `gate(x) * up(x)`
    Gated { gate: Weighted<'a>, up: Weighted<'a>, function: Gate },
    /// Those of one matrix, to be added to something.
    Added(Weighted<'a>),
}

/// Bytes of activations that one pass over the matrices uses, so that they stay in the second-level
/// cache.
const BLOCK_BYTES: usize = 128 << 10;

/// Vectors of products that are made before any of them are finished.
const PRODUCTS_AT_ONCE: usize = 64;

/// Pieces of work for each thread: few, since sharing out costs, and several, since cores are not
/// always equally fast.
const PIECES_PER_THREAD: usize = 8;

impl Products<'_> {
    pub(super) fn matrices(&self) -> impl Iterator<Item = &Weighted<'_>> {
        let (first, second, several) = match self {
            Self::SideBySide(several) => (None, None, *several),
            Self::Gated { gate, up, .. } => (Some(gate), Some(up), &[][..]),
            Self::Through(weighted, _) | Self::Added(weighted) => (Some(weighted), None, &[][..]),
        };
        several.iter().chain(first).chain(second)
    }

    /// Length of a row of the result.
    pub(super) fn n_out(&self) -> usize {
        match self {
            Self::SideBySide(several) => several.iter().map(|weighted| weighted.matrix.n_out()).sum(),
            Self::Gated { gate, .. } => gate.matrix.n_out(),
            Self::Through(weighted, _) | Self::Added(weighted) => weighted.matrix.n_out(),
        }
    }

    /// Groups of `at_once` panels: neighbours of a matrix, whose last may be fewer; or those of gate and up.
    fn n_groups(&self, at_once: usize) -> usize {
        match self {
            Self::Gated { gate, .. } => gate.matrix.n_panels(),
            _ => self.matrices().map(|weighted| weighted.matrix.n_panels().div_ceil(at_once)).sum(),
        }
    }

    /// A group's first column of the result, and its one or two panels.
    fn group(&self, mut idx: usize, at_once: usize) -> (usize, PanelOf<'_>, Option<PanelOf<'_>>) {
        if let Self::Gated { gate, up, .. } = self {
            let of = |weighted| PanelOf { weighted, panel: idx };
            return (idx * PANEL_ROWS, of(gate), Some(of(up)));
        }
        let mut column = 0;
        for weighted in self.matrices() {
            let n_panels = weighted.matrix.n_panels();
            let panel = at_once * idx;
            if panel < n_panels {
                let second = (at_once > 1 && panel + 1 < n_panels).then_some(panel + 1);
                let of = |panel| PanelOf { weighted, panel };
                return (column + panel * PANEL_ROWS, of(panel), second.map(of));
            }
            idx -= n_panels.div_ceil(at_once);
            column += weighted.matrix.n_out();
        }
        unreachable!("a group beyond the last matrix")
    }

    /// Whether many rows may meet two panels at a time as whole numbers.
    fn suit_whole_numbers(&self) -> bool {
        let same = |gate: &Weighted, up: &Weighted| gate.matrix.format() == up.matrix.format();
        self.matrices().all(|weighted| weighted.matrix.format().is_quantized())
            && !matches!(self, Self::Gated { gate, up, .. } if !same(gate, up))
    }

    /// Whether so many rows are multiplied in units, and then, whether these are of bfloat16.
    fn units(&self, n_rows: usize) -> Option<bool> {
        let all_are = |format| self.matrices().all(|weighted| weighted.matrix.format() == format);
        let in_float32 = n_rows > MAX_TILE_ROWS && all_are(WeightFormat::F32);
        if all_are(WeightFormat::Bf16Pairs) { Some(true) } else { in_float32.then_some(false) }
    }

    /// Gives the number of rows of `x`.
    ///
    /// # Panics
    /// When a length does not fit the others.
    fn check(&self, x: &[f32], n_in: usize) -> usize {
        assert!(x.len().is_multiple_of(n_in), "{} numbers are no rows of {n_in}", x.len());
        let fits = |weighted: &Weighted| {
            weighted.matrix.n_in() == n_in
                && weighted.bias.is_none_or(|bias| bias.len() == weighted.matrix.n_out())
        };
        assert!(self.matrices().all(fits));
        if let Self::Gated { gate, up, .. } = self {
            assert_eq!(gate.matrix.n_out(), up.matrix.n_out());
        }
        x.len() / n_in
    }
}

/// `products` of the rows of `x`, each `n_in` long and first passed through `norm`; the result is
/// `[n_rows, n_out]`, added to `residual` where there is one.
///
/// # Panics
/// When a length does not fit the others.
pub fn linear(
    isa: Isa,
    x: &[f32],
    n_in: usize,
    norm: Option<Norm>,
    products: &Products,
    residual: Option<&[f32]>,
) -> Vec<f32> {
    let n_rows = products.check(x, n_in);
    let n_out = products.n_out();
    assert!(residual.is_none_or(|residual| residual.len() == n_rows * n_out));
    let norm = norm.as_ref();
    let write = |numbers: SharedMut<MaybeUninit<f32>>| {
        let result = Product::of_floats(n_out, numbers, residual);
        if let Some(in_bf16) = products.units(n_rows) {
            let rows = units::Rows::new(isa, in_bf16, x, n_in, norm);
            many_rows(isa, &rows, 0..rows.n_blocks(), products, &result);
            rows.put_back();
        } else if wide::pays(isa, n_rows) && products.suit_whole_numbers() {
            let rows = wide::Rows::new(isa, x, n_in, norm);
            many_rows(isa, &rows, 0..rows.n_blocks(), products, &result);
            rows.put_back();
        } else {
            few_rows(isa, x, n_in, norm, products, &result);
        }
    };
    // SAFETY: every panel is multiplied with every row.
    unsafe { written(n_rows * n_out, write) }
}

/// The rows of `x`, passed through `norm` and two layers of products and added to themselves: `x +
/// down(inner(norm(x)))`.
///
/// # Panics
/// When a length does not fit the others.
pub fn mlp(isa: Isa, x: &[f32], norm: Option<Norm>, inner: &Products, down: Weighted) -> Vec<f32> {
    let (n_in, n_inner) = (down.matrix.n_out(), inner.n_out());
    let outer = Products::Added(down);
    let n_rows = inner.check(x, n_in);
    assert_eq!(down.matrix.n_in(), n_inner);
    let in_bf16 = match (inner.units(n_rows), outer.units(n_rows)) {
        (Some(inner_in_bf16), Some(outer_in_bf16)) if inner_in_bf16 == outer_in_bf16 => inner_in_bf16,
        (None, None) if n_rows <= MAX_TILE_ROWS => {
            return mlp_of_one_tile(isa, x, norm.as_ref(), inner, &outer);
        }
        _ => {
            let y = linear(isa, x, n_in, norm, inner, None);
            return linear(isa, &y, n_inner, None, &outer, Some(x));
        }
    };
    let rows = units::Rows::new(isa, in_bf16, x, n_in, norm.as_ref());
    let mut inner_rows = units::Rows::zeros(in_bf16, n_rows, n_inner);
    let write = |numbers: SharedMut<MaybeUninit<f32>>| {
        // A block's inner rows stay in the cache until they have been used.
        for start in (0..rows.n_blocks()).step_by(units::BLOCKS_AT_ONCE) {
            let blocks = start..rows.n_blocks().min(start + units::BLOCKS_AT_ONCE);
            let (stride, units) = inner_rows.units_mut();
            let result = Product { n_out: n_inner, stride, in_bf16, numbers: units, residual: None };
            many_rows(isa, &rows, blocks.clone(), inner, &result);
            many_rows(isa, &inner_rows, blocks, &outer, &Product::of_floats(n_in, numbers, Some(x)));
        }
    };
    // SAFETY: every panel of the second matrix is multiplied with every row.
    let y = unsafe { written(n_rows * n_in, write) };
    inner_rows.put_back();
    rows.put_back();
    y
}

/// The same of up to [`MAX_TILE_ROWS`] rows, whose weights are multiplied as they are read: the threads come
/// together once between the layers instead of twice and at the caller.
fn mlp_of_one_tile(isa: Isa, x: &[f32], norm: Option<&Norm>, inner: &Products, outer: &Products) -> Vec<f32> {
    let (n_in, n_inner) = (outer.n_out(), inner.n_out());
    let n_rows = x.len() / n_in;
    let mut inner_rows: Vec<f32> = Vec::with_capacity(n_rows * n_inner);
    let inner_numbers = SharedMut::new(&mut inner_rows.spare_capacity_mut()[..n_rows * n_inner]);
    let write = |numbers: SharedMut<MaybeUninit<f32>>| {
        pool::run(|team| {
            one_tile(team, isa, x, n_in, norm, inner, &Product::of_floats(n_inner, inner_numbers, None));
            team.meet();
            // SAFETY: every panel of the first matrices has been multiplied with every row, and nobody writes
            // to them any more.
            let inner_rows = unsafe { inner_numbers.assume_written() };
            one_tile(
                team,
                isa,
                inner_rows,
                n_inner,
                None,
                outer,
                &Product::of_floats(n_in, numbers, Some(x)),
            );
        });
    };
    // SAFETY: every panel of the second matrix is multiplied with every row.
    unsafe { written(n_rows * n_in, write) }
}

/// Where the products go.
struct Product<'a> {
    n_out: usize,
    /// From a row to the next.
    stride: usize,
    /// Whether they become units of two bfloat16 instead of float32.
    in_bf16: bool,
    numbers: SharedMut<'a, MaybeUninit<f32>>,
    residual: Option<&'a [f32]>,
}

impl<'a> Product<'a> {
    /// Rows of `n_out` numbers, one behind the other.
    fn of_floats(
        n_out: usize,
        numbers: SharedMut<'a, MaybeUninit<f32>>,
        residual: Option<&'a [f32]>,
    ) -> Self {
        Self { n_out, stride: n_out, in_bf16: false, numbers, residual }
    }
}

/// Rows of activations that meet two panels at a time.
trait ManyRows: Sync {
    /// Blocks that meet a panel before the next does.
    const BLOCKS_AT_ONCE: usize;

    /// See [`wide::Rows::products`].
    fn products(
        &self,
        isa: Isa,
        amx: &mut Option<amx::Configured>,
        block: usize,
        panels: &[Panel],
        then: &impl Then,
    );
}

macro_rules! many_rows {
    ($($rows:ty, $blocks_at_once:expr;)*) => {$(
        impl ManyRows for $rows {
            const BLOCKS_AT_ONCE: usize = $blocks_at_once;

            fn products(
                &self,
                isa: Isa,
                amx: &mut Option<amx::Configured>,
                block: usize,
                panels: &[Panel],
                then: &impl Then,
            ) {
                self.products(isa, amx, block, panels, then);
            }
        }
    )*};
}

many_rows! {
    wide::Rows, 1;
    units::Rows, units::BLOCKS_AT_ONCE;
}

/// Multiplies two panels at a time with all rows.
fn many_rows<R: ManyRows>(isa: Isa, rows: &R, blocks: Range<usize>, products: &Products, result: &Product) {
    let n_pairs = products.n_groups(2);
    let together = R::BLOCKS_AT_ONCE.min(blocks.len());
    let n_pieces = blocks.len().next_multiple_of(together) * n_pairs;
    pool::run(|team| {
        let at_once = (n_pairs / (PIECES_PER_THREAD * team.n_threads())).max(1);
        let mut amx = None;
        for piece in team.share(n_pieces, at_once).flatten() {
            let (of_pair, pair) = (piece % together, piece / together % n_pairs);
            let block = blocks.start + piece / (n_pairs * together) * together + of_pair;
            if block >= blocks.end {
                continue;
            }
            let (column, first, second) = products.group(pair, 2);
            let both = [first.key(), second.unwrap_or(first).key()];
            let then = Finish { products, result, column, first, second };
            rows.products(isa, &mut amx, block, &both[..1 + usize::from(second.is_some())], &then);
        }
    });
}

/// Multiplies the weights as they are read.
fn few_rows(isa: Isa, x: &[f32], n_in: usize, norm: Option<&Norm>, products: &Products, result: &Product) {
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
        pool::run(|team| team.share(n_tiles, 1).flatten().for_each(fill));
    }
    pool::run(|team| as_read(team, isa, products, &activations, result));
    activations.put_back();
}

/// A stage in which the threads share the products with up to [`MAX_TILE_ROWS`] rows of `x`. Each prepares the
/// rows for itself: they come from all threads, and would have to go to all threads again.
fn one_tile(
    team: &Team,
    isa: Isa,
    x: &[f32],
    n_in: usize,
    norm: Option<&Norm>,
    products: &Products,
    result: &Product,
) {
    let mut activations = activations_for(products, x.len() / n_in, n_in);
    // SAFETY: nobody else has these.
    unsafe { activations.shared().fill(isa, 0, x, norm) };
    as_read(team, isa, products, &activations, result);
    activations.put_back();
}

/// Room for rows in the forms that `products` take.
fn activations_for(products: &Products, n_rows: usize, n_in: usize) -> Activations {
    let wants = |quantized: bool| {
        products.matrices().any(|weighted| weighted.matrix.format().is_quantized() == quantized)
    };
    Activations::take(n_rows, n_in, wants(false), wants(true))
}

/// Shares out the products with all rows.
fn as_read(team: &Team, isa: Isa, products: &Products, activations: &Activations, result: &Product) {
    let (n_rows, n_panels) = (activations.n_rows(), products.n_groups(1));
    let block_rows = (BLOCK_BYTES / (3 * activations.n_in())).next_multiple_of(MAX_TILE_ROWS).min(n_rows);
    let n_blocks = n_rows.div_ceil(block_rows.max(1));
    let at_once = n_panels.div_ceil(PIECES_PER_THREAD * team.n_threads());
    for pieces in team.share(n_blocks * n_panels, at_once) {
        let kernel = AsRead { products, activations, result, block_rows, n_panels, pieces };
        // SAFETY: the instructions are there; each panel of each block is claimed once.
        unsafe { dispatch(isa, kernel) };
    }
}

/// Groups of panels with blocks of rows.
struct AsRead<'a> {
    products: &'a Products<'a>,
    activations: &'a Activations,
    result: &'a Product<'a>,
    block_rows: usize,
    n_panels: usize,
    /// Which, block by block.
    pieces: Range<usize>,
}

impl Kernel for AsRead<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
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
                        matrix.panel_products::<S>(panels, activations, rows.clone(), room, fetches)
                    };
                }
                for idx in 0..n_together {
                    let column = column + idx * PANEL_ROWS;
                    let (first, second) = (first.after(idx), second.map(|second| second.after(idx)));
                    let finish = Finish { products, result, column, first, second };
                    let of_panel = idx * rows.len()..(idx + 1) * rows.len();
                    let tile = &tiles[0][of_panel.clone()];
                    let other = if second.is_some() { &tiles[1][of_panel] } else { tile };
                    // SAFETY: as above.
                    unsafe { finish.take::<S>(rows.clone(), [tile, other]) };
                }
            }
        }
    }
}

/// A panel of a matrix, with what is added to its products.
#[derive(Clone, Copy)]
struct PanelOf<'a> {
    weighted: &'a Weighted<'a>,
    panel: usize,
}

impl<'a> PanelOf<'a> {
    fn key(self) -> Panel<'a> {
        (self.weighted.matrix, self.panel)
    }

    /// The panel so many further.
    fn after(self, n: usize) -> Self {
        Self { panel: self.panel + n, ..self }
    }

    /// Rows of the matrix that it has.
    fn width(self) -> usize {
        PANEL_ROWS.min(self.weighted.matrix.n_out() - self.panel * PANEL_ROWS)
    }

    fn bias(self) -> Option<&'a [f32]> {
        self.weighted.bias.map(|bias| &bias[self.panel * PANEL_ROWS..][..self.width()])
    }
}

/// Products of some rows with a panel.
type PanelProducts<'a> = (PanelOf<'a>, &'a [[f32; LANES]]);

/// Makes results of products with one or two panels and writes them.
struct Finish<'a> {
    products: &'a Products<'a>,
    result: &'a Product<'a>,
    /// Where those of the first panel go.
    column: usize,
    first: PanelOf<'a>,
    second: Option<PanelOf<'a>>,
}

/// Bytes of a line of the cache.
const LINE_BYTES: usize = 64;

impl Then for Finish<'_> {
    #[inline(always)]
    unsafe fn fetch<S: Simd>(&self, rows: Range<usize>) {
        let Self { result, column, second, .. } = *self;
        let unit_len = if result.in_bf16 { S::UNIT_LEN } else { 1 };
        let n_panels = if matches!(self.products, Products::Gated { .. }) {
            1
        } else {
            1 + usize::from(second.is_some())
        };
        let n_bytes = n_panels * LANES / unit_len * size_of::<f32>();
        for row in rows {
            let of_row = result.numbers.start().wrapping_add(row * result.stride + column / unit_len);
            for start in (0..n_bytes + LINE_BYTES).step_by(LINE_BYTES) {
                // SAFETY: the processor has the instructions; any address will do.
                unsafe { S::prefetch_l1(of_row.cast::<u8>().wrapping_add(start)) };
            }
        }
    }

    #[inline(always)]
    unsafe fn take<S: Simd>(&self, rows: Range<usize>, [tile, other]: [&[[f32; LANES]]; 2]) {
        let Self { products, column, first, second, .. } = *self;
        // SAFETY: the caller's promise; products are vectors.
        unsafe {
            match (*products, second) {
                (Products::Gated { function, .. }, Some(second)) => {
                    let factors = Some((second, other));
                    self.write::<S>(rows, column, (first, tile), Some(function), factors);
                }
                (products, second) => {
                    let function = match products {
                        Products::Through(_, function) => Some(function),
                        _ => None,
                    };
                    self.write::<S>(rows.clone(), column, (first, tile), function, None);
                    if let Some(second) = second {
                        self.write::<S>(rows, column + PANEL_ROWS, (second, other), function, None);
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn bias_of<S: Simd>(panel: PanelOf) -> S::Floats {
    // SAFETY: the caller's promise.
    unsafe { panel.bias().map_or(S::splat(0.0), |bias| load_part::<S>(bias, 0)) }
}

impl Finish<'_> {
    /// Writes a panel's products with some rows and its bias, through a function, times others.
    ///
    /// # Safety
    /// As [`Then::take`].
    #[inline(always)]
    unsafe fn write<S: Simd>(
        &self,
        rows: Range<usize>,
        column: usize,
        of: PanelProducts,
        function: Option<Gate>,
        factors: Option<PanelProducts>,
    ) {
        const AT_ONCE: usize = 4;
        let mut row = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while row + AT_ONCE <= rows.len() {
                self.write_rows::<S, AT_ONCE>(rows.start, row, column, of, function, factors);
                row += AT_ONCE;
            }
            while row < rows.len() {
                self.write_rows::<S, 1>(rows.start, row, column, of, function, factors);
                row += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn write_rows<S: Simd, const N: usize>(
        &self,
        first_row: usize,
        row: usize,
        column: usize,
        (panel, tile): PanelProducts,
        function: Option<Gate>,
        factors: Option<PanelProducts>,
    ) {
        let result = self.result;
        let width = panel.width();
        // SAFETY: the caller's promise.
        unsafe {
            let mut x = [bias_of::<S>(panel); N];
            for i in 0..N {
                x[i] = S::add(S::load(tile[row + i].as_ptr()), x[i]);
            }
            if let Some(function) = function {
                x = function.of::<S, N>(x, result.in_bf16);
            }
            if let Some((panel, factors)) = factors {
                let bias = bias_of::<S>(panel);
                for i in 0..N {
                    x[i] = S::mul(x[i], S::add(S::load(factors[row + i].as_ptr()), bias));
                }
            }
            for i in 0..N {
                let row = first_row + row + i;
                if let Some(residual) = result.residual {
                    let of_row = &residual[row * result.n_out..(row + 1) * result.n_out];
                    x[i] = S::add(x[i], load_part::<S>(of_row, column));
                }
                if width == LANES {
                    let start = row * result.stride;
                    if result.in_bf16 {
                        let y = result.numbers.slice(start + column / S::UNIT_LEN, LANES / S::UNIT_LEN);
                        S::store_units(x[i], y.as_mut_ptr().cast());
                    } else {
                        let y = result.numbers.slice(start + column, LANES);
                        S::store(x[i], y.as_mut_ptr().cast());
                    }
                } else {
                    self.write_part::<S>(x[i], row, column, width);
                }
            }
        }
    }

    /// Writes a row of the last panel.
    #[inline(always)]
    unsafe fn write_part<S: Simd>(&self, x: S::Floats, row: usize, column: usize, width: usize) {
        let result = self.result;
        let start = row * result.stride;
        let mut numbers = [0.0; LANES];
        // SAFETY: the caller's promise.
        unsafe {
            S::store(x, numbers.as_mut_ptr());
            if result.in_bf16 {
                numbers[width..].fill(0.0);
                let y = result.numbers.slice(start + column / S::UNIT_LEN, LANES / S::UNIT_LEN);
                S::store_units(S::load(numbers.as_ptr()), y.as_mut_ptr().cast());
            } else {
                result.numbers.slice(start + column, width).write_copy_of_slice(&numbers[..width]);
            }
        }
    }
}

impl Gate {
    /// Of several vectors in step, since each operation on one waits for the one before it; what is to be
    /// rounded to bfloat16 need not be right to the last place.
    #[inline(always)]
    unsafe fn of<S: Simd, const N: usize>(self, x: [S::Floats; N], is_rounded: bool) -> [S::Floats; N] {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Gelu if is_rounded => gelu_to_round::<S, N>(x),
                Self::Silu => silu::<S, N>(x),
                Self::Gelu => gelu::<S, N>(x),
                Self::GeluTanh => gelu_tanh::<S, N>(x),
                Self::Tanh => {
                    let mut y = x;
                    for i in 0..N {
                        y[i] = tanh::<S>(x[i]);
                    }
                    y
                }
            }
        }
    }
}

/// `x / (1 + e^-x)`
#[inline(always)]
unsafe fn silu<S: Simd, const N: usize>(x: [S::Floats; N]) -> [S::Floats; N] {
    // SAFETY: the processor has the instructions.
    unsafe {
        let mut minus_x = x;
        for i in 0..N {
            minus_x[i] = S::sub(S::splat(0.0), x[i]);
        }
        over_one_plus_exp::<S, N>(x, minus_x)
    }
}

/// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x³)))`, which is `x / (1 + e^-2a)` for that `a`.
#[inline(always)]
unsafe fn gelu_tanh<S: Simd, const N: usize>(x: [S::Floats; N]) -> [S::Floats; N] {
    // SAFETY: the processor has the instructions.
    unsafe {
        let mut minus_2a = x;
        for i in 0..N {
            let cubic = S::mul_add(S::mul(x[i], x[i]), S::splat(0.044_715), S::splat(1.0));
            minus_2a[i] = S::mul(S::mul(x[i], cubic), S::splat(-2.0 * 0.797_884_6));
        }
        over_one_plus_exp::<S, N>(x, minus_2a)
    }
}

/// `x / (1 + e^y)`
#[inline(always)]
unsafe fn over_one_plus_exp<S: Simd, const N: usize>(
    mut x: [S::Floats; N],
    y: [S::Floats; N],
) -> [S::Floats; N] {
    // SAFETY: the processor has the instructions.
    unsafe {
        let powers = exp_each::<S, N>(y);
        for i in 0..N {
            x[i] = S::div(x[i], S::add(S::splat(1.0), powers[i]));
        }
        x
    }
}

/// The same as [`gelu`], right to 1e-4: half of the error function by a polynomial up to 4.25, where it becomes
/// one half. The coefficients make the largest error of the result smallest.
#[inline(always)]
unsafe fn gelu_to_round<S: Simd, const N: usize>(mut x: [S::Floats; N]) -> [S::Floats; N] {
    const END: f32 = 4.25;
    const COEFFICIENTS: [f32; 7] = [
        7.570_843_7e-8,
        -2.938_805_2e-6,
        6.552_713e-5,
        -9.404_478_5e-4,
        9.257_824e-3,
        -6.545_35e-2,
        0.398_420_04,
    ];
    // SAFETY: the processor has the instructions.
    unsafe {
        let (mut near, mut squares, mut sums) = (x, x, [S::splat(-8.460_426e-10); N]);
        for i in 0..N {
            near[i] = S::min(S::max(x[i], S::splat(-END)), S::splat(END));
            squares[i] = S::mul(near[i], near[i]);
        }
        for coefficient in COEFFICIENTS {
            for i in 0..N {
                sums[i] = S::mul_add(sums[i], squares[i], S::splat(coefficient));
            }
        }
        for i in 0..N {
            x[i] = S::mul(x[i], S::mul_add(near[i], sums[i], S::splat(0.5)));
        }
        x
    }
}

/// `x / 2 * (1 + erf(x / sqrt(2)))`. The error function is formula 7.1.26 of Abramowitz and Stegun,
/// "Handbook of Mathematical Functions", right to 1.5e-7.
#[inline(always)]
unsafe fn gelu<S: Simd, const N: usize>(mut x: [S::Floats; N]) -> [S::Floats; N] {
    // SAFETY: the processor has the instructions.
    unsafe {
        let (zero, one) = (S::splat(0.0), S::splat(1.0));
        let (mut magnitudes, mut t, mut minus_squares) = (x, x, x);
        for i in 0..N {
            magnitudes[i] = S::max(x[i], S::sub(zero, x[i]));
            let scaled = S::mul(magnitudes[i], S::splat(std::f32::consts::FRAC_1_SQRT_2));
            t[i] = S::div(one, S::mul_add(scaled, S::splat(0.327_591_1), one));
            minus_squares[i] = S::mul(S::sub(zero, scaled), scaled);
        }
        let powers = exp_each::<S, N>(minus_squares);
        // Half of 1 - erf: what is left of x, or of nothing where x is negative.
        let mut rest = [S::splat(0.5 * 1.061_405_4); N];
        for coefficient in [-1.453_152_1, 1.421_413_7, -0.284_496_72, 0.254_829_6, 0.0] {
            for i in 0..N {
                rest[i] = S::mul_add(rest[i], t[i], S::splat(0.5 * coefficient));
            }
        }
        for i in 0..N {
            rest[i] = S::mul(rest[i], powers[i]);
            x[i] = S::sub(S::max(x[i], zero), S::mul(magnitudes[i], rest[i]));
        }
        x
    }
}
