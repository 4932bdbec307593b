//! `bench`: measures a model's speed and the share of the machine's limits that it reaches.

use std::cell::RefCell;
use std::io::Write;
use std::time::Instant;

use serde::Serialize;

use super::output::cannot_print;
use crate::app::{PrecisionRecord, hash_weights, kv_format, read_headers};
use crate::config::{BenchArgs, Limits, RegistryConfig, resident_bytes};
use crate::error::{Error, Result};
use crate::inference::divergence::{Divergence, ReferenceText};
use crate::kernels::attention::kv_block::{BLOCK_TOKENS, KvFormat};
use crate::kernels::isa::Isa;
use crate::kernels::{roofline, threads::pool};
use crate::models::decoder::{CausalLm, OpCost};
use crate::models::profile::ForwardOp;
use crate::models::{
    Backend, BlockId, BlockTable, Decoder, ForwardInput, SequenceChunk, SequenceId, SequenceStates, StateStep,
};
use crate::registry::{ModelKind, Registry};

/// Context tokens of each sequence when several decode at the same time.
const STREAM_DEPTH: usize = 128;

/// Runs of each measurement; the median is reported.
const N_RUNS: usize = 3;

/// The results; its JSON form is what `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    threads: usize,
    isa: String,
    prompt_activation_bits: u8,
    limits: MeasuredLimits,
    load_s: f64,
    rss_mb: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    divergence: Option<Divergence>,
    prefill: Vec<Prefill>,
    decode: Vec<Decode>,
}

/// The machine's limits: the roofline that results are compared with.
#[derive(Debug, Clone, Copy, Serialize)]
struct MeasuredLimits {
    /// Memory bandwidth, measured over as many bytes as the model's weights have.
    read_gb_s: f64,
    /// Throughput of the multiply instructions in use.
    matrix_tflop_s: f64,
}

impl MeasuredLimits {
    /// Seconds to read `n_bytes` at the limit.
    fn read_seconds(&self, n_bytes: usize) -> f64 {
        n_bytes as f64 / (1e9 * self.read_gb_s)
    }

    /// Seconds to compute `n_operations` at the limit.
    fn compute_seconds(&self, n_operations: f64) -> f64 {
        n_operations / (1e12 * self.matrix_tflop_s)
    }
}

/// The result of one prefill length.
#[derive(Debug, Serialize)]
struct Prefill {
    tokens: usize,
    tok_s: f64,
    /// Time of the matrix products at the machine's limit, as a share of the measured time.
    share: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profile: Vec<OpProfile>,
}

/// The result of one decode run.
#[derive(Debug, Serialize)]
struct Decode {
    streams: usize,
    depth: usize,
    /// Tokens per second of all streams together.
    tok_s: f64,
    /// Time at the machine's limit as a share of the measured time. The limit is reading the weights and the
    /// KV cache, or the matrix products where they take longer.
    share: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profile: Vec<OpProfile>,
}

/// The time of one operation of a forward pass.
#[derive(Debug, Serialize)]
struct OpProfile {
    op: String,
    /// Milliseconds per run.
    ms: f64,
    /// Time at the machine's limit, of reading the weights or of the matrix products, as a share of the
    /// measured time; `None` for operations without weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<f64>,
}

/// Runs the measurements and writes a table or one JSON object to `out`. Lengths that exceed the model's
/// context are skipped.
///
/// # Errors
/// When the model cannot be loaded, or `out` is closed.
pub fn run(args: BenchArgs, out: &mut impl Write) -> Result<()> {
    let reference = args.kl.as_deref().map(ReferenceText::read_all).transpose()?;
    let registry = Registry::new(RegistryConfig::resolve(args.registry)?);
    let files = registry.resolve(&args.model, ModelKind::Chat)?;
    let isa = Isa::current();
    let start = Instant::now();
    let (config, weights) = read_headers(&files)?;
    let mut model = CausalLm::load(config, &weights, Backend::Kernels(isa))?;
    let load_s = start.elapsed().as_secs_f64();
    let rss_mb = resident_bytes().unwrap_or_default() as f64 / 1e6;

    let rounded_prompts = PrecisionRecord::new(registry.cache_dir(), hash_weights(&files.main)?)
        .rounds_prompts(args.compute.activations, model.has_faster_rounded_prompts());

    let costs = model.costs();
    let mut cost = OpCost::default();
    costs.into_iter().for_each(|op_cost| cost += op_cost);
    let bench = Bench {
        cost,
        head: costs[ForwardOp::Head as usize],
        isa,
        measured: RefCell::default(),
        kv_format: kv_format(args.compute.kv_format),
        rounded_prompts,
        profile: args.profile,
    };
    let max_len = model.config().context_length;
    let fits = |&n: &usize| (1..=max_len).contains(&n);
    let prefill = args
        .prompt
        .iter()
        .filter(|n| fits(n))
        .map(|&n_tokens| bench.prefill(&mut model, n_tokens))
        .collect::<Result<_>>()?;
    let concurrent = args.streams.iter().map(|&n_streams| (n_streams, STREAM_DEPTH));
    let single = args.depths.iter().map(|&depth| (1, depth));
    let decode = concurrent
        .chain(single)
        .filter(|(n_streams, depth)| *n_streams > 0 && fits(&(depth + args.tokens)))
        .map(|(n_streams, depth)| bench.decode(&mut model, n_streams, depth, args.tokens.max(1)))
        .collect::<Result<_>>()?;
    let divergence = reference
        .map(|texts| Divergence::measure(&mut model, bench.kv_format, &texts, rounded_prompts))
        .transpose()?;
    let report = Report {
        model: files.id.clone(),
        threads: pool::n_threads(),
        isa: isa.to_string(),
        prompt_activation_bits: if rounded_prompts { 8 } else { 16 },
        limits: bench.limits(),
        load_s,
        rss_mb,
        divergence,
        prefill,
        decode,
    };
    let text = if args.json {
        serde_json::to_string(&report).map_err(|e| Error::internal(format!("cannot write JSON: {e}")))?
    } else {
        table(&report)
    };
    writeln!(out, "{text}").map_err(cannot_print)
}

/// The state that all measurements of one model share.
struct Bench {
    /// OpCost of all operations per token.
    cost: OpCost,
    /// OpCost of the language model head alone.
    head: OpCost,
    isa: Isa,
    /// Limits measured around each run, since the speed of shared machines drifts.
    measured: RefCell<Vec<MeasuredLimits>>,
    kv_format: KvFormat,
    /// Whether activations of prompts are rounded to 8 bits.
    rounded_prompts: bool,
    /// Whether to break results down by operation.
    profile: bool,
}

impl Bench {
    /// Measures the machine's limits now.
    fn measure_limits(&self) {
        self.measured.borrow_mut().push(MeasuredLimits {
            read_gb_s: roofline::read_bytes_per_second(self.isa, self.cost.weight_bytes) / 1e9,
            matrix_tflop_s: roofline::matmul_ops_per_second(self.isa, self.rounded_prompts) / 1e12,
        });
    }

    /// Returns the median time of `work` in seconds, and the median of the limits measured before each run and
    /// after the last.
    fn time(&self, mut work: impl FnMut() -> Result<()>) -> Result<(f64, MeasuredLimits)> {
        let n_before = self.measured.borrow().len();
        let mut times = Vec::new();
        for _ in 0..N_RUNS {
            self.measure_limits();
            let start = Instant::now();
            work()?;
            times.push(start.elapsed().as_secs_f64());
        }
        self.measure_limits();
        Ok((median(times), median_limits(&self.measured.borrow()[n_before..])))
    }

    /// The median of the limits measured so far.
    fn limits(&self) -> MeasuredLimits {
        if self.measured.borrow().is_empty() {
            self.measure_limits();
        }
        median_limits(&self.measured.borrow())
    }

    /// Prefills `n_tokens` tokens of a sequence, in chunks as the server does.
    fn fill(
        &self,
        model: &mut CausalLm,
        states: &mut SequenceStates,
        id: SequenceId,
        tables: &[BlockTable],
        n_tokens: usize,
    ) -> Result<()> {
        // The time does not depend on the token ids.
        let n_vocab = model.config().n_vocab;
        let tokens: Vec<u32> = (0..n_tokens).map(|i| (i * 7919 % n_vocab) as u32).collect();
        let chunk_len = Limits::default().prefill_chunk_tokens;
        for (idx, chunk) in tokens.chunks(chunk_len).enumerate() {
            let start = idx * chunk_len;
            let mut input = ForwardInput::default();
            input.push(SequenceChunk {
                sequence: id,
                n_prompt: n_tokens,
                n_rounded: if self.rounded_prompts { n_tokens - 1 } else { 0 },
                start,
                tables,
                state: Some(&state(id)),
                token_ids: chunk,
                n_logits: usize::from(start + chunk.len() == n_tokens),
            });
            model.forward(states, &input)?;
        }
        Ok(())
    }

    fn prefill(&self, model: &mut CausalLm, n_tokens: usize) -> Result<Prefill> {
        model.profile().take_times();
        let mut states = SequenceStates::new(model.config(), self.kv_format);
        let tables = [BlockId::consecutive(0, n_tokens)];
        let (seconds, limits) =
            self.time(|| self.fill(model, &mut states, SequenceId(0), &tables, n_tokens))?;
        let in_layers = self.cost.macs - self.head.macs;
        let operations = 2.0 * (in_layers * n_tokens + self.head.macs) as f64;
        let n_passes = n_tokens.div_ceil(Limits::default().prefill_chunk_tokens);
        Ok(Prefill {
            tokens: n_tokens,
            tok_s: n_tokens as f64 / seconds,
            share: limits.compute_seconds(operations) / seconds,
            profile: self.profile(
                model,
                limits,
                n_passes,
                |op| if op == ForwardOp::Head { 1 } else { n_tokens },
            ),
        })
    }

    fn decode(
        &self,
        model: &mut CausalLm,
        n_streams: usize,
        depth: usize,
        n_tokens: usize,
    ) -> Result<Decode> {
        let mut states = SequenceStates::new(model.config(), self.kv_format);
        let n_blocks = (depth + n_tokens).div_ceil(BLOCK_TOKENS);
        let streams: Vec<(SequenceId, [BlockTable; 1])> = (0..n_streams)
            .map(|n| {
                let first = (n * n_blocks) as u32;
                (SequenceId(n as u64), [BlockId::consecutive(first, n_blocks * BLOCK_TOKENS)])
            })
            .collect();
        for (id, tables) in &streams {
            self.fill(model, &mut states, *id, tables, depth)?;
        }
        model.profile().take_times();
        let (seconds, limits) = self.time(|| {
            let mut last: Vec<u32> = vec![0; n_streams];
            for position in depth..depth + n_tokens {
                let mut input = ForwardInput::default();
                for ((id, tables), token) in streams.iter().zip(&last) {
                    input.push(SequenceChunk {
                        sequence: *id,
                        n_prompt: depth,
                        n_rounded: 0,
                        start: position,
                        tables,
                        state: Some(&state(*id)),
                        token_ids: &[*token],
                        n_logits: 1,
                    });
                }
                let logits = model.forward(&mut states, &input)?.argmax(1)?;
                last = logits.to_vec1()?;
            }
            Ok(())
        })?;
        let steps_per_second = n_tokens as f64 / seconds;
        let n_keys = n_streams * (depth + n_tokens / 2);
        let block_bytes: usize = model.config().kv_block_bytes(self.kv_format).iter().sum();
        let kv_bytes = n_keys * block_bytes / BLOCK_TOKENS;
        let read_s = limits.read_seconds(self.cost.weight_bytes + kv_bytes);
        let compute_s = limits.compute_seconds(2.0 * (n_streams * self.cost.macs) as f64);
        Ok(Decode {
            streams: n_streams,
            depth,
            tok_s: n_streams as f64 * steps_per_second,
            share: read_s.max(compute_s) * steps_per_second,
            profile: self.profile(model, limits, n_tokens, |_| n_streams * n_tokens),
        })
    }

    /// Splits the time of [`N_RUNS`] runs by operation. Each run has `n_passes` forward passes, with
    /// `n_rows` rows in all.
    fn profile(
        &self,
        model: &CausalLm,
        limits: MeasuredLimits,
        n_passes: usize,
        n_rows: impl Fn(ForwardOp) -> usize,
    ) -> Vec<OpProfile> {
        let ops = model.profile().take_times().into_iter().zip(model.costs());
        ops.filter(|((_, time), _)| self.profile && !time.is_zero())
            .map(|((op, time), cost)| {
                let seconds = time.as_secs_f64() / N_RUNS as f64;
                let read_s = limits.read_seconds(cost.weight_bytes * n_passes);
                let compute_s = limits.compute_seconds(2.0 * (cost.macs * n_rows(op)) as f64);
                let share = (cost.macs > 0).then(|| read_s.max(compute_s) / seconds);
                OpProfile { op: format!("{op:?}"), ms: 1e3 * seconds, share }
            })
            .collect()
    }
}

/// The recurrent state of a sequence, in a slot of its own.
fn state(id: SequenceId) -> StateStep {
    StateStep { slot: BlockId(id.0 as u32), ..StateStep::default() }
}

fn median_limits(measured: &[MeasuredLimits]) -> MeasuredLimits {
    let median_of = |limit: fn(&MeasuredLimits) -> f64| median(measured.iter().map(limit).collect());
    MeasuredLimits {
        read_gb_s: median_of(|limits| limits.read_gb_s),
        matrix_tflop_s: median_of(|limits| limits.matrix_tflop_s),
    }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// One result as lines of the table.
struct TableRow<'a> {
    phase: &'static str,
    streams: usize,
    context: usize,
    tok_s: f64,
    share: f64,
    profile: &'a [OpProfile],
}

impl TableRow<'_> {
    fn write(&self, lines: &mut Vec<String>) {
        let Self { phase, streams, context, tok_s, share, profile } = self;
        lines.push(format!("{phase:<8}{streams:>8}{context:>8}{tok_s:>12.1}{:>9.0}%", 100.0 * share));
        let total: f64 = profile.iter().map(|op| op.ms).sum();
        for OpProfile { op, ms, share } in *profile {
            let of_limit = share.map(|share| format!("{:>9.0}%", 100.0 * share)).unwrap_or_default();
            lines.push(format!("  {op:<14}{:>7.0}%{ms:>10.2} ms{of_limit}", 100.0 * ms / total));
        }
    }
}

fn table(report: &Report) -> String {
    let Report { model, threads, isa, prompt_activation_bits, limits, load_s, rss_mb, divergence, .. } =
        report;
    let mut lines = vec![
        format!(
            "{model}, {threads} threads, {isa} kernels, {prompt_activation_bits}-bit activations of prompts"
        ),
        format!(
            "machine limits: memory reads {:.1} GB/s, matrix products {:.2} TFLOP/s",
            limits.read_gb_s, limits.matrix_tflop_s
        ),
        format!("loaded in {load_s:.2} s, {rss_mb:.0} MB resident"),
    ];
    if let Some(Divergence { positions, mean_kl, largest_kl, top_1 }) = divergence {
        lines.push(format!(
            "KL from the reference: mean {mean_kl:.2e}, largest {largest_kl:.2e}; most likely token the same in {:.1}% of {positions}",
            100.0 * top_1
        ));
    }
    lines.push(String::new());
    let header =
        format!("{:<8}{:>8}{:>8}{:>12}{:>10}", "phase", "streams", "context", "tokens/s", "of limit");
    lines.push(header);
    let prefill = report.prefill.iter().map(|row| TableRow {
        phase: "prefill",
        streams: 1,
        context: row.tokens,
        tok_s: row.tok_s,
        share: row.share,
        profile: &row.profile,
    });
    let decode = report.decode.iter().map(|row| TableRow {
        phase: "decode",
        streams: row.streams,
        context: row.depth,
        tok_s: row.tok_s,
        share: row.share,
        profile: &row.profile,
    });
    prefill.chain(decode).for_each(|row| row.write(&mut lines));
    lines.join("\n")
}
