//! `bench`: what the machine can do at most, and how much of that a model gets out of it.

use std::cell::RefCell;
use std::io::Write;
use std::time::Instant;

use serde::Serialize;

use crate::app::{kv_format, read_headers};
use crate::config::{BenchArgs, Limits, RegistryConfig, procfs_bytes};
use crate::error::{Error, Result};
use crate::kernels::attention::kv_block::{BLOCK_TOKENS, KvFormat};
use crate::kernels::isa::Isa;
use crate::kernels::{roofline, threads::pool};
use crate::models::decoder::{CausalLm, Cost};
use crate::models::profile::Op;
use crate::models::{Arithmetic, BlockId, BlockTable, Decoder, ForwardInput, KvStore, SequenceId};
use crate::registry::{ModelKind, Registry};

/// Tokens before those that several sequences decode.
const STREAM_DEPTH: usize = 128;

/// Each figure is the median of this many runs.
const RUNS: usize = 3;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    threads: usize,
    isa: String,
    limits: MeasuredLimits,
    load_s: f64,
    rss_mb: f64,
    prefill: Vec<Prefill>,
    decode: Vec<Decode>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct MeasuredLimits {
    /// Reading as many bytes as the model has weights.
    read_gb_s: f64,
    /// Projection of the instructions in use.
    matrix_tflop_s: f64,
}

impl MeasuredLimits {
    /// Seconds that reading takes.
    fn reading(&self, n_bytes: usize) -> f64 {
        n_bytes as f64 / (1e9 * self.read_gb_s)
    }

    /// Seconds that operations of products take.
    fn multiplying(&self, n_operations: f64) -> f64 {
        n_operations / (1e12 * self.matrix_tflop_s)
    }
}

#[derive(Debug, Serialize)]
struct Prefill {
    tokens: usize,
    tok_s: f64,
    /// Of the time that the products would take at the machine's limit.
    share: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profile: Vec<Part>,
}

#[derive(Debug, Serialize)]
struct Decode {
    streams: usize,
    depth: usize,
    /// All streams together.
    tok_s: f64,
    /// Of the time that reading weights, keys and values would take at the machine's limit, or the
    /// products where they take longer.
    share: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profile: Vec<Part>,
}

/// A part of a forward pass.
#[derive(Debug, Serialize)]
struct Part {
    op: String,
    /// Milliseconds of a run.
    ms: f64,
    /// Of the time that reading its matrices, or the products with them, would take at the machine's limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<f64>,
}

/// Measures and writes a table, or one JSON object, to `out`.
///
/// # Errors
/// When the model is not to be had, its context is shorter than what is asked for, or `out` is closed.
pub fn run(args: BenchArgs, out: &mut impl Write) -> Result<()> {
    let files =
        Registry::new(RegistryConfig::resolve(args.registry)?).resolve(&args.model, ModelKind::Chat)?;
    let isa = Isa::current();
    let start = Instant::now();
    let (config, weights) = read_headers(&files)?;
    let mut model = CausalLm::load(config, &weights, Arithmetic::Kernels(isa))?;
    let load_s = start.elapsed().as_secs_f64();
    let rss_mb = resident_bytes().unwrap_or_default() as f64 / 1e6;

    let costs = model.costs();
    let mut cost = Cost::default();
    costs.into_iter().for_each(|of_op| cost += of_op);
    let bench = Bench {
        cost,
        head: costs[Op::Head as usize],
        isa,
        measured: RefCell::default(),
        kv_format: kv_format(args.compute.kv_format),
        profiles: args.profile,
    };
    let most = model.config().context_length;
    let fits = |&n: &usize| (1..=most).contains(&n);
    let prefill = args
        .prompt
        .iter()
        .filter(|n| fits(n))
        .map(|&n_tokens| bench.prefill(&mut model, n_tokens))
        .collect::<Result<_>>()?;
    let several = args.streams.iter().map(|&n_streams| (n_streams, STREAM_DEPTH));
    let deep = args.depths.iter().map(|&depth| (1, depth));
    let decode = several
        .chain(deep)
        .filter(|(n_streams, depth)| *n_streams > 0 && fits(&(depth + args.tokens)))
        .map(|(n_streams, depth)| bench.decode(&mut model, n_streams, depth, args.tokens.max(1)))
        .collect::<Result<_>>()?;
    let report = Report {
        model: files.id.clone(),
        threads: pool::n_threads(),
        isa: isa.to_string(),
        limits: bench.limits(),
        load_s,
        rss_mb,
        prefill,
        decode,
    };
    let text = if args.json {
        serde_json::to_string(&report).map_err(|e| Error::internal(format!("cannot write JSON: {e}")))?
    } else {
        table(&report)
    };
    writeln!(out, "{text}").map_err(|e| Error::internal(format!("cannot print: {e}")))
}

/// The yardsticks for one model.
struct Bench {
    /// Of all operations, and of the head alone.
    cost: Cost,
    head: Cost,
    isa: Isa,
    /// The limits as they were around each run, since machines that are shared drift.
    measured: RefCell<Vec<MeasuredLimits>>,
    kv_format: KvFormat,
    profiles: bool,
}

impl Bench {
    /// Measures the limits.
    fn measure(&self) {
        self.measured.borrow_mut().push(MeasuredLimits {
            read_gb_s: roofline::read_bytes_per_second(self.isa, self.cost.weight_bytes) / 1e9,
            matrix_tflop_s: roofline::product_operations_per_second(self.isa) / 1e12,
        });
    }

    /// The seconds that `work` takes, the median of some runs, and the limits as they were before each and after
    /// the last: the yardstick.
    fn time(&self, mut work: impl FnMut() -> Result<()>) -> Result<(f64, MeasuredLimits)> {
        let n_before = self.measured.borrow().len();
        let mut times = Vec::new();
        for _ in 0..RUNS {
            self.measure();
            let start = Instant::now();
            work()?;
            times.push(start.elapsed().as_secs_f64());
        }
        self.measure();
        Ok((median(times), median_limits(&self.measured.borrow()[n_before..])))
    }

    /// The median of the limits measured so far.
    fn limits(&self) -> MeasuredLimits {
        if self.measured.borrow().is_empty() {
            self.measure();
        }
        median_limits(&self.measured.borrow())
    }

    fn prefill(&self, model: &mut CausalLm, n_tokens: usize) -> Result<Prefill> {
        model.profile().take();
        let mut kv = KvStore::new(model.config(), self.kv_format);
        let tables = [BlockId::run(0, n_tokens)];
        let (seconds, limits) = self.time(|| fill(model, &mut kv, SequenceId(0), &tables, n_tokens))?;
        let in_layers = self.cost.products - self.head.products;
        let operations = 2.0 * (in_layers * n_tokens + self.head.products) as f64;
        let n_passes = n_tokens.div_ceil(Limits::default().prefill_chunk_tokens);
        Ok(Prefill {
            tokens: n_tokens,
            tok_s: n_tokens as f64 / seconds,
            share: limits.multiplying(operations) / seconds,
            profile: self.parts(model, limits, n_passes, |op| if op == Op::Head { 1 } else { n_tokens }),
        })
    }

    fn decode(
        &self,
        model: &mut CausalLm,
        n_streams: usize,
        depth: usize,
        n_tokens: usize,
    ) -> Result<Decode> {
        let mut kv = KvStore::new(model.config(), self.kv_format);
        let n_blocks = (depth + n_tokens).div_ceil(BLOCK_TOKENS);
        let streams: Vec<(SequenceId, [BlockTable; 1])> = (0..n_streams)
            .map(|n| {
                let first = (n * n_blocks) as u32;
                (SequenceId(n as u64), [BlockId::run(first, n_blocks * BLOCK_TOKENS)])
            })
            .collect();
        for (id, tables) in &streams {
            fill(model, &mut kv, *id, tables, depth)?;
        }
        model.profile().take();
        let (seconds, limits) = self.time(|| {
            let mut last: Vec<u32> = vec![0; n_streams];
            for position in depth..depth + n_tokens {
                let mut input = ForwardInput::default();
                for ((id, tables), token) in streams.iter().zip(&last) {
                    input.push(*id, depth, position, tables, &[*token], 1);
                }
                let logits = model.forward(&mut kv, &input)?.argmax(1)?;
                last = logits.to_vec1()?;
            }
            Ok(())
        })?;
        let steps_per_second = n_tokens as f64 / seconds;
        let n_keys = n_streams * (depth + n_tokens / 2);
        let block_bytes: usize = KvStore::block_bytes(model.config(), self.kv_format).iter().sum();
        let kv_bytes = n_keys * block_bytes / BLOCK_TOKENS;
        let reading = limits.reading(self.cost.weight_bytes + kv_bytes);
        let multiplying = limits.multiplying(2.0 * (n_streams * self.cost.products) as f64);
        Ok(Decode {
            streams: n_streams,
            depth,
            tok_s: n_streams as f64 * steps_per_second,
            share: reading.max(multiplying) * steps_per_second,
            profile: self.parts(model, limits, n_tokens, |_| n_streams * n_tokens),
        })
    }

    /// Where the time of [`RUNS`] runs went, each of `n_passes` with `n_rows` in all.
    fn parts(
        &self,
        model: &CausalLm,
        limits: MeasuredLimits,
        n_passes: usize,
        n_rows: impl Fn(Op) -> usize,
    ) -> Vec<Part> {
        let parts = model.profile().take().into_iter().zip(model.costs());
        parts
            .filter(|((_, time), _)| self.profiles && !time.is_zero())
            .map(|((op, time), cost)| {
                let seconds = time.as_secs_f64() / RUNS as f64;
                let reading = limits.reading(cost.weight_bytes * n_passes);
                let multiplying = limits.multiplying(2.0 * (cost.products * n_rows(op)) as f64);
                let share = (cost.products > 0).then(|| reading.max(multiplying) / seconds);
                Part { op: format!("{op:?}"), ms: 1e3 * seconds, share }
            })
            .collect()
    }
}

/// Computes the first `n_tokens` tokens of a sequence, in chunks as the server does.
fn fill(
    model: &mut CausalLm,
    kv: &mut KvStore,
    id: SequenceId,
    tables: &[BlockTable],
    n_tokens: usize,
) -> Result<()> {
    // Any tokens take the same time.
    let n_vocab = model.config().n_vocab;
    let tokens: Vec<u32> = (0..n_tokens).map(|i| (i * 7919 % n_vocab) as u32).collect();
    let chunk_len = Limits::default().prefill_chunk_tokens;
    for (idx, chunk) in tokens.chunks(chunk_len).enumerate() {
        let start = idx * chunk_len;
        let mut input = ForwardInput::default();
        input.push(id, n_tokens, start, tables, chunk, usize::from(start + chunk.len() == n_tokens));
        model.forward(kv, &input)?;
    }
    Ok(())
}

fn median_limits(measured: &[MeasuredLimits]) -> MeasuredLimits {
    let of = |limit: fn(&MeasuredLimits) -> f64| median(measured.iter().map(limit).collect());
    MeasuredLimits {
        read_gb_s: of(|limits| limits.read_gb_s),
        matrix_tflop_s: of(|limits| limits.matrix_tflop_s),
    }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// Memory of this process, where the system tells.
fn resident_bytes() -> Option<usize> {
    procfs_bytes("/proc/self/status", "VmRSS:")
}

fn table(report: &Report) -> String {
    let Report { model, threads, isa, limits, load_s, rss_mb, .. } = report;
    let mut lines = vec![
        format!("{model}, {threads} threads, {isa}"),
        format!(
            "limits: reading {:.1} GB/s, products {:.2} TFLOP/s",
            limits.read_gb_s, limits.matrix_tflop_s
        ),
        format!("loaded in {load_s:.2} s, {rss_mb:.0} MB resident"),
        String::new(),
        format!("{:<8}{:>8}{:>8}{:>12}{:>10}", "", "streams", "tokens", "tokens/s", "of limit"),
    ];
    let mut line = |what: &str, streams: usize, tokens: usize, tok_s: f64, share: f64, profile: &[Part]| {
        lines.push(format!("{what:<8}{streams:>8}{tokens:>8}{tok_s:>12.1}{:>9.0}%", 100.0 * share));
        let total: f64 = profile.iter().map(|part| part.ms).sum();
        for Part { op, ms, share } in profile {
            let of_limit = share.map(|share| format!("{:>9.0}%", 100.0 * share)).unwrap_or_default();
            lines.push(format!("  {op:<14}{:>7.0}%{ms:>10.2} ms{of_limit}", 100.0 * ms / total));
        }
    };
    for Prefill { tokens, tok_s, share, profile } in &report.prefill {
        line("prefill", 1, *tokens, *tok_s, *share, profile);
    }
    for Decode { streams, depth, tok_s, share, profile } in &report.decode {
        line("decode", *streams, *depth, *tok_s, *share, profile);
    }
    lines.join("\n")
}
