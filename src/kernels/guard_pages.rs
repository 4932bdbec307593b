//! Guard-page tests: kernels neither read nor write past the end of their buffers. Every buffer ends at the
//! end of a page, and access to the next page crashes.

use super::attention::kv_block::{BLOCK_TOKENS, KvFormat, KvLayout};
use super::attention::{
    EncoderAttention, HeadNorms, KvRef, PagedAttention, RelativePositionBias, RopeTable, SequenceKv,
};
use super::isa::Isa;
use super::matmul::{ActivationFn, Projection, RoundedRows, WeightWithBias, linear, mlp, with_rounded_rows};
use super::memory::HugePageBuf;
use super::norm::Norm;
use super::weights::{PackedMatrix, WeightFormat};

/// Numbers that end at the end of a page.
struct GuardedNumbers(HugePageBuf);

impl GuardedNumbers {
    fn new(len: usize) -> Self {
        let mut bytes = HugePageBuf::zeroed(len * size_of::<f32>());
        for (idx, bytes) in bytes.chunks_exact_mut(size_of::<f32>()).enumerate() {
            let number = (idx * 7 % 23) as f32 / 8.0 - 1.0;
            bytes.copy_from_slice(&number.to_ne_bytes());
        }
        Self(bytes)
    }

    fn get(&self) -> &[f32] {
        // SAFETY: any bytes are valid float32, and `align_to` aligns the slice.
        let (before, numbers, after) = unsafe { self.0.align_to() };
        assert!(before.is_empty() && after.is_empty());
        numbers
    }
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

#[test]
fn matrix_products_stay_within_their_buffers() {
    for format in WeightFormat::ALL {
        let blocks: &[usize] = if format.block_len() == 1 { &[1, 33, 100] } else { &[1, 3] };
        for (n_in, n_out) in blocks.iter().flat_map(|n| [1, 17, 64].map(|out| (n * format.block_len(), out)))
        {
            let row = vec![0; n_in / format.block_len() * format.source_bytes()];
            let pack = || PackedMatrix::pack(format, n_out, n_in, |_| &row).unwrap();
            let (first, second) = (pack(), pack());
            let (weight, bias, of_out) =
                (GuardedNumbers::new(n_in), GuardedNumbers::new(n_in), GuardedNumbers::new(n_out));
            let gate = WeightWithBias { matrix: &first, bias: Some(of_out.get()) };
            let up = WeightWithBias { matrix: &second, bias: None };
            let norms = [
                None,
                Some(Norm::Rms { weight: weight.get(), eps: 1e-5 }),
                Some(Norm::Layer { weight: weight.get(), bias: bias.get(), eps: 1e-5 }),
            ];
            for n_rows in [1, 2, 7, 8, 9, 17] {
                let (x, residual) = (GuardedNumbers::new(n_rows * n_in), GuardedNumbers::new(n_rows * n_out));
                let isas = isas().filter(|isa| format != WeightFormat::Bf16Pairs || isa.has_bf16());
                for (isa, norm) in isas.flat_map(|isa| norms.map(|norm| (isa, norm))) {
                    linear(isa, x.get(), n_in, norm, &Projection::Concat(&[gate, up]), None);
                    linear(
                        isa,
                        x.get(),
                        n_in,
                        norm,
                        &Projection::Residual(gate.into()),
                        Some(residual.get()),
                    );
                    let rounded = RoundedRows::new(n_rows, std::iter::once(n_rows / 3..n_rows));
                    with_rounded_rows(rounded, || {
                        linear(isa, x.get(), n_in, norm, &Projection::Concat(&[gate, up]), None)
                    });
                    let gated = Projection::Gated { gate, up, function: ActivationFn::Silu };
                    linear(isa, x.get(), n_in, norm, &gated, None);
                    if n_in == n_out {
                        mlp(isa, x.get(), norm, &gated, gate.into());
                        mlp(isa, x.get(), norm, &Projection::Activated(up, ActivationFn::Gelu), gate.into());
                    }
                }
                let mut found = vec![0.0; n_in];
                first.dequantize_row(n_out - 1, &mut found);
            }
        }
    }
}

#[test]
fn paged_attention_stays_within_its_buffers() {
    let shapes =
        [(9, 3, 64, false), (4, 4, 20, false), (6, 1, 96, false), (2, 1, 8, false), (5, 1, 38, true)];
    for (format, (n_heads, n_kv_heads, head_dim, shared_values)) in
        [KvFormat::F32, KvFormat::F16, KvFormat::Int8]
            .into_iter()
            .flat_map(|format| shapes.map(|shape| (format, shape)))
    {
        let layout = KvLayout { n_layers: 2, n_kv_heads, head_dim, shared_values, format };
        let n_pairs = head_dim / 2 - 1;
        for (start, len) in [(0, 1), (0, 49), (15, 2), (16, 1), (300, 1), (47, 17)] {
            let head_norm = GuardedNumbers::new(head_dim);
            let (angles, scales) = (GuardedNumbers::new(len * n_pairs), GuardedNumbers::new(len));
            let sinks = GuardedNumbers::new(n_heads);
            let norm = head_norm.get();
            let attention = PagedAttention {
                n_heads,
                layout,
                layer: 1,
                is_kv_shared: false,
                scale: 0.1,
                softcap: Some(30.0),
                window: Some(200),
                head_norms: Some(HeadNorms { query: norm, key: norm, eps: 1e-5, after_rope: false }),
                rope: Some(RopeTable { cos: angles.get(), sin: angles.get(), n_pairs }),
                query_scales: Some(scales.get()),
                sinks: Some(sinks.get()),
            };
            let qkv = GuardedNumbers::new(len * attention.row_len());
            let n_blocks = (start + len).div_ceil(BLOCK_TOKENS);
            // The last layer of the last block of a slab ends at the end of a page.
            let mut slabs: Vec<_> = (0..n_blocks).map(|_| layout.allocate_blocks()).collect();
            for isa in isas() {
                let blocks =
                    slabs.iter_mut().filter_map(|blocks| blocks.last_mut()).map(KvRef::Own).collect();
                let mut sequences = [SequenceKv { start, len, blocks }];
                let y = attention.forward(isa, qkv.get(), &mut sequences);
                assert!(y.iter().all(|y| y.is_finite()), "{format:?} {isa} {head_dim} {start} {len}");
            }
        }
    }
}

#[test]
fn encoder_attention_stays_within_its_buffers() {
    for (n_heads, head_dim, window) in [(2, 64, None), (3, 20, Some(9)), (1, 8, None)] {
        for n_tokens in [1, 15, 16, 17, 49, 100] {
            let n_pairs = head_dim / 2 - 1;
            let (angles, biases) =
                (GuardedNumbers::new(n_tokens * n_pairs), GuardedNumbers::new(n_heads * (2 * n_tokens - 1)));
            let qkv = GuardedNumbers::new(n_tokens * 3 * n_heads * head_dim);
            for (isa, in_bf16) in isas().flat_map(|isa| [(isa, false), (isa, isa.has_bf16())]) {
                let attention = EncoderAttention {
                    n_heads,
                    head_dim,
                    scale: 0.1,
                    window,
                    rope: Some(RopeTable { cos: angles.get(), sin: angles.get(), n_pairs }),
                    bias: Some(RelativePositionBias { values: biases.get(), max_distance: n_tokens - 1 }),
                    in_bf16,
                };
                let y = attention.forward(isa, qkv.get(), &[n_tokens]);
                assert!(y.iter().all(|y| y.is_finite()), "{isa} {in_bf16} {head_dim} {n_tokens}");
            }
        }
    }
}
