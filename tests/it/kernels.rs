//! Kernels match float64 references: in every format, on every instruction set of this machine, at ragged
//! sizes, in every batch.

use half::f16;
use predict_otron_9000::kernels::attention::kv_block::{BLOCK_TOKENS, KvBlock, KvFormat, KvLayout};
use predict_otron_9000::kernels::attention::{
    EncoderAttention, KvRef, PagedAttention, RelativePositionBias, RopeTable, SequenceKv,
};
use predict_otron_9000::kernels::isa::Isa;
use predict_otron_9000::kernels::matmul::{ActivationFn, Projection, WeightWithBias, linear, mlp};
use predict_otron_9000::kernels::norm::Norm;
use predict_otron_9000::kernels::weights::{PackedMatrix, WeightFormat};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use WeightFormat::{
    Bf16, Bf16Pairs, F16, F32, K6Generic, K8Generic, Mxfp4, Q4_0, Q4_1, Q4K, Q5_1, Q6K, Q8_0,
};

/// Magnitude of the largest integer that an activation is quantized to.
const ACTIVATION_MAX: f64 = 32_639.0;

/// Quantized activations that share a scale.
const GROUP_LEN: usize = 32;

/// Whether `tests/aarch64/run` emulates the processor, which is slow.
fn is_emulated() -> bool {
    std::env::var_os("FASTEST_ISA").is_some()
}

/// All of some sizes, or the first `n` on an emulated processor.
fn sizes(all: &[usize], n: usize) -> &[usize] {
    if is_emulated() { &all[..n] } else { all }
}

fn isas() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
}

/// Instruction sets that have a kernel for a format.
fn isas_for(format: WeightFormat) -> Vec<Isa> {
    isas().into_iter().filter(|isa| format != Bf16Pairs || isa.has_bf16()).collect()
}

fn random_numbers(random: &mut StdRng, n: usize) -> Vec<f32> {
    (0..n).map(|_| random.random_range(-2.0..2.0)).collect()
}

/// A row of arbitrary codes with small scales.
fn random_row(random: &mut StdRng, format: WeightFormat, n_in: usize) -> Vec<u8> {
    let mut row: Vec<u8> =
        (0..n_in / format.block_len() * format.source_bytes()).map(|_| random.random()).collect();
    for block in row.chunks_exact_mut(format.source_bytes()) {
        // Offsets of the scales and minimums, in half precision.
        let scales: &[usize] = match format {
            F32 => {
                block.copy_from_slice(&random.random_range(-1f32..1.0).to_le_bytes());
                &[]
            }
            F16 => &[0],
            Bf16Pairs => {
                for number in block.chunks_exact_mut(4) {
                    number.copy_from_slice(&random.random_range(-1f32..1.0).to_le_bytes());
                }
                &[]
            }
            Bf16 => {
                let number = half::bf16::from_f32(random.random_range(-1.0..1.0));
                block.copy_from_slice(&number.to_le_bytes());
                &[]
            }
            Q4_0 | Q8_0 => &[0],
            Q4_1 | Q5_1 | Q4K => &[0, 2],
            Q6K => &[208],
            K6Generic => &[288, 290],
            Mxfp4 => {
                block[0] = random.random_range(110..125);
                &[]
            }
            K8Generic => {
                block[272..].copy_from_slice(&random.random_range(-0.1f32..0.1).to_le_bytes());
                &[]
            }
        };
        for &at in scales {
            let scale = f16::from_f32(random.random_range(-0.1..0.1));
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    row
}

fn random_matrix(random: &mut StdRng, format: WeightFormat, n_out: usize, n_in: usize) -> PackedMatrix {
    let rows: Vec<Vec<u8>> = (0..n_out).map(|_| random_row(random, format, n_in)).collect();
    PackedMatrix::pack(format, n_out, n_in, |idx| &rows[idx]).unwrap()
}

fn to_bf16(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

/// The product of a row of weights with one of activations in float64, and the tolerance of kernels.
fn reference_product(format: WeightFormat, weights: &[f32], x: &[f32]) -> (f64, f64) {
    let is_rounded = format == Bf16Pairs;
    let x: Vec<f32> = x.iter().map(|&x| if is_rounded { to_bf16(x) } else { x }).collect();
    let products = || weights.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x));
    let mut bound = 2e-5 * products().map(f64::abs).sum::<f64>() + 1e-9;
    if format.is_quantized() {
        for (weights, x) in weights.chunks(GROUP_LEN).zip(x.chunks(GROUP_LEN)) {
            let largest = x.iter().fold(0f64, |largest, x| largest.max(f64::from(x.abs())));
            let magnitude: f64 = weights.iter().map(|w| f64::from(w.abs())).sum();
            // Half a unit per activation, twice: minimums and codes are summed separately, so both may round.
            bound += 2.0 * magnitude * largest / ACTIVATION_MAX;
        }
    }
    (products().sum(), bound)
}

#[test]
fn matrix_products_match_the_reference() {
    let random = &mut StdRng::seed_from_u64(1);
    for format in WeightFormat::ALL {
        let block = format.block_len();
        let lengths: &[usize] = if block == 1 { &[33, 1, 7, 100] } else { &[block, 3 * block] };
        let widths = sizes(&[17, 1, 15, 16, 70], 1);
        for (&n_in, &n_out) in sizes(lengths, 1).iter().flat_map(|n_in| widths.iter().map(move |n| (n_in, n)))
        {
            let matrix = random_matrix(random, format, n_out, n_in);
            let mut weights = vec![0.0; n_out * n_in];
            for (idx, row) in weights.chunks_exact_mut(n_in).enumerate() {
                matrix.dequantize_row(idx, row);
            }
            for &n_rows in sizes(&[1, 2, 5, 24, 3, 7, 8, 9, 17, 64], 4) {
                let x = random_numbers(random, n_rows * n_in);
                for isa in isas_for(format) {
                    let products = [WeightWithBias { matrix: &matrix, bias: None }];
                    let found = linear(isa, &x, n_in, None, &Projection::Concat(&products), None);
                    assert_eq!(found.len(), n_rows * n_out);
                    for (idx, found) in found.iter().enumerate() {
                        let x = &x[idx / n_out * n_in..][..n_in];
                        let weights = &weights[idx % n_out * n_in..][..n_in];
                        let (expected, bound) = reference_product(format, weights, x);
                        assert!(
                            (f64::from(*found) - expected).abs() <= bound,
                            "{format:?} {isa} {n_rows} x {n_in} x {n_out}, {idx}: {found} is not {expected}"
                        );
                    }
                }
            }
        }
    }
}

/// Rows so long that not even one fits into the cache's share; the widest models have 65,536 and more.
#[test]
fn products_of_very_long_rows_match_the_reference() {
    let random = &mut StdRng::seed_from_u64(7);
    for (format, n_in) in WeightFormat::ALL.into_iter().flat_map(|format| {
        let lengths: &[usize] = if format == Q4K { &[43_776, 49_152, 65_536, 131_072] } else { &[49_152] };
        lengths.iter().map(move |&n_in| (format, n_in))
    }) {
        let matrix = random_matrix(random, format, 17, n_in);
        let mut weights = vec![0.0; n_in];
        for n_rows in [1, 9] {
            let x = random_numbers(random, n_rows * n_in);
            for isa in isas_for(format) {
                let products = [WeightWithBias { matrix: &matrix, bias: None }];
                let found = linear(isa, &x, n_in, None, &Projection::Concat(&products), None);
                for (idx, out) in [(0, 0), (0, 16), (n_rows - 1, 5), (n_rows - 1, 16)] {
                    matrix.dequantize_row(out, &mut weights);
                    let x = &x[idx * n_in..][..n_in];
                    let (expected, bound) = reference_product(format, &weights, x);
                    // Sums of so many products round more often.
                    let found = f64::from(found[idx * 17 + out]);
                    assert!(
                        (found - expected).abs() <= 4.0 * bound,
                        "{format:?} {isa} {n_rows} x {n_in}, {idx} {out}: {found} is not {expected}"
                    );
                }
            }
        }
    }
}

/// The other rows of a batch, and the number of threads, must not change the result of a row.
#[test]
fn a_row_has_the_same_products_in_every_batch() {
    let random = &mut StdRng::seed_from_u64(2);
    for format in WeightFormat::ALL {
        let (n_in, n_out) = if is_emulated() { (256, 17) } else { (512, 100) };
        let matrix = random_matrix(random, format, n_out, n_in);
        let weighted = [WeightWithBias { matrix: &matrix, bias: None }];
        let x = random_numbers(random, 64 * n_in);
        let weight = random_numbers(random, n_in);
        let norm = || Some(Norm::Rms { weight: &weight, eps: 1e-5 });
        for isa in isas_for(format) {
            let products = |x: &[f32]| linear(isa, x, n_in, norm(), &Projection::Concat(&weighted), None);
            let alone: Vec<f32> = x.chunks_exact(n_in).flat_map(products).collect();
            for &n_rows in sizes(&[2, 3, 64, 6, 8, 11, 25], 3) {
                let found: Vec<f32> = x.chunks(n_rows * n_in).flat_map(products).collect();
                assert!(found == alone, "{format:?} {isa} {n_rows}");
            }
        }
    }
}

/// Holds for every number of rows and every combination of formats.
#[test]
fn an_mlp_equals_its_layers_one_after_the_other() {
    let random = &mut StdRng::seed_from_u64(6);
    let (n_in, n_inner) = (256, if is_emulated() { 256 } else { 768 });
    for format in WeightFormat::ALL {
        for down_format in [format, Q4_1, F32] {
            let [gate, up] = [(); 2].map(|()| random_matrix(random, format, n_inner, n_in));
            let down = random_matrix(random, down_format, n_in, n_inner);
            let of = |matrix| WeightWithBias { matrix, bias: None };
            let inner = Projection::Gated { gate: of(&gate), up: of(&up), function: ActivationFn::Silu };
            let x = random_numbers(random, 20 * n_in);
            let weight = random_numbers(random, n_in);
            let norm = || Some(Norm::Rms { weight: &weight, eps: 1e-5 });
            for isa in isas_for(format) {
                for x in sizes(&[1, 7, 2, 8, 9, 20], 2).iter().map(|n_rows| &x[..n_rows * n_in]) {
                    let found = mlp(isa, x, norm(), &inner, of(&down).into());
                    let y = linear(isa, x, n_in, norm(), &inner, None);
                    let outer = Projection::Residual(of(&down).into());
                    let expected = linear(isa, &y, n_inner, None, &outer, Some(x));
                    // If both layers are bfloat16, the activations between them are too.
                    let is_near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-2 * (1.0 + b.abs());
                    let is_equal = if format == Bf16Pairs && down_format == Bf16Pairs {
                        found.iter().zip(&expected).all(is_near)
                    } else {
                        found == expected
                    };
                    assert!(is_equal, "{format:?} {down_format:?} {isa} {} rows", x.len() / n_in);
                }
            }
        }
    }
}

#[test]
fn nan_and_infinity_stay_in_their_row() {
    let random = &mut StdRng::seed_from_u64(3);
    for format in WeightFormat::ALL {
        let (n_in, n_out) = (256, 20);
        let matrix = random_matrix(random, format, n_out, n_in);
        for (isa, wrong) in
            isas_for(format).into_iter().flat_map(|isa| [f32::NAN, f32::INFINITY].map(|x| (isa, x)))
        {
            let mut x = random_numbers(random, 3 * n_in);
            x[n_in + 77] = wrong;
            let products = [WeightWithBias { matrix: &matrix, bias: None }];
            let found = linear(isa, &x, n_in, None, &Projection::Concat(&products), None);
            let (first, rest) = found.split_at(n_out);
            let (second, third) = rest.split_at(n_out);
            assert!(first.iter().chain(third).all(|y| y.is_finite()), "{format:?} {isa}");
            assert!(second.iter().all(|y| !y.is_finite()), "{format:?} {isa} {wrong}");
        }
    }
}

#[test]
fn tiny_and_huge_activations_keep_their_magnitude() {
    let random = &mut StdRng::seed_from_u64(4);
    let (n_in, n_out) = (64, 16);
    for format in [Q4_0, Q8_0, F16] {
        let matrix = random_matrix(random, format, n_out, n_in);
        let products = [WeightWithBias { matrix: &matrix, bias: None }];
        let x = random_numbers(random, n_in);
        for isa in isas() {
            let scaled = |factor: f32| {
                let x: Vec<f32> = x.iter().map(|x| x * factor).collect();
                linear(isa, &x, n_in, None, &Projection::Concat(&products), None)
            };
            let usual = scaled(1.0);
            let largest = usual.iter().fold(0f32, |largest, y| largest.max(y.abs()));
            for factor in [1e-30, 1e-10, 1e10, 1e30] {
                for (found, usual) in scaled(factor).iter().zip(&usual) {
                    assert!((found / factor - usual).abs() <= 1e-4 * largest, "{format:?} {isa} {factor}");
                }
            }
            assert!(scaled(0.0).iter().all(|&y| y == 0.0));
        }
    }
}

/// A KV cache of sequences that share no blocks.
struct TestKvCache {
    layout: KvLayout,
    free: Vec<KvBlock>,
    blocks: Vec<Vec<KvBlock>>,
}

impl TestKvCache {
    fn new(layout: KvLayout, n_sequences: usize) -> Self {
        Self { layout, free: Vec::new(), blocks: (0..n_sequences).map(|_| Vec::new()).collect() }
    }

    /// Makes room for the new tokens of each `(sequence, start, len)`.
    fn extend(&mut self, spans: &[(usize, usize, usize)]) -> Vec<SequenceKv<'_>> {
        for &(sequence, start, len) in spans {
            while self.blocks[sequence].len() * BLOCK_TOKENS < start + len {
                if self.free.is_empty() {
                    self.free = self.layout.allocate_blocks();
                }
                self.blocks[sequence].extend(self.free.pop());
            }
        }
        let mut sequences = Vec::new();
        for (idx, blocks) in self.blocks.iter_mut().enumerate() {
            if let Some(&(_, start, len)) = spans.iter().find(|span| span.0 == idx) {
                sequences.push(SequenceKv {
                    start,
                    len,
                    blocks: blocks.iter_mut().map(KvRef::Own).collect(),
                });
            }
        }
        sequences
    }
}

/// A token's attention depends on its sequence alone: not on prefill chunks, the rest of the batch or the
/// partition of the work.
#[test]
fn paged_attention_does_not_depend_on_chunks_or_batch() {
    let random = &mut StdRng::seed_from_u64(5);
    let lengths = [700, 33, 260];
    for format in [KvFormat::F32, KvFormat::F16, KvFormat::Int8] {
        for (n_heads, n_kv_heads, head_dim, window, shared_values) in [
            (9, 3, 64, None, false),
            (4, 4, 20, Some(40), false),
            (6, 1, 96, Some(300), false),
            (5, 1, 42, None, true),
        ] {
            let layout = KvLayout { n_layers: 2, n_kv_heads, head_dim, shared_values, format };
            let attention = PagedAttention {
                n_heads,
                layout,
                layer: 1,
                is_kv_shared: false,
                scale: 0.1,
                softcap: None,
                window,
                head_norms: None,
                rope: None,
                query_scales: None,
                sinks: None,
            };
            let row_len = attention.row_len();
            let inputs = lengths.map(|len| random_numbers(random, len * row_len));
            for isa in isas().into_iter().filter(|&isa| isa != Isa::Scalar || head_dim == 20) {
                // Each sequence in one chunk, alone.
                let whole: Vec<Vec<f32>> = inputs
                    .iter()
                    .enumerate()
                    .map(|(idx, input)| {
                        let mut kv_cache = TestKvCache::new(layout, lengths.len());
                        attention.forward(isa, input, &mut kv_cache.extend(&[(idx, 0, lengths[idx])]))
                    })
                    .collect();
                // All sequences together, in chunks, and token by token at the end.
                for chunk in [256, 61, 3] {
                    let mut kv_cache = TestKvCache::new(layout, lengths.len());
                    let mut found = vec![Vec::new(); lengths.len()];
                    while found.iter().zip(&whole).any(|(found, whole)| found.len() < whole.len()) {
                        let out_len = n_heads * head_dim;
                        let spans: Vec<(usize, usize, usize)> = (0..lengths.len())
                            .map(|idx| (idx, found[idx].len() / out_len, lengths[idx]))
                            .filter(|&(_, start, end)| start < end)
                            .map(|(idx, start, end)| {
                                let is_near_end = end - start <= 5 + chunk % 7;
                                let most = if is_near_end { 1 } else { end - start - 5 };
                                (idx, start, chunk.min(most))
                            })
                            .collect();
                        let qkv: Vec<f32> = spans
                            .iter()
                            .flat_map(|&(idx, start, len)| {
                                &inputs[idx][start * row_len..(start + len) * row_len]
                            })
                            .copied()
                            .collect();
                        let y = attention.forward(isa, &qkv, &mut kv_cache.extend(&spans));
                        let mut rest = &y[..];
                        for &(idx, _, len) in &spans {
                            let (own, others) = rest.split_at(len * out_len);
                            found[idx].extend_from_slice(own);
                            rest = others;
                        }
                    }
                    for (idx, (found, whole)) in found.iter().zip(&whole).enumerate() {
                        let differs = found.iter().zip(whole).position(|(a, b)| a != b);
                        assert_eq!(
                            differs.map(|at| at / (n_heads * head_dim)),
                            None,
                            "{format:?} {isa} {head_dim} sequence {idx} in chunks of {chunk}"
                        );
                    }
                }
            }
        }
    }
}

/// Values that are stored once with their keys give the bits that a copy of the keys gives.
#[test]
fn shared_values_equal_values_that_repeat_the_keys() {
    let random = &mut StdRng::seed_from_u64(6);
    let n_tokens = 300;
    for format in [KvFormat::F32, KvFormat::F16, KvFormat::Int8] {
        for (n_heads, n_kv_heads, head_dim) in [(3, 1, 42), (20, 1, 40), (6, 2, 16)] {
            let attend = |isa: Isa, shared_values: bool, qkv: &[f32]| {
                let layout = KvLayout { n_layers: 1, n_kv_heads, head_dim, shared_values, format };
                let attention = PagedAttention {
                    is_kv_shared: false,
                    n_heads,
                    layout,
                    layer: 0,
                    scale: 0.1,
                    softcap: None,
                    window: None,
                    head_norms: None,
                    rope: None,
                    query_scales: None,
                    sinks: None,
                };
                let mut kv_cache = TestKvCache::new(layout, 1);
                let (prompt, rest) = qkv.split_at((n_tokens - 2) * attention.row_len());
                let mut y = attention.forward(isa, prompt, &mut kv_cache.extend(&[(0, 0, n_tokens - 2)]));
                y.extend(attention.forward(isa, rest, &mut kv_cache.extend(&[(0, n_tokens - 2, 2)])));
                y
            };
            let shared = random_numbers(random, n_tokens * (n_heads + n_kv_heads) * head_dim);
            let repeated: Vec<f32> = shared
                .chunks((n_heads + n_kv_heads) * head_dim)
                .flat_map(|row| [row, &row[n_heads * head_dim..]].concat())
                .collect();
            for isa in isas() {
                let (found, expected) = (attend(isa, true, &shared), attend(isa, false, &repeated));
                assert!(found == expected, "{format:?} {isa} {n_heads} {head_dim}");
            }
        }
    }
}

/// Attention of one head of one text in float64, `[n_tokens, head_dim]`.
fn reference_attention(
    attention: &EncoderAttention,
    row: &dyn Fn(usize, usize) -> Vec<f32>,
    n: usize,
    head: usize,
) -> Vec<f64> {
    let product =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    (0..n)
        .flat_map(|query| {
            let is_visible =
                |key: &usize| attention.window.is_none_or(|window| key.abs_diff(query) <= window);
            let keys: Vec<usize> = (0..n).filter(is_visible).collect();
            let score = |&key: &usize| {
                let bias = attention.bias.map_or(0.0, |bias| {
                    let of_head = &bias.values[head * (2 * bias.max_distance + 1)..];
                    f64::from(of_head[bias.max_distance + key - query])
                });
                product(&row(query, 0), &row(key, 1)) * f64::from(attention.scale) + bias
            };
            let scores: Vec<f64> = keys.iter().map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let values: Vec<Vec<f32>> = keys.iter().map(|&key| row(key, 2)).collect();
            (0..attention.head_dim)
                .map(|i| weights.iter().zip(&values).map(|(w, v)| w * f64::from(v[i])).sum::<f64>() / sum)
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn encoder_attention_matches_the_reference() {
    let random = &mut StdRng::seed_from_u64(9);
    for (n_heads, head_dim, window, has_rope, has_bias) in [
        (3, 32, None, false, false),
        (2, 64, Some(5), true, false),
        (1, 20, None, true, true),
        (4, 8, Some(70), false, true),
        (2, 96, None, false, false),
    ] {
        let lengths = [1, 15, 16, 40, 130, 33, 7];
        let (n_tokens, hidden) = (lengths.iter().sum::<usize>(), n_heads * head_dim);
        let qkv = random_numbers(random, n_tokens * 3 * hidden);
        let n_pairs = head_dim / 2 - 1;
        let angles = random_numbers(random, n_tokens * n_pairs);
        let [cos, sin] = [f32::cos, f32::sin].map(|f| angles.iter().map(|&x| f(x)).collect::<Vec<f32>>());
        let max_distance = 140;
        let biases = random_numbers(random, n_heads * (2 * max_distance + 1));
        let attention = EncoderAttention {
            n_heads,
            head_dim,
            scale: 0.3,
            window,
            rope: has_rope.then_some(RopeTable { cos: &cos, sin: &sin, n_pairs }),
            bias: has_bias.then_some(RelativePositionBias { values: &biases, max_distance }),
            in_bf16: false,
        };
        let mut expected = vec![0.0; n_tokens * hidden];
        let mut first_row = 0;
        for n in lengths {
            for head in 0..n_heads {
                let row = |token: usize, third: usize| {
                    let place = ((first_row + token) * 3 + third) * hidden + head * head_dim;
                    let mut row = qkv[place..place + head_dim].to_vec();
                    if has_rope && third < 2 {
                        for i in 0..n_pairs {
                            let at = (first_row + token) * n_pairs + i;
                            let (a, b) = (row[i], row[n_pairs + i]);
                            row[i] = a * cos[at] - b * sin[at];
                            row[n_pairs + i] = b * cos[at] + a * sin[at];
                        }
                    }
                    row
                };
                for (idx, y) in reference_attention(&attention, &row, n, head).into_iter().enumerate() {
                    let (token, i) = (idx / head_dim, idx % head_dim);
                    expected[(first_row + token) * hidden + head * head_dim + i] = y;
                }
            }
            first_row += n;
        }
        for (isa, in_bf16) in isas().into_iter().flat_map(|isa| [(isa, false), (isa, true)]) {
            if in_bf16 && !isa.has_bf16() {
                continue;
            }
            let attention = EncoderAttention { in_bf16, ..attention };
            let found = attention.forward(isa, &qkv, &lengths);
            // Scores are sums of up to 96 products of numbers up to 2.
            let bound = if in_bf16 { 0.1 } else { 2e-5 };
            for (idx, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let difference = (f64::from(*found) - expected).abs();
                assert!(difference <= bound, "{isa} {in_bf16} {head_dim}, {idx}: {found} is not {expected}");
            }
            let mut first_row = 0;
            for n in lengths {
                let rows = first_row * hidden..(first_row + n) * hidden;
                if !has_rope {
                    let alone = attention.forward(isa, &qkv[3 * rows.start..3 * rows.end], &[n]);
                    assert!(alone == found[rows], "{isa}: a text's states depend on the others");
                }
                first_row += n;
            }
        }
    }
}
