//! The scheduler of continuous batching: which tokens the next batch computes, and in which blocks of the paged
//! KV cache. Pure: tokens and ids in, a [`Batch`] out; it holds no tensor, clock, channel or text.
//!
//! Every step mixes decodes with bounded chunks of prefill. A sequence decodes when only its newest token is left to
//! compute. The rest of the batch's token budget goes to prompts, round robin: a long
//! prompt lets the next one go first after each full chunk. While any sequence decodes, the budget is small, so that
//! decodes do not stutter. Before a chunk is computed, the prefix cache is searched for blocks that any earlier or
//! concurrent sequence has computed.
//!
//! Sequences start in order of arrival. Among several tenants the one with the fewest running sequences goes first,
//! unless a waiting sequence has been overtaken too often. When blocks run out, the newest sequence is preempted: it
//! gives its blocks back and is recomputed later. Tokens already emitted are kept.
//!
//! Background sequences, for which nobody waits, are computed only while no other sequence runs, and give up their
//! places and blocks for those.
//!
//! A sequence whose context is full may continue without the middle of its past ([`ContextShift`]). Blocks that have
//! left the attention window of their layers are released.
//!
//! With speculative decoding, draft tokens ride along with the decodes as long as they are worth their cost.
//!
//! Models with recurrent layers have a state of fixed size for each sequence, in a slot. Snapshots of it are kept in the
//! prefix cache, and a look-up ends at a prefix that has one; blocks and snapshots of a prefix are evicted together.
//!
//! The tokens of a prompt can be scored: then the rows before them have logits, and none of these rows comes from the
//! prefix cache. Texts that may follow a prompt (continuations) are computed one after the other in the same slots of
//! the KV cache, as draft tokens are that turn out to be wrong. A batch has a bounded number of rows of both kinds.

use std::collections::VecDeque;
use std::sync::Arc;

use super::block_pool::BlockPool;
use super::prefix_cache::{BlockContents, PrefixId, PrefixIndex, PrefixParent};
use super::prompt_lookup::{DraftCostModel, PromptLookup};
use crate::models::{BLOCK_TOKENS, BlockId, BlockTable, SequenceId, StateStep, window_start};

/// Prompt tokens that a batch computes for each sequence that decodes. They make a decode take a few times as long as
/// it takes alone.
const PROMPT_TOKENS_PER_DECODE: usize = 4;

/// Prompt tokens that a batch computes however few sequences decode.
const MIN_PROMPT_TOKENS: usize = 32;

/// Prompts of at most this length are computed in one chunk even while others decode: they are done sooner, and a
/// token takes less time in a large batch.
const SHORT_PROMPT_TOKENS: usize = 128;

/// Tokens between two snapshots of the recurrent state of a long sequence; whole blocks.
const SNAPSHOT_INTERVAL: usize = 512;

/// Most rows of a batch that score given tokens, and most tokens of a continuation. Each such row has the logits of the
/// whole vocabulary: 128 of 150,000 tokens take 77 MB.
pub const MAX_SCORED_ROWS: usize = 128;

/// Prompt tokens of a batch of background sequences: another sequence that arrives waits for the end of the batch.
const BACKGROUND_PREFILL_CHUNK: usize = 128;

/// How urgent a sequence is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// It is computed while no interactive sequence is.
    Background,
}

/// Bounds of a scheduler.
#[derive(Debug, Clone)]
pub struct SchedulerOptions {
    /// Sequences that run at once.
    pub max_running: usize,
    /// Prompt tokens of a batch, and of a sequence before the next one's turn.
    pub prefill_chunk: usize,
    /// KV cache blocks of each group of layers; the group with the largest window first.
    pub groups: Vec<BlockGroup>,
    /// Slots for recurrent states, snapshots included; none for models without recurrent layers.
    pub n_state_slots: usize,
    /// Whether draft tokens are computed (speculative decoding).
    pub speculative: bool,
    /// Whether activations of prompts are rounded to 8 bits: those of all tokens but the last. Prompts that are scored
    /// are computed without.
    pub rounded_prompts: bool,
    /// The way to continue sequences that outgrow the context; `None` if they must not.
    pub context_shift: Option<ContextShift>,
}

/// The KV cache blocks of the layers with one attention window.
#[derive(Debug, Clone, Copy)]
pub struct BlockGroup {
    /// Blocks of the group, all sequences together.
    pub n_blocks: usize,
    /// Tokens that a query attends to, its own included; `None` for all.
    pub window: Option<usize>,
}

impl BlockGroup {
    /// Most blocks that one sequence ever holds at once, however long it is: those within the window, and those that
    /// a chunk of `prefill_chunk` tokens is written to.
    pub fn max_blocks_per_sequence(window: Option<usize>, prefill_chunk: usize) -> usize {
        let with_window =
            |window: usize| window.div_ceil(BLOCK_TOKENS) + prefill_chunk.div_ceil(BLOCK_TOKENS) + 2;
        window.map_or(usize::MAX, with_window)
    }
}

/// The cut of a sequence that is longer than the context. Its first tokens stay as attention sinks (Xiao and others,
/// "Efficient Streaming Language Models with Attention Sinks", 2023), and its end. Everything that stays is
/// recomputed, because every token has attended to those that go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextShift {
    /// Most tokens of a sequence.
    pub context_length: usize,
}

impl ContextShift {
    /// First tokens that stay.
    const N_SINK_TOKENS: usize = 4;

    /// The numbers of tokens that stay at the beginning and at the end: half a context together.
    pub fn n_kept(&self) -> (usize, usize) {
        let n_first = Self::N_SINK_TOKENS.min(self.context_length / 4);
        (n_first, self.context_length / 2 - n_first)
    }
}

/// A sequence to be computed.
#[derive(Debug, Clone)]
pub struct NewSequence {
    /// Its id, unique among all sequences of the scheduler.
    pub id: SequenceId,
    /// Its first tokens; at least one.
    pub prompt: Vec<u32>,
    /// The client's prediction of the completion, a source of draft tokens.
    pub prediction: Vec<u32>,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Whether the rows before all tokens of the prompt need logits.
    pub is_scored: bool,
    /// Numbers of prompt tokens after which other prompts may differ, such as the ends of messages: snapshots of the
    /// recurrent state are taken there.
    pub borders: Vec<usize>,
    /// Texts to be computed after the prompt, each by itself, in place of generated tokens; each of 1 to
    /// [`MAX_SCORED_ROWS`] tokens.
    pub continuations: Arc<[Vec<u32>]>,
    /// The sender; tenants get equal shares.
    pub tenant: Arc<str>,
    /// Its urgency.
    pub priority: Priority,
    /// The namespace of the prefix cache: only sequences of one namespace share blocks.
    pub cache_namespace: Arc<str>,
}

/// A prompt and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnsweredText {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// How many of them are the prompt.
    pub n_prompt: usize,
    /// The sender.
    pub tenant: Arc<str>,
    /// The namespace of the prefix cache.
    pub cache_namespace: Arc<str>,
}

impl AnsweredText {
    /// The text as a prompt without an answer.
    pub fn as_prompt(&self, id: SequenceId) -> NewSequence {
        NewSequence {
            id,
            borders: vec![self.tokens.len()],
            prompt: self.tokens.clone(),
            prediction: Vec::new(),
            max_tokens: 0,
            is_scored: false,
            continuations: [].into(),
            tenant: self.tenant.clone(),
            priority: Priority::Background,
            cache_namespace: self.cache_namespace.clone(),
        }
    }
}

/// Decides what each batch computes.
#[derive(Debug)]
pub struct Scheduler {
    options: SchedulerOptions,
    kv: KvBlocks,
    draft_cost: DraftCostModel,
    /// Oldest first, preempted ones before all others.
    waiting: VecDeque<Sequence>,
    /// By rank: background ones last, oldest first.
    running: Vec<Sequence>,
    /// Round-robin cursor: the rank of the last sequence whose prefill turn ended.
    prefill_cursor: (Priority, u64),
    n_added: u64,
    n_preempted: u64,
}

#[derive(Debug)]
struct Sequence {
    id: SequenceId,
    /// Its number in order of arrival, from 1.
    arrival: u64,
    priority: Priority,
    tenant: Arc<str>,
    cache_namespace: Arc<str>,
    /// The prompt and the generated tokens.
    tokens: Vec<u32>,
    n_prompt: usize,
    /// The number of its first tokens whose activations are rounded.
    n_rounded: usize,
    n_generated: usize,
    max_tokens: usize,
    /// Position of the first row that is still needed to score the prompt; the largest number if none is.
    scored_from: usize,
    continuations: Arc<[Vec<u32>]>,
    /// Continuations that were computed.
    n_continued: usize,
    lookup: PromptLookup,
    /// Tokens whose keys and values are in the KV cache, or will be after the current batch.
    n_computed: usize,
    /// Draft tokens after them whose keys and values are there as well.
    computed_drafts: Vec<u32>,
    /// Its blocks in each group of layers.
    tables: Vec<GroupTable>,
    /// Its recurrent state, in models with recurrent layers.
    state: SequenceSlots,
    /// Numbers of blocks of the prompt after which its state is kept.
    snapshot_blocks: Vec<usize>,
    /// Full blocks that are in the prefix cache.
    n_cached_blocks: usize,
    /// The prefix that ends with the last of them.
    prefix: PrefixParent,
    /// Prompt tokens computed since its prefill turn began.
    chunk_tokens_used: usize,
    /// Prompt tokens that it found in the prefix cache when it started.
    n_cached_tokens: usize,
    /// Whether any of it was ever computed.
    has_started: bool,
    /// Later arrivals that started before it.
    n_overtaken: usize,
}

/// A sequence's block table in a group of layers.
#[derive(Debug, Clone, Default)]
struct GroupTable {
    blocks: BlockTable,
    /// Blocks at its beginning that have left the attention window and are released.
    n_out_of_window: usize,
}

/// The slots of a sequence for recurrent states.
#[derive(Debug, Default)]
struct SequenceSlots {
    /// The slot of its own state, from its first chunk on.
    own: Option<BlockId>,
    /// A snapshot that the next batch copies to it.
    restored_from: Option<BlockId>,
    /// Accepted drafts that the state has not taken in.
    n_replayed: usize,
    /// Snapshots to be put into the prefix cache once their block is: numbers of tokens, and slots.
    snapshots: Vec<(usize, BlockId)>,
    /// The newest snapshot of generated tokens, and the prefix that ends there, once it is known. It is put into the
    /// prefix cache when the sequence ends.
    newest: Option<(usize, BlockId, Option<PrefixId>)>,
}

impl SequenceSlots {
    /// All slots that the sequence holds.
    fn all(&self) -> Vec<BlockId> {
        let newest = self.newest.map(|(_, slot, _)| slot);
        let snapshots = self.snapshots.iter().map(|(_, slot)| *slot);
        [self.own, self.restored_from, newest].into_iter().flatten().chain(snapshots).collect()
    }
}

/// The blocks of the KV cache, in all groups of layers, and the prefix cache over them.
#[derive(Debug)]
struct KvBlocks {
    prefixes: PrefixIndex,
    pools: Vec<BlockPool>,
    windows: Vec<Option<usize>>,
    /// The slots for recurrent states, in models with recurrent layers.
    states: Option<BlockPool>,
}

impl KvBlocks {
    /// Allocates a block of a group; `None` if all are in use.
    fn allocate(&mut self, group: usize) -> Option<BlockId> {
        let allocation = self.pools[group].allocate()?;
        // The index follows the first group; the others may hold fewer of its prefixes.
        if let Some(prefix) = allocation.evicted.filter(|_| group == 0) {
            self.prefixes.evict(prefix);
            if let Some(states) = &mut self.states {
                states.evict(prefix);
            }
        }
        Some(allocation.id)
    }

    /// Allocates a slot for a recurrent state; `None` if all are in use.
    fn allocate_state(&mut self) -> Option<BlockId> {
        Some(self.states.as_mut()?.allocate()?.id)
    }

    /// Releases slots for recurrent states.
    fn release_states(&mut self, slots: impl IntoIterator<Item = BlockId>) {
        if let Some(states) = &mut self.states {
            slots.into_iter().for_each(|slot| states.release(std::iter::once(slot)));
        }
    }

    /// Puts a snapshot into the prefix cache.
    fn cache_state(&mut self, slot: BlockId, prefix: PrefixId) {
        if let Some(states) = &mut self.states {
            states.cache(slot, prefix);
        }
        self.release_states([slot]);
    }

    /// The first block that the query at `position` attends to in a group.
    fn first_in_window(&self, group: usize, position: usize) -> usize {
        window_start(position, self.windows[group]) / BLOCK_TOKENS
    }

    /// How many of `prefixes`, which extend a sequence of `n_before` blocks, can be reused: the most for which every
    /// group still holds all blocks within the window of the next token, and there is a snapshot of the recurrent state.
    fn n_reusable(&self, n_before: usize, prefixes: &[PrefixId]) -> usize {
        // For each group, how many blocks in a row are cached up to here.
        let mut runs = vec![0; self.pools.len()];
        let mut n_reusable = 0;
        for (idx, &prefix) in prefixes.iter().enumerate() {
            let n = idx + 1;
            let mut is_reusable = self.states.as_ref().is_none_or(|states| states.is_cached(prefix));
            for (group, run) in runs.iter_mut().enumerate() {
                *run = if self.pools[group].is_cached(prefix) { *run + 1 } else { 0 };
                let first = self.first_in_window(group, (n_before + n) * BLOCK_TOKENS);
                is_reusable &= *run + first.saturating_sub(n_before) >= n;
            }
            if is_reusable {
                n_reusable = n;
            }
        }
        n_reusable
    }
}

/// The work of one step.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// At most one entry for each running sequence: decodes first, then prefill chunks.
    pub sequences: Vec<ScheduledSeq>,
}

/// The tokens of one sequence that a batch computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduledSeq {
    /// The sequence.
    pub id: SequenceId,
    /// Length of the sequence's prompt.
    pub n_prompt: usize,
    /// The number of the sequence's first tokens whose activations are rounded to 8 bits.
    pub n_rounded: usize,
    /// Position of the first token.
    pub start: usize,
    /// The tokens, drafts included.
    pub tokens: Vec<u32>,
    /// All blocks of the sequence, in each group of layers.
    pub block_tables: Vec<BlockTable>,
    /// The steps of its recurrent state, in models with recurrent layers.
    pub state: Option<StateStep>,
    /// How many of the last tokens are draft tokens.
    pub n_drafts: usize,
    /// Rows that score the prompt: the last ones, or the last before those of [`ScheduledSeq::needs_logits`].
    pub n_scored: usize,
    /// Whether a token is to be sampled after the last of the others. So it is with the tokens of a continuation, all but
    /// the first of which count as drafts.
    pub needs_logits: bool,
}

impl ScheduledSeq {
    /// Rows of logits that it needs: those that score the prompt, one after the last token that is not a draft, and one
    /// after each draft.
    pub fn n_logits(&self) -> usize {
        self.n_scored + if self.needs_logits { 1 + self.n_drafts } else { 0 }
    }
}

/// How busy a scheduler is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SchedulerLoad {
    /// Sequences that run.
    pub n_running: usize,
    /// Sequences that wait, preempted ones included.
    pub n_waiting: usize,
    /// Tokens of the waiting sequences.
    pub n_waiting_tokens: usize,
    /// Blocks of the group of layers with the largest window.
    pub n_blocks: usize,
    /// How many of them running sequences hold.
    pub n_used_blocks: usize,
    /// Share of the blocks that running sequences hold, in the group of layers that has the fewest left.
    pub kv_usage: f64,
    /// Preemptions since the start.
    pub n_preempted: u64,
}

impl SchedulerLoad {
    /// Tokens that the KV cache has room for.
    pub fn capacity_tokens(&self) -> usize {
        self.n_blocks * BLOCK_TOKENS
    }

    /// Tokens that the blocks of running sequences have room for.
    pub fn used_tokens(&self) -> usize {
        self.n_used_blocks * BLOCK_TOKENS
    }
}

impl Scheduler {
    /// A scheduler without sequences, whose blocks are all free.
    pub fn new(options: SchedulerOptions) -> Self {
        Self {
            kv: KvBlocks {
                prefixes: PrefixIndex::default(),
                pools: options.groups.iter().map(|group| BlockPool::new(group.n_blocks)).collect(),
                windows: options.groups.iter().map(|group| group.window).collect(),
                states: (options.n_state_slots > 0).then(|| BlockPool::new(options.n_state_slots)),
            },
            options,
            draft_cost: DraftCostModel::default(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            prefill_cursor: (Priority::Interactive, 0),
            n_added: 0,
            n_preempted: 0,
        }
    }

    /// Queues a sequence, which must never need more blocks than there are.
    pub fn add(&mut self, new: NewSequence) {
        let NewSequence {
            id,
            prompt,
            prediction,
            max_tokens,
            is_scored,
            mut borders,
            continuations,
            tenant,
            priority,
            cache_namespace,
        } = new;
        self.n_added += 1;
        // The last token is always computed, so a look-up ends before it.
        borders.push(prompt.len() - 1);
        self.waiting.push_back(Sequence {
            id,
            arrival: self.n_added,
            priority,
            tenant,
            n_prompt: prompt.len(),
            n_rounded: if self.options.rounded_prompts && !is_scored { prompt.len() - 1 } else { 0 },
            tokens: prompt,
            n_generated: 0,
            max_tokens,
            scored_from: if is_scored { 0 } else { usize::MAX },
            continuations,
            n_continued: 0,
            lookup: PromptLookup::new(prediction),
            n_computed: 0,
            computed_drafts: Vec::new(),
            tables: vec![GroupTable::default(); self.options.groups.len()],
            state: SequenceSlots::default(),
            snapshot_blocks: borders.into_iter().map(|n_tokens| n_tokens / BLOCK_TOKENS).collect(),
            n_cached_blocks: 0,
            prefix: PrefixParent::Namespace(cache_namespace.clone()),
            cache_namespace,
            chunk_tokens_used: 0,
            n_cached_tokens: 0,
            has_started: false,
            n_overtaken: 0,
        });
    }

    /// Appends sampled tokens to a sequence: the accepted draft tokens and the new one after them. If they do not fit
    /// the context, the sequence continues without the middle of its past.
    ///
    /// A sequence to which nothing is appended after a batch with its last token sits out until then; meanwhile it may
    /// be preempted.
    pub fn append(&mut self, id: SequenceId, tokens: &[u32]) {
        let mut sequences = self.running.iter_mut().chain(&mut self.waiting);
        let Some(sequence) = sequences.find(|sequence| sequence.id == id) else { return };
        sequence.tokens.extend(tokens);
        sequence.n_generated += tokens.len();
        let drafts = std::mem::take(&mut sequence.computed_drafts);
        let accepted = &tokens[..tokens.len().saturating_sub(1)];
        let n_accepted = accepted.iter().zip(&drafts).take_while(|(token, draft)| token == draft).count();
        sequence.n_computed += n_accepted;
        sequence.state.n_replayed = n_accepted;
        let shift = self.options.context_shift;
        if let Some(shift) = shift.filter(|shift| sequence.tokens.len() > shift.context_length) {
            let (n_first, n_last) = shift.n_kept();
            sequence.release_blocks(&mut self.kv);
            sequence.tokens.drain(n_first..sequence.tokens.len() - n_last);
            sequence.n_rounded = sequence.n_rounded.min(sequence.tokens.len() - 1);
            sequence.lookup = PromptLookup::default();
        }
    }

    /// Records the duration of a batch, from which the cost of draft tokens is learned.
    pub fn record_duration(&mut self, batch: &Batch, seconds: f64) {
        if batch.sequences.iter().all(|scheduled| scheduled.tokens.len() == scheduled.n_logits()) {
            self.draft_cost.record(batch.sequences.iter().map(ScheduledSeq::n_logits).sum(), seconds);
        }
    }

    /// Removes a sequence, waiting or running. Its blocks stay in the prefix cache, except those of the last batch
    /// if that has `failed`. Returns its text if a prompt that repeats it will not find the answer's blocks, since they are
    /// of another precision.
    pub fn remove(&mut self, id: SequenceId, failed: bool) -> Option<AnsweredText> {
        self.waiting.retain(|sequence| sequence.id != id);
        let idx = self.running.iter().position(|sequence| sequence.id == id)?;
        let mut sequence = self.running.remove(idx);
        if !failed {
            sequence.cache_full_blocks(&mut self.kv);
            sequence.cache_newest_snapshot(&mut self.kv);
        }
        sequence.release_blocks(&mut self.kv);
        let n_rounded_blocks = sequence.n_rounded / BLOCK_TOKENS;
        let is_repeatable = !failed && sequence.n_rounded > 0 && sequence.n_generated > 0;
        (is_repeatable && sequence.tokens.len() > (n_rounded_blocks + 1) * BLOCK_TOKENS).then_some(
            AnsweredText {
                tokens: sequence.tokens,
                n_prompt: sequence.n_prompt,
                tenant: sequence.tenant,
                cache_namespace: sequence.cache_namespace,
            },
        )
    }

    /// Prompt tokens of a running sequence that it found in the prefix cache when it started.
    pub fn n_cached_tokens(&self, id: SequenceId) -> usize {
        self.running.iter().find(|sequence| sequence.id == id).map_or(0, |sequence| sequence.n_cached_tokens)
    }

    /// Whether no sequence waits or runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// The load of this moment.
    pub fn load(&self) -> SchedulerLoad {
        let pools = &self.kv.pools;
        let n_used = |pool: &BlockPool| pool.n_blocks() - pool.n_available();
        let usages = pools.iter().map(|pool| n_used(pool) as f64 / pool.n_blocks().max(1) as f64);
        SchedulerLoad {
            n_running: self.running.len(),
            n_waiting: self.waiting.len(),
            n_waiting_tokens: self.waiting.iter().map(|sequence| sequence.tokens.len()).sum(),
            n_blocks: pools.first().map_or(0, BlockPool::n_blocks),
            n_used_blocks: pools.first().map_or(0, n_used),
            kv_usage: usages.fold(0.0, f64::max),
            n_preempted: self.n_preempted,
        }
    }

    /// The next batch, whose tokens count as computed from now on. Empty only when idle, or when all running sequences
    /// sit out.
    pub fn next_batch(&mut self) -> Batch {
        for sequence in &mut self.running {
            sequence.cache_full_blocks(&mut self.kv);
        }
        self.start_waiting();
        let mut batch = Batch::default();
        let mut scored_rows_left = MAX_SCORED_ROWS;
        let n_decodes = self.schedule_decodes(&mut batch, &mut scored_rows_left);
        let budget = self.prefill_budget(n_decodes);
        self.schedule_prefill(&mut batch, budget, &mut scored_rows_left);
        if self.options.speculative && batch.sequences.len() == n_decodes {
            self.schedule_drafts(&mut batch);
        }
        let is_unfinished = |sequence: &Sequence| sequence.n_uncomputed() > 0;
        while batch.sequences.is_empty()
            && self.running.len() > 1
            && self.running[..self.n_eligible()].iter().any(is_unfinished)
        {
            // Unfinished prompts, and sequences that sit out, hold all blocks.
            self.preempt_newest();
            self.schedule_prefill(&mut batch, budget, &mut scored_rows_left);
        }
        batch
    }

    /// Prompt tokens that a batch with `n_decodes` decodes may compute.
    fn prefill_budget(&self, n_decodes: usize) -> usize {
        let chunk = self.options.prefill_chunk;
        match n_decodes {
            0 if self.n_eligible() > self.n_interactive() => chunk.min(BACKGROUND_PREFILL_CHUNK),
            0 => chunk,
            n => (n * PROMPT_TOKENS_PER_DECODE).max(MIN_PROMPT_TOKENS).min(chunk),
        }
    }

    /// Running sequences that are not background ones; they come first.
    fn n_interactive(&self) -> usize {
        self.running.partition_point(|sequence| sequence.priority == Priority::Interactive)
    }

    /// Running sequences that may be computed now; they come first. Background ones wait for all others.
    fn n_eligible(&self) -> usize {
        match self.n_interactive() {
            0 => self.running.len(),
            n => n,
        }
    }

    /// Starts waiting sequences as long as there are blocks for all of their tokens so far. Background sequences make
    /// room for others, and do not start beside them.
    fn start_waiting(&mut self) {
        while let Some(next) = self.next_waiting() {
            let is_interactive = self.waiting[next].priority == Priority::Interactive;
            if !is_interactive && self.n_interactive() > 0 {
                return;
            }
            let has_place = self.running.len() < self.options.max_running;
            if !has_place || !self.running.is_empty() && !self.fits(&self.waiting[next]) {
                if !is_interactive || self.n_interactive() == self.running.len() {
                    return;
                }
                self.preempt_newest();
                continue;
            }
            if let Some(sequence) = self.waiting.remove(next) {
                let earlier = self.waiting.iter_mut().filter(|other| other.arrival < sequence.arrival);
                earlier.for_each(|other| other.n_overtaken += 1);
                let idx = self.running.partition_point(|other| other.rank() < sequence.rank());
                self.running.insert(idx, sequence);
            }
        }
    }

    /// The index of the waiting sequence that starts next, a background one only if there are no others: a preempted
    /// one, else one that has been overtaken too often, else the oldest of the tenant with the fewest running sequences.
    fn next_waiting(&self) -> Option<usize> {
        let n_running = |tenant: &Arc<str>| self.running.iter().filter(|r| r.tenant == *tenant).count();
        (0..self.waiting.len()).min_by_key(|&idx| {
            let sequence = &self.waiting[idx];
            let is_patient = sequence.n_overtaken < self.options.max_running;
            let n_running = n_running(&sequence.tenant);
            (sequence.priority, !sequence.has_started, is_patient, n_running, sequence.arrival)
        })
    }

    /// Whether enough blocks are available for a waiting sequence. Running sequences keep the blocks that they still
    /// need for their tokens so far, and one more each.
    fn fits(&self, waiting: &Sequence) -> bool {
        self.kv.pools.iter().enumerate().all(|(group, pool)| {
            let window = self.kv.windows[group];
            let max_blocks = BlockGroup::max_blocks_per_sequence(window, self.options.prefill_chunk);
            let sequences = self.running.iter().chain([waiting]);
            let n_needed: usize = sequences.map(|sequence| sequence.blocks_needed(group, max_blocks)).sum();
            n_needed + self.running.len() <= pool.n_available()
        }) && self.kv.states.as_ref().is_none_or(|states| {
            let without = self.running.iter().filter(|sequence| sequence.state.own.is_none()).count();
            without < states.n_available()
        })
    }

    /// Schedules one token, or the next continuation, for each fully prefilled sequence. Where blocks run out, the newest
    /// sequences are preempted. Returns the number of single tokens.
    fn schedule_decodes(&mut self, batch: &mut Batch, scored_rows_left: &mut usize) -> usize {
        let mut idx = 0;
        let mut n_decodes = 0;
        // Preemption removes from the end.
        while idx < self.n_eligible() {
            let n_continued = self.running[idx].next_continuation().map(Vec::len);
            let n = match n_continued {
                Some(n) if n <= *scored_rows_left => n,
                None if self.running[idx].n_uncomputed() == 1 => 1,
                _ => {
                    idx += 1;
                    continue;
                }
            };
            self.running[idx].release_out_of_window(&mut self.kv);
            while self.running[idx].allocate_blocks(&mut self.kv, n) < n {
                self.preempt_newest();
                if idx >= self.running.len() {
                    return n_decodes;
                }
            }
            let sequence = &mut self.running[idx];
            batch.sequences.push(match n_continued {
                Some(n) => {
                    *scored_rows_left -= n;
                    sequence.schedule_continuation()
                }
                None => {
                    n_decodes += 1;
                    sequence.schedule(&mut self.kv, 1)
                }
            });
            idx += 1;
        }
        n_decodes
    }

    /// Schedules chunks of prompts, up to `budget` tokens in all.
    fn schedule_prefill(&mut self, batch: &mut Batch, budget: usize, scored_rows_left: &mut usize) {
        let mut n_left = budget;
        let n_eligible = self.n_eligible();
        let first =
            self.running[..n_eligible].partition_point(|sequence| sequence.rank() <= self.prefill_cursor);
        for turn in 0..n_eligible {
            let idx = (first + turn) % n_eligible;
            let sequence = &mut self.running[idx];
            if sequence.n_uncomputed() <= 1 && sequence.n_computed > 0 || n_left == 0 {
                continue;
            }
            if batch.sequences.iter().any(|scheduled| scheduled.id == sequence.id) {
                continue;
            }
            sequence.lookup_prefix(&mut self.kv);
            sequence.release_out_of_window(&mut self.kv);
            let is_short = n_left == budget && sequence.n_uncomputed() <= SHORT_PROMPT_TOKENS;
            let most = if is_short { sequence.n_uncomputed() } else { n_left.min(sequence.n_uncomputed()) };
            let most = most.min(self.options.prefill_chunk - sequence.chunk_tokens_used);
            let n_unscored = sequence.scored_from.saturating_sub(sequence.n_computed);
            let most = most.min(n_unscored.saturating_add(*scored_rows_left));
            let n = sequence.allocate_blocks(&mut self.kv, most);
            if n == 0 {
                continue;
            }
            n_left = n_left.saturating_sub(n);
            sequence.chunk_tokens_used += n;
            let scheduled = sequence.schedule(&mut self.kv, n);
            *scored_rows_left = scored_rows_left.saturating_sub(scheduled.n_scored);
            batch.sequences.push(scheduled);
            if sequence.n_uncomputed() == 0 || sequence.chunk_tokens_used == self.options.prefill_chunk {
                self.prefill_cursor = sequence.rank();
                sequence.chunk_tokens_used = 0;
            }
        }
    }

    /// Adds draft tokens to the decodes of a batch, the most probable first, as long as they are worth their cost.
    fn schedule_drafts(&mut self, batch: &mut Batch) {
        let n_running = self.running.len();
        let mut n_rows = batch.sequences.len();
        let mut n_tokens = n_rows as f64;
        // The batch is in the order of the running sequences.
        let mut scheduled = batch.sequences.iter_mut().peekable();
        let candidates = self.running.iter_mut().filter_map(|sequence| {
            let scheduled = scheduled.next_if(|scheduled| scheduled.id == sequence.id)?;
            let (drafts, acceptance_rate) = sequence.propose_drafts(self.options.context_shift);
            let drafts = drafts.into_iter();
            Some(DraftCandidate {
                scheduled,
                sequence,
                drafts,
                acceptance_rate,
                probability: acceptance_rate,
            })
        });
        let mut candidates: Vec<DraftCandidate> = candidates.collect();
        loop {
            let open = candidates.iter_mut().filter(|candidate| !candidate.drafts.as_slice().is_empty());
            let best = open.max_by(|a, b| a.probability.total_cmp(&b.probability));
            let Some(best) = best else { return };
            if best.probability <= self.draft_cost.min_probability(n_rows, n_tokens) {
                return;
            }
            // A draft token never causes a preemption, not in the next batch either.
            let n = 1 + best.scheduled.n_drafts;
            let is_spare = self.kv.pools.iter().all(|pool| pool.n_available() > n_running);
            let has_room = best.sequence.n_allocated_tokens() >= n
                || is_spare && best.sequence.allocate_blocks(&mut self.kv, n) >= n;
            if !has_room {
                best.drafts = Vec::new().into_iter();
                continue;
            }
            let draft = best.drafts.next();
            best.scheduled.tokens.extend(draft);
            best.sequence.computed_drafts.extend(draft);
            best.scheduled.n_drafts += 1;
            if let Some(state) = &mut best.scheduled.state {
                state.n_drafts += 1;
            }
            best.scheduled.block_tables = best.sequence.block_tables();
            n_rows += 1;
            n_tokens += best.probability;
            best.probability *= best.acceptance_rate;
        }
    }

    /// Preempts the newest running sequence, a background one if there is one: it gives its blocks back and waits to be recomputed.
    fn preempt_newest(&mut self) {
        if let Some(mut sequence) = self.running.pop() {
            self.n_preempted += 1;
            sequence.release_blocks(&mut self.kv);
            self.waiting.push_front(sequence);
        }
    }
}

/// Draft tokens that a decode may take along.
struct DraftCandidate<'a> {
    scheduled: &'a mut ScheduledSeq,
    sequence: &'a mut Sequence,
    /// Draft tokens that are not scheduled yet.
    drafts: std::vec::IntoIter<u32>,
    /// The probability that each is right if those before it are.
    acceptance_rate: f64,
    /// The probability that the next one and all before it are right.
    probability: f64,
}

impl Sequence {
    /// Its place among running sequences.
    fn rank(&self) -> (Priority, u64) {
        (self.priority, self.arrival)
    }

    /// Draft tokens, and the probability that each is right if those before it are.
    fn propose_drafts(&mut self, shift: Option<ContextShift>) -> (Vec<u32>, f64) {
        self.lookup.extend(&self.tokens);
        let (mut drafts, acceptance_rate) = self.lookup.propose_drafts();
        // If all are accepted, the batch yields one more token.
        drafts.truncate(self.max_tokens.saturating_sub(self.n_generated + 1));
        if let Some(ContextShift { context_length }) = shift {
            // The context must be full at the same token with and without drafts.
            drafts.truncate(context_length.saturating_sub(self.tokens.len()));
        }
        (drafts, acceptance_rate)
    }

    /// Tokens still to be computed.
    fn n_uncomputed(&self) -> usize {
        self.tokens.len() - self.n_computed
    }

    /// Blocks of a group that its tokens so far still need, when it never holds more than `max_blocks` at once.
    fn blocks_needed(&self, group: usize, max_blocks: usize) -> usize {
        let GroupTable { blocks, n_out_of_window } = &self.tables[group];
        let n_to_come = self.tokens.len().div_ceil(BLOCK_TOKENS).saturating_sub(blocks.len());
        n_to_come.min(max_blocks.saturating_sub(blocks.len() - n_out_of_window))
    }

    /// Releases all its blocks; nothing of it counts as computed any more.
    fn release_blocks(&mut self, kv: &mut KvBlocks) {
        for (table, pool) in self.tables.iter_mut().zip(&mut kv.pools) {
            pool.release(std::mem::take(table).blocks.into_iter().flatten());
        }
        kv.release_states(std::mem::take(&mut self.state).all());
        self.n_computed = 0;
        self.computed_drafts.clear();
        self.n_cached_blocks = 0;
        self.prefix = PrefixParent::Namespace(self.cache_namespace.clone());
    }

    /// Releases the blocks that have left the window of its next token.
    fn release_out_of_window(&mut self, kv: &mut KvBlocks) {
        for (group, table) in self.tables.iter_mut().enumerate() {
            let n_out_of_window = kv
                .first_in_window(group, self.n_computed)
                .min(self.n_cached_blocks)
                .max(table.n_out_of_window);
            let released = table.blocks[table.n_out_of_window..n_out_of_window].iter_mut();
            kv.pools[group].release(released.filter_map(Option::take));
            table.n_out_of_window = n_out_of_window;
        }
    }

    /// The contents of its block at `idx`, if they fill it.
    fn full_block(&self, idx: usize) -> Option<BlockContents> {
        let start = idx * BLOCK_TOKENS;
        let n_rounded = self.n_rounded.saturating_sub(start).min(BLOCK_TOKENS) as u8;
        Some(BlockContents { tokens: *self.tokens.get(start..)?.first_chunk()?, n_rounded })
    }

    /// Adds its full, computed blocks to the prefix cache.
    fn cache_full_blocks(&mut self, kv: &mut KvBlocks) {
        while (self.n_cached_blocks + 1) * BLOCK_TOKENS <= self.n_computed
            && let Some(contents) = self.full_block(self.n_cached_blocks)
        {
            let prefix = kv.prefixes.insert(&self.prefix, contents);
            for (table, pool) in self.tables.iter().zip(&mut kv.pools) {
                if let Some(id) = table.blocks[self.n_cached_blocks] {
                    pool.cache(id, prefix);
                }
            }
            self.prefix = PrefixParent::Prefix(prefix);
            self.n_cached_blocks += 1;
            let n_tokens = self.n_cached_blocks * BLOCK_TOKENS;
            for (_, slot) in self.state.snapshots.extract_if(.., |(n, _)| *n == n_tokens) {
                kv.cache_state(slot, prefix);
            }
            if let Some((_, _, at)) = self.state.newest.as_mut().filter(|(n, ..)| *n == n_tokens) {
                *at = Some(prefix);
            }
        }
    }

    /// Puts its newest snapshot into the prefix cache, if its block is there.
    fn cache_newest_snapshot(&mut self, kv: &mut KvBlocks) {
        if let Some((_, slot, Some(prefix))) = self.state.newest.take_if(|(.., prefix)| prefix.is_some()) {
            kv.cache_state(slot, prefix);
        }
    }

    /// Takes over the blocks that the prefix cache has for its next tokens. The last token is always computed, since
    /// its logits are needed, and so are all tokens whose rows score the prompt.
    fn lookup_prefix(&mut self, kv: &mut KvBlocks) {
        let n_before = self.n_cached_blocks;
        let has_more = self.tables.iter().any(|table| table.blocks.len() != n_before);
        if n_before * BLOCK_TOKENS != self.n_computed || has_more {
            return;
        }
        let (mut found, mut parent) = (Vec::new(), self.prefix.clone());
        while (n_before + found.len() + 1) * BLOCK_TOKENS < self.tokens.len()
            && (n_before + found.len() + 1) * BLOCK_TOKENS <= self.scored_from
            && let Some(contents) = self.full_block(n_before + found.len())
            && let Some(prefix) = kv.prefixes.lookup(&parent, contents)
        {
            parent = PrefixParent::Prefix(prefix);
            found.push(prefix);
        }
        found.truncate(kv.n_reusable(n_before, &found));
        if let Some(&last) = found.last() {
            self.prefix = PrefixParent::Prefix(last);
            self.n_cached_blocks += found.len();
            self.n_computed = self.n_cached_blocks * BLOCK_TOKENS;
            if let Some(states) = &mut kv.states {
                let before = self.state.restored_from.take();
                self.state.restored_from = states.acquire_cached(last);
                kv.release_states(before);
            }
        }
        for (group, table) in self.tables.iter_mut().enumerate() {
            let first = kv.first_in_window(group, self.n_computed);
            for (idx, &prefix) in (n_before..).zip(&found) {
                let is_in_window = idx >= first;
                table.blocks.push(if is_in_window { kv.pools[group].acquire_cached(prefix) } else { None });
            }
        }
        if !self.has_started {
            self.n_cached_tokens = self.n_computed;
        }
    }

    /// Allocates blocks for up to `n` more tokens; returns the number of tokens that fit.
    fn allocate_blocks(&mut self, kv: &mut KvBlocks, n: usize) -> usize {
        if kv.states.is_some() && self.state.own.is_none() {
            self.state.own = kv.allocate_state();
            if self.state.own.is_none() {
                return 0;
            }
        }
        for (group, table) in self.tables.iter_mut().enumerate() {
            while table.blocks.len() * BLOCK_TOKENS < self.n_computed + n
                && let Some(id) = kv.allocate(group)
            {
                table.blocks.push(Some(id));
            }
        }
        self.n_allocated_tokens().min(n)
    }

    /// Tokens to come that its blocks have room for.
    fn n_allocated_tokens(&self) -> usize {
        let n_blocks = self.tables.iter().map(|table| table.blocks.len()).min().unwrap_or_default();
        n_blocks * BLOCK_TOKENS - self.n_computed
    }

    fn block_tables(&self) -> Vec<BlockTable> {
        self.tables.iter().map(|table| table.blocks.clone()).collect()
    }

    /// The steps of its recurrent state in a batch of `n` tokens after the computed ones.
    fn step_state(&mut self, kv: &mut KvBlocks, n: usize) -> Option<StateStep> {
        let slot = self.state.own?;
        let n_replayed = std::mem::take(&mut self.state.n_replayed);
        let restored_from = self.state.restored_from.take();
        // The batch restores all snapshots before it writes to any slot.
        kv.release_states(restored_from);
        let first = self.n_computed - n_replayed;
        let mut snapshots = Vec::new();
        for n_tokens in (first + 1..=self.n_computed + n).filter(|n| n.is_multiple_of(BLOCK_TOKENS)) {
            let is_generated = n_tokens > self.n_prompt;
            let is_kept = n_tokens.is_multiple_of(SNAPSHOT_INTERVAL)
                || self.snapshot_blocks.contains(&(n_tokens / BLOCK_TOKENS));
            if !is_kept && !is_generated {
                continue;
            }
            if !is_kept && let Some((_, replaced, _)) = self.state.newest.take() {
                snapshots.retain(|(_, slot)| *slot != replaced);
                kv.release_states([replaced]);
            }
            let Some(slot) = kv.allocate_state() else { continue };
            if is_kept {
                self.state.snapshots.push((n_tokens, slot));
            } else {
                self.state.newest = Some((n_tokens, slot, None));
            }
            snapshots.push((n_tokens - first, slot));
        }
        Some(StateStep { slot, restored_from, n_replayed, n_drafts: 0, snapshots })
    }

    /// Its next `n` tokens for a batch; they count as computed.
    fn schedule(&mut self, kv: &mut KvBlocks, n: usize) -> ScheduledSeq {
        let state = self.step_state(kv, n);
        let start = self.n_computed;
        self.n_computed += n;
        self.computed_drafts.clear();
        self.has_started = true;
        // The row of the prompt's last token is for the token after it.
        let n_scored = self.n_computed.min(self.n_prompt - 1).saturating_sub(start.max(self.scored_from));
        self.scored_from = self.scored_from.max(self.n_computed);
        ScheduledSeq {
            id: self.id,
            n_prompt: self.n_prompt,
            n_rounded: self.n_rounded,
            start,
            tokens: self.tokens[start..self.n_computed].to_vec(),
            n_drafts: 0,
            block_tables: self.block_tables(),
            state,
            n_scored,
            needs_logits: self.n_computed == self.tokens.len(),
        }
    }

    /// The next text that is to be computed after its prompt, once that is computed.
    fn next_continuation(&self) -> Option<&Vec<u32>> {
        self.continuations.get(self.n_continued).filter(|_| self.n_uncomputed() == 0)
    }

    /// Its next continuation for a batch. The next one will overwrite it, so its tokens do not count as computed.
    fn schedule_continuation(&mut self) -> ScheduledSeq {
        let tokens = self.next_continuation().cloned().unwrap_or_default();
        self.n_continued += 1;
        ScheduledSeq {
            id: self.id,
            n_prompt: self.n_prompt,
            n_rounded: self.n_rounded,
            start: self.n_computed,
            n_drafts: tokens.len().saturating_sub(1),
            state: self.state.own.map(|slot| StateStep {
                slot,
                n_drafts: tokens.len(),
                ..StateStep::default()
            }),
            tokens,
            block_tables: self.block_tables(),
            n_scored: 0,
            needs_logits: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn id(n: u64) -> SequenceId {
        SequenceId(n)
    }

    fn scheduler(max_running: usize, prefill_chunk: usize, n_blocks: usize) -> Scheduler {
        Scheduler::new(SchedulerOptions {
            max_running,
            prefill_chunk,
            groups: vec![BlockGroup { n_blocks, window: None }],
            n_state_slots: 0,
            speculative: false,
            rounded_prompts: false,
            context_shift: None,
        })
    }

    /// A prompt of `len` tokens that shares no prefix with another `n`'s.
    fn prompt(n: u64, len: usize) -> Vec<u32> {
        (0..len as u32).map(|i| n as u32 * 1000 + i).collect()
    }

    fn new_sequence(n: u64, prompt: Vec<u32>) -> NewSequence {
        let prediction = Vec::new();
        NewSequence {
            id: id(n),
            prompt,
            prediction,
            max_tokens: 1000,
            is_scored: false,
            borders: Vec::new(),
            continuations: [].into(),
            tenant: "".into(),
            priority: Priority::Interactive,
            cache_namespace: "".into(),
        }
    }

    fn add_background(scheduler: &mut Scheduler, n: u64, prompt: Vec<u32>) {
        scheduler.add(NewSequence { priority: Priority::Background, ..new_sequence(n, prompt) });
    }

    fn add(scheduler: &mut Scheduler, n: u64, prompt: Vec<u32>) {
        scheduler.add(new_sequence(n, prompt));
    }

    /// The id, the start and the number of tokens of each scheduled sequence.
    fn scheduled(batch: &Batch) -> Vec<(u64, usize, usize)> {
        batch.sequences.iter().map(|seq| (seq.id.0, seq.start, seq.tokens.len())).collect()
    }

    /// Takes a batch and appends a token to every sequence that needs logits.
    fn step(scheduler: &mut Scheduler) -> Vec<(u64, usize, usize)> {
        let batch = scheduler.next_batch();
        for seq in batch.sequences.iter().filter(|seq| seq.needs_logits) {
            scheduler.append(seq.id, &[7]);
        }
        check_integrity(scheduler);
        scheduled(&batch)
    }

    fn check_integrity(scheduler: &Scheduler) {
        for (group, pool) in scheduler.kv.pools.iter().enumerate() {
            let tables = scheduler.running.iter().map(|sequence| &sequence.tables[group].blocks);
            pool.check_integrity(tables.flatten().flatten());
        }
        let mut waiting = scheduler.waiting.iter().flat_map(|sequence| &sequence.tables);
        assert!(waiting.all(|table| table.blocks.is_empty()));
        if let Some(states) = &scheduler.kv.states {
            let slots: Vec<BlockId> =
                scheduler.running.iter().flat_map(|sequence| sequence.state.all()).collect();
            states.check_integrity(slots.iter());
        }
    }

    /// A scheduler with one more group of layers.
    fn with_group(scheduler: Scheduler, n_blocks: usize, window: usize) -> Scheduler {
        let mut options = scheduler.options;
        options.groups.push(BlockGroup { n_blocks, window: Some(window) });
        Scheduler::new(options)
    }

    #[test]
    fn prompts_are_prefilled_round_robin_and_decodes_never_wait() {
        let mut s = scheduler(4, 40, 100);
        add(&mut s, 1, prompt(1, 250));
        add(&mut s, 2, prompt(2, 10));
        add(&mut s, 3, prompt(3, 230));
        assert_eq!(step(&mut s), [(1, 0, 40)]);
        assert_eq!(step(&mut s), [(2, 0, 10), (3, 0, 30)]);
        // While one decodes, prompts get at most 32 tokens.
        assert_eq!(step(&mut s), [(2, 10, 1), (3, 30, 10), (1, 40, 22)]);
        assert_eq!(step(&mut s), [(2, 11, 1), (1, 62, 18), (3, 40, 14)]);
        assert_eq!(step(&mut s), [(2, 12, 1), (3, 54, 26), (1, 80, 6)]);
        // A short prompt is computed in one chunk when its turn comes.
        add(&mut s, 4, prompt(4, 36));
        assert_eq!(step(&mut s), [(2, 13, 1), (4, 0, 36)]);
        assert_eq!(step(&mut s), [(2, 14, 1), (4, 36, 1), (1, 86, 32)]);
        s.remove(id(4), false);
        (1..=3).for_each(|n| assert_eq!(s.remove(id(n), false), None));
        assert!(s.is_idle());
        assert_eq!(s.next_batch(), Batch::default());
    }

    /// The id, the start, the number of tokens and the number of rows with logits of each scheduled sequence.
    fn rows(batch: &Batch) -> Vec<(u64, usize, usize, usize)> {
        let row = |seq: &ScheduledSeq| (seq.id.0, seq.start, seq.tokens.len(), seq.n_logits());
        batch.sequences.iter().map(row).collect()
    }

    #[test]
    fn every_token_of_a_scored_prompt_is_computed_once_in_bounded_chunks() {
        let mut s = scheduler(4, 300, 100);
        let scored = |n: u64| NewSequence { is_scored: true, ..new_sequence(n, prompt(1, 200)) };
        add(&mut s, 1, prompt(1, 200));
        assert_eq!(step(&mut s), [(1, 0, 200)]);
        s.remove(id(1), false);
        s.add(scored(2));
        s.add(scored(3));
        // Although all of it is in the prefix cache.
        assert_eq!(rows(&s.next_batch()), [(2, 0, 128, 128)]);
        // The row of the last token is for the token after it.
        assert_eq!(rows(&s.next_batch()), [(2, 128, 72, 72), (3, 0, 57, 57)]);
        s.append(id(2), &[7]);
        // Rows whose scores are known may come from the cache.
        s.preempt_newest();
        assert_eq!(rows(&s.next_batch()), [(2, 200, 1, 1), (3, 48, 32, 23)]);
        assert_eq!(s.n_cached_tokens(id(3)), 0);
        check_integrity(&s);
    }

    #[test]
    fn continuations_share_the_slots_after_their_prompt() {
        let mut s = scheduler(4, 64, 100);
        let long = vec![9; MAX_SCORED_ROWS - 3];
        let continuations = vec![vec![7], vec![8, 7, 8], long.clone()].into();
        s.add(NewSequence { continuations, ..new_sequence(1, prompt(1, 20)) });
        s.add(NewSequence { continuations: vec![long].into(), ..new_sequence(2, prompt(2, 20)) });
        assert_eq!(rows(&s.next_batch()), [(1, 0, 20, 1), (2, 0, 20, 1)]);
        let texts = s.next_batch();
        assert_eq!(rows(&texts), [(1, 20, 1, 1), (2, 20, 125, 125)]);
        let texts = s.next_batch();
        assert_eq!(rows(&texts), [(1, 20, 3, 3)]);
        assert_eq!(texts.sequences[0].tokens, [8, 7, 8]);
        // A sequence that was preempted computes its prompt again, and only the texts that are left.
        s.preempt_newest();
        s.preempt_newest();
        assert_eq!(rows(&s.next_batch()), [(1, 16, 4, 1), (2, 16, 4, 1)]);
        assert_eq!(rows(&s.next_batch()), [(1, 20, 125, 125)]);
        assert_eq!(s.next_batch(), Batch::default(), "they are to be removed");
        check_integrity(&s);
    }

    #[test]
    fn background_sequences_run_only_when_no_other_does() {
        let mut s = scheduler(2, 256, 20);
        add_background(&mut s, 1, prompt(1, 150));
        add_background(&mut s, 2, prompt(2, 20));
        assert_eq!(step(&mut s), [(1, 0, 128)], "in small batches");
        assert_eq!(step(&mut s), [(1, 128, 22), (2, 0, 20)]);
        assert_eq!(step(&mut s), [(1, 150, 1), (2, 20, 1)]);
        // Both places are taken: the newest background sequence gives way, and the other one waits.
        add(&mut s, 3, prompt(3, 100));
        assert_eq!(step(&mut s), [(3, 0, 100)]);
        assert_eq!(step(&mut s), [(3, 100, 1)]);
        assert_eq!((s.running.len(), s.waiting.len()), (2, 1));
        // Blocks are short, too.
        add(&mut s, 4, prompt(4, 180));
        assert_eq!(step(&mut s), [(3, 101, 1), (4, 0, 32)]);
        s.remove(id(3), false);
        s.remove(id(4), false);
        // What they have computed comes from the prefix cache, as far as it was not needed.
        let resumed = step(&mut s);
        assert!(
            resumed.iter().map(|&(n, ..)| n).eq([1, 2]) || resumed.iter().any(|&(n, ..)| n == 1),
            "{resumed:?}"
        );
        assert_eq!(s.n_interactive(), 0);
    }

    #[test]
    fn a_common_prefix_is_computed_once() {
        let mut s = scheduler(4, 64, 100);
        let shared = prompt(0, 50);
        let with_end = |n: u64| [&shared[..], &prompt(n, 20)].concat();
        add(&mut s, 1, with_end(1));
        add(&mut s, 2, with_end(2));
        assert_eq!(step(&mut s), [(1, 0, 64)], "the second waits for its turn");
        // Three blocks of sixteen tokens are common.
        assert_eq!(step(&mut s), [(2, 48, 22), (1, 64, 6)]);
        assert_eq!((s.n_cached_tokens(id(1)), s.n_cached_tokens(id(2))), (0, 48));
        s.remove(id(1), false);
        s.remove(id(2), false);
        // Finished sequences stay cached, but the last token is always computed.
        add(&mut s, 3, with_end(1)[..64].to_vec());
        assert_eq!(step(&mut s), [(3, 48, 16)]);
        // Other namespaces do not share it.
        s.add(NewSequence { cache_namespace: "salt".into(), ..new_sequence(4, with_end(1)) });
        assert_eq!(step(&mut s), [(3, 64, 1), (4, 0, 64)]);
    }

    #[test]
    fn blocks_of_a_failed_batch_are_not_cached() {
        let mut s = scheduler(4, 64, 100);
        add(&mut s, 1, prompt(1, 40));
        step(&mut s);
        s.remove(id(1), true);
        add(&mut s, 2, prompt(1, 40));
        assert_eq!(step(&mut s), [(2, 0, 40)]);
    }

    #[test]
    fn the_newest_is_preempted_and_recomputed_later() {
        let mut s = scheduler(4, 64, 5);
        add(&mut s, 1, prompt(1, 30));
        add(&mut s, 2, prompt(2, 16));
        assert_eq!(step(&mut s), [(1, 0, 30), (2, 0, 16)]);
        for n in 0..16 {
            assert_eq!(step(&mut s), [(1, 30 + n, 1), (2, 16 + n, 1)]);
        }
        // All five blocks are full; the newer sequence's two go to the older.
        assert_eq!(s.load().n_used_blocks, 5);
        assert_eq!(step(&mut s), [(1, 46, 1)]);
        assert_eq!(step(&mut s), [(1, 47, 1)]);
        assert_eq!(step(&mut s), [(1, 48, 1)]);
        assert_eq!((s.load().n_preempted, s.load().n_waiting), (1, 1));
        s.remove(id(1), false);
        // It has 33 tokens by now, and its first block is still cached.
        assert_eq!(step(&mut s), [(2, 16, 17)]);
        assert_eq!(step(&mut s), [(2, 33, 1)]);
        assert_eq!(s.n_cached_tokens(id(2)), 0, "its own blocks do not count");
    }

    #[test]
    fn drafts_are_scheduled_as_long_as_they_are_worth_it() {
        let mut s = scheduler(2, 64, 5);
        s.options.speculative = true;
        let text = [1, 2, 3, 4, 5, 6];
        s.add(NewSequence { max_tokens: 9, ..new_sequence(1, text.repeat(2)) });
        assert_eq!(scheduled(&s.next_batch()), [(1, 0, 12)], "no drafts during prefill");
        let mut next = |sampled: &[u32]| {
            s.append(id(1), sampled);
            let ScheduledSeq { start, tokens, n_drafts, .. } = s.next_batch().sequences.remove(0);
            check_integrity(&s);
            (start, tokens, n_drafts)
        };
        assert_eq!(next(&[1]), (12, vec![1, 2], 1));
        // The text repeats itself, so more drafts are worth their cost.
        assert_eq!(next(&[2, 3]), (14, vec![3, 4, 5], 2));
        // Six of nine tokens are generated, and the last needs no draft.
        assert_eq!(next(&[4, 5, 6]), (17, vec![6, 1, 2], 2));
        // All drafts were wrong, and 9 has not occurred before.
        assert_eq!(next(&[9]), (18, vec![9], 0));

        // A draft never causes a preemption.
        let mut s = scheduler(1, 64, 1);
        s.options.speculative = true;
        add(&mut s, 1, text.repeat(2));
        s.next_batch();
        s.append(id(1), &[1]);
        assert_eq!(scheduled(&s.next_batch()), [(1, 12, 2)]);
        s.append(id(1), &[2, 3]);
        assert_eq!(scheduled(&s.next_batch()), [(1, 14, 2)], "then the block is full");
    }

    #[test]
    fn blocks_out_of_the_window_are_released() {
        let mut options = scheduler(2, 32, 0).options;
        options.groups = vec![BlockGroup { n_blocks: 8, window: Some(20) }];
        let mut s = Scheduler::new(options);
        add(&mut s, 1, prompt(1, 200));
        let mut n_held = Vec::new();
        for start in (0..192).step_by(32) {
            let batch = s.next_batch();
            assert_eq!(scheduled(&batch), [(1, start, 32)]);
            check_integrity(&s);
            let n_out_of_window =
                batch.sequences[0].block_tables[0].iter().take_while(|block| block.is_none()).count();
            assert_eq!(n_out_of_window, (start + 1).saturating_sub(20) / 16);
            n_held.push(s.load().n_used_blocks);
        }
        assert_eq!(n_held, [2, 4, 4, 4, 4, 4], "eight blocks are enough for two hundred tokens");
        assert_eq!(step(&mut s), [(1, 192, 8)]);
        assert_eq!(step(&mut s), [(1, 200, 1)]);
        // Released blocks that are not reused yet are still cached.
        add(&mut s, 2, prompt(1, 200)[..50].to_vec());
        s.remove(id(1), false);
        assert_eq!(step(&mut s).len(), 1);
    }

    #[test]
    fn windowed_layers_need_only_the_window_of_a_cached_prefix() {
        let mut s = with_group(scheduler(1, 32, 40), 6, 20);
        let text = prompt(1, 200);
        add(&mut s, 1, text.clone());
        (0..7).for_each(|_| drop(step(&mut s)));
        s.remove(id(1), false);
        // The windowed layers hold the last six blocks: a prefix that ends within them is reused, any other is not.
        let mut cached = |n_tokens: usize| {
            add(&mut s, n_tokens as u64, text[..n_tokens].to_vec());
            step(&mut s);
            let n_cached = s.n_cached_tokens(id(n_tokens as u64));
            let tables = &s.running[0].tables;
            let n_held = tables.iter().map(|table| table.blocks.iter().flatten().count()).collect::<Vec<_>>();
            s.remove(id(n_tokens as u64), false);
            (n_cached, n_held)
        };
        // The window of the next token, the 192nd, is the one block before it and a seq of another.
        assert_eq!(cached(200), (192, vec![13, 3]));
        assert_eq!(cached(50).0, 0, "the blocks in its window are gone");
    }

    /// A scheduler of a model with recurrent layers.
    fn with_states(scheduler: Scheduler, n_state_slots: usize) -> Scheduler {
        Scheduler::new(SchedulerOptions { n_state_slots, ..scheduler.options })
    }

    #[test]
    fn a_look_up_ends_where_a_snapshot_of_the_state_was_taken() {
        let mut s = with_states(scheduler(1, 2000, 200), 10);
        let text = prompt(1, 700);
        s.add(NewSequence { borders: vec![40, 600], ..new_sequence(1, text.clone()) });
        let batch = s.next_batch();
        let state = batch.sequences[0].state.as_ref().unwrap();
        let positions: Vec<usize> = state.snapshots.iter().map(|(n, _)| *n).collect();
        assert_eq!(positions, [32, 512, 592, 688], "borders, the interval, and the end of the prompt");
        s.append(id(1), &[7]);
        (0..25).for_each(|_| drop(step(&mut s)));
        s.remove(id(1), false);
        check_integrity(&s);
        let cached = |s: &mut Scheduler, tokens: Vec<u32>| {
            add(s, 2, tokens);
            let batch = s.next_batch();
            let (start, state) = (batch.sequences[0].start, batch.sequences[0].state.clone().unwrap());
            assert_eq!(state.restored_from.is_some(), start > 0);
            s.remove(id(2), false);
            start
        };
        assert_eq!(cached(&mut s, text[..650].to_vec()), 592);
        assert_eq!(cached(&mut s, text[..520].to_vec()), 512);
        assert_eq!(cached(&mut s, text[..500].to_vec()), 32);
        assert_eq!(cached(&mut s, text[..30].to_vec()), 0);
        // The newest block of an answer has a snapshot, too.
        assert_eq!(cached(&mut s, [&text[..], &[7; 26]].concat()), 720);
        // No more slots than there are: the least recently used snapshots go.
        for n in 10..19 {
            add(&mut s, n, prompt(n, 20));
            step(&mut s);
            s.remove(id(n), false);
        }
        assert_eq!(cached(&mut s, text[..650].to_vec()), 0);
        check_integrity(&s);
    }

    #[test]
    fn accepted_drafts_are_taken_in_by_the_next_batch() {
        let mut s = with_states(scheduler(1, 64, 20), 4);
        s.options.speculative = true;
        add(&mut s, 1, [1, 2, 3].repeat(10));
        let mut steps = Vec::new();
        for n in 0..6 {
            let batch = s.next_batch();
            let seq = &batch.sequences[0];
            let StateStep { n_replayed, n_drafts, .. } = *seq.state.as_ref().unwrap();
            assert_eq!(n_drafts, seq.n_drafts);
            steps.push((seq.n_drafts > 0, n_replayed));
            // All drafts are right, or but the first.
            let n_accepted = if n == 4 { 1.min(seq.n_drafts) } else { seq.n_drafts };
            let newest = *seq.tokens.last().unwrap() % 3 + 1;
            let accepted = &seq.tokens[seq.tokens.len() - seq.n_drafts..][..n_accepted];
            let next = accepted.last().map_or(newest, |last| last % 3 + 1);
            s.append(id(1), &[accepted, &[if n == 4 { 9 } else { next }]].concat());
            let replayed = s.running[0].state.n_replayed;
            assert_eq!(replayed, n_accepted);
        }
        assert!(steps.iter().any(|(has_drafts, _)| *has_drafts), "{steps:?}");
        assert!(steps.iter().any(|(_, n_replayed)| *n_replayed > 0), "{steps:?}");
    }

    #[test]
    fn a_full_context_shifts() {
        let mut s = scheduler(1, 64, 100);
        s.options.context_shift = Some(ContextShift { context_length: 40 });
        let beginning = prompt(1, 38);
        add(&mut s, 1, beginning.clone());
        assert_eq!(step(&mut s), [(1, 0, 38)]);
        assert_eq!(step(&mut s), [(1, 38, 1)]);
        assert_eq!(step(&mut s), [(1, 39, 1)], "there is room for forty");
        let batch = s.next_batch();
        let expected = [&beginning[..4], &beginning[25..], &[7; 3]].concat();
        assert_eq!((batch.sequences[0].start, &batch.sequences[0].tokens), (0, &expected));
        assert_eq!((expected.len(), batch.sequences[0].n_prompt), (20, 38));
        s.append(id(1), &[7]);
        assert_eq!(step(&mut s), [(1, 20, 1)]);
    }

    #[test]
    fn tenants_get_equal_shares() {
        let mut s = scheduler(2, 64, 100);
        for (n, tenant) in [(1, "a"), (2, "a"), (3, "a"), (4, "b")] {
            s.add(NewSequence { tenant: tenant.into(), ..new_sequence(n, prompt(n, 5)) });
        }
        assert_eq!(step(&mut s), [(1, 0, 5), (4, 0, 5)]);
        s.remove(id(1), false);
        assert_eq!(step(&mut s), [(4, 5, 1), (2, 0, 5)]);
    }

    #[test]
    fn no_sequence_is_overtaken_for_ever() {
        let mut s = scheduler(2, 64, 100);
        let add_for = |s: &mut Scheduler, n: u64, tenant: &str| {
            s.add(NewSequence { tenant: tenant.into(), ..new_sequence(n, prompt(n, 5)) });
        };
        // A tenant's first sequence runs, and its second waits while new tenants keep arriving.
        add_for(&mut s, 1, "a");
        add_for(&mut s, 2, "a");
        let mut started = Vec::new();
        for n in 3..7 {
            add_for(&mut s, n, &n.to_string());
            let batch = step(&mut s);
            let new = batch.iter().find(|(id, start, _)| *id > 1 && *start == 0).unwrap().0;
            started.push(new);
            s.remove(id(new), false);
        }
        assert_eq!(started, [3, 4, 2, 5], "overtaken as often as sequences run at once, it starts");
    }

    #[derive(Debug, Clone)]
    struct TestRequest {
        /// Batches before it arrives.
        pause: usize,
        prompt: Vec<u32>,
        n_generated: usize,
        tenant: &'static str,
        priority: Priority,
        /// Batches after which its client disconnects.
        patience: usize,
    }

    /// The expected state of a sequence.
    struct Expected<'a> {
        request: &'a TestRequest,
        tokens: Vec<u32>,
        n_generated: usize,
        /// Batches since it arrived.
        n_batches_seen: usize,
    }

    /// A scheduler with a scripted model and clients around it.
    struct Simulation<'a> {
        scheduler: Scheduler,
        /// The contents of each block of each group, as the model would have written them.
        memory: HashMap<(usize, BlockId), Vec<u32>>,
        /// The tokens that each recurrent state has taken in, and the drafts that it has not.
        states: HashMap<BlockId, (Vec<u32>, Vec<u32>)>,
        expected: HashMap<u64, Expected<'a>>,
        /// The sequence of every sampled token whose number is a multiple of this sits out.
        sit_out_every: usize,
        n_sampled: usize,
        /// The tokens of sequences that sit out, and for how many batches more.
        sitting_out: HashMap<u64, (Vec<u32>, usize)>,
    }

    /// The blocks of `seq` that hold its tokens from `first` on, with their groups.
    fn blocks_from(seq: &ScheduledSeq, first: usize) -> Vec<(usize, BlockId)> {
        let of_group = |(group, table): (usize, &BlockTable)| {
            let blocks = table[first / BLOCK_TOKENS..].iter();
            blocks.map(move |block| (group, block.unwrap())).collect::<Vec<_>>()
        };
        seq.block_tables.iter().enumerate().flat_map(of_group).collect()
    }

    impl<'a> Simulation<'a> {
        fn add(&mut self, n: u64, request: &'a TestRequest) {
            self.scheduler.add(NewSequence {
                max_tokens: request.n_generated,
                tenant: request.tenant.into(),
                priority: request.priority,
                cache_namespace: request.tenant.into(),
                ..new_sequence(n, request.prompt.clone())
            });
            let tokens = request.prompt.clone();
            self.expected.insert(n, Expected { request, tokens, n_generated: 0, n_batches_seen: 0 });
        }

        /// Asserts that a batch computes the right tokens in blocks of its own, after blocks that hold the tokens
        /// before them.
        fn check_batch(&self, batch: &Batch) {
            let written: Vec<(usize, BlockId)> =
                batch.sequences.iter().flat_map(|seq| blocks_from(seq, seq.start)).collect();
            for seq in &batch.sequences {
                let Expected { request, tokens, n_generated, .. } = &self.expected[&seq.id.0];
                let (known, drafts) = seq.tokens.split_at(seq.tokens.len() - seq.n_drafts);
                let end = seq.start + known.len();
                assert_eq!(known, &tokens[seq.start..end]);
                assert_eq!(seq.needs_logits, end == tokens.len());
                assert!(drafts.is_empty() || seq.needs_logits);
                assert!(seq.n_logits() <= request.n_generated - n_generated);
                for (group, table) in seq.block_tables.iter().enumerate() {
                    assert!(table.len() * BLOCK_TOKENS >= end + drafts.len());
                    for (position, token) in tokens[..seq.start].iter().enumerate() {
                        match table[position / BLOCK_TOKENS] {
                            Some(block) => {
                                assert_eq!(self.memory[&(group, block)][position % BLOCK_TOKENS], *token);
                            }
                            None => {
                                let window = self.scheduler.options.groups[group].window.unwrap();
                                assert!(position + window <= seq.start);
                            }
                        }
                    }
                }
                for block in blocks_from(seq, seq.start) {
                    assert_eq!(written.iter().filter(|other| **other == block).count(), 1);
                }
            }
        }

        /// Writes the tokens of a batch into their blocks.
        fn write(&mut self, batch: &Batch) {
            for seq in &batch.sequences {
                for (position, token) in (seq.start..).zip(&seq.tokens) {
                    for (group, table) in seq.block_tables.iter().enumerate() {
                        let id = table[position / BLOCK_TOKENS].unwrap();
                        let block = self.memory.entry((group, id)).or_default();
                        block.resize(BLOCK_TOKENS, u32::MAX);
                        block[position % BLOCK_TOKENS] = *token;
                    }
                }
            }
        }

        /// Takes the tokens of a batch into recurrent states, which must be those of the tokens before.
        fn update_states(&mut self, batch: &Batch) {
            let steps = || batch.sequences.iter().filter_map(|seq| Some((seq, seq.state.as_ref()?)));
            let restored: Vec<_> = steps()
                .filter_map(|(_, step)| Some((step.slot, self.states[&step.restored_from?].0.clone())))
                .collect();
            self.states.extend(restored.into_iter().map(|(slot, tokens)| (slot, (tokens, Vec::new()))));
            for (seq, _) in steps().filter(|(seq, _)| seq.start == 0) {
                self.states.insert(seq.state.as_ref().unwrap().slot, Default::default());
            }
            for (seq, step) in steps() {
                let (mut state, drafts) = self.states.remove(&step.slot).unwrap();
                let before = state.len();
                state.extend(&drafts[..step.n_replayed]);
                assert_eq!(state, self.expected[&seq.id.0].tokens[..seq.start]);
                let (taken_in, drafts) = seq.tokens.split_at(seq.tokens.len() - step.n_drafts);
                state.extend(taken_in);
                for (n, slot) in &step.snapshots {
                    let kept = (state[..before + n].to_vec(), Vec::new());
                    assert!(kept.0.len().is_multiple_of(BLOCK_TOKENS));
                    self.states.insert(*slot, kept);
                }
                self.states.insert(step.slot, (state, drafts.to_vec()));
            }
        }

        /// Generates 0, 1, 2 over and over, as far as the drafts allow in one batch.
        fn generate(&mut self, batch: &Batch) {
            for seq in batch.sequences.iter().filter(|seq| seq.needs_logits) {
                let n_generated = self.expected[&seq.id.0].n_generated;
                let mut drafts = seq.tokens[seq.tokens.len() - seq.n_drafts..].iter();
                let mut sampled = vec![n_generated as u32 % 3];
                while drafts.next() == sampled.last() {
                    sampled.push((n_generated + sampled.len()) as u32 % 3);
                }
                self.n_sampled += 1;
                // One that has been preempted meanwhile keeps its tokens.
                if self.sitting_out.contains_key(&seq.id.0) {
                    continue;
                }
                if self.n_sampled.is_multiple_of(self.sit_out_every) {
                    self.sitting_out.insert(seq.id.0, (sampled, self.n_sampled % 5));
                    continue;
                }
                self.append(seq.id, &sampled);
            }
        }

        /// Ends the wait of sequences that have sat out for long enough.
        fn resume(&mut self) {
            let mut resumed = Vec::new();
            self.sitting_out.retain(|&n, (sampled, n_left)| {
                *n_left = n_left.saturating_sub(1);
                if *n_left == 0 {
                    resumed.push((n, std::mem::take(sampled)));
                }
                *n_left > 0
            });
            resumed.iter().for_each(|(n, sampled)| self.append(id(*n), sampled));
        }

        fn append(&mut self, sequence: SequenceId, sampled: &[u32]) {
            let Expected { request, tokens, n_generated, .. } = self.expected.get_mut(&sequence.0).unwrap();
            tokens.extend(sampled);
            *n_generated += sampled.len();
            let context_length = self.scheduler.options.context_shift.map(|shift| shift.context_length);
            if let Some(length) = context_length.filter(|length| tokens.len() > *length) {
                assert_eq!(tokens.len(), length + 1);
                // The first four tokens and the end make up half a context.
                tokens.drain(4..tokens.len() + 4 - length / 2);
            }
            if *n_generated >= request.n_generated {
                self.expected.remove(&sequence.0);
                self.scheduler.remove(sequence, false);
            } else {
                self.scheduler.append(sequence, sampled);
            }
        }

        /// Cancels the sequences whose clients have lost patience.
        fn cancel_impatient(&mut self) {
            let mut leaving = Vec::new();
            for (n, Expected { request, n_batches_seen, .. }) in &mut self.expected {
                *n_batches_seen += 1;
                if *n_batches_seen > request.patience {
                    leaving.push(*n);
                }
            }
            for n in leaving {
                self.expected.remove(&n);
                self.sitting_out.remove(&n);
                self.scheduler.remove(id(n), false);
            }
        }
    }

    fn request() -> impl Strategy<Value = TestRequest> {
        // Few different tokens, so that prefixes are common.
        let prompt = (1usize..4, 1usize..70).prop_map(|(kind, len)| {
            (0..len).map(|i| if i < 35 { kind as u32 % 2 } else { (i * kind) as u32 }).collect::<Vec<u32>>()
        });
        let tenant = prop::sample::select(vec!["a", "b"]);
        let priority = prop::sample::select(vec![Priority::Interactive, Priority::Background]);
        (0usize..4, prompt, 1usize..40, tenant, priority, 1usize..400).prop_map(
            |(pause, prompt, n_generated, tenant, priority, patience)| TestRequest {
                pause,
                prompt,
                n_generated,
                tenant,
                priority,
                patience,
            },
        )
    }

    proptest! {
        /// Under random requests and cancellations every sequence computes its own tokens, in order and without
        /// gaps, in blocks that hold exactly the tokens before them, and ends in bounded time; no block leaks.
        #[test]
        fn every_sequence_is_computed_and_no_block_leaks(
            requests in prop::collection::vec(request(), 1..14),
            max_running in 1usize..6,
            chunk in 1usize..50,
            n_blocks in 7usize..30,
            speculative: bool,
            window in prop::option::of(1usize..60),
            other in prop::option::of((7usize..30, 1usize..60)),
            context_length in prop::option::of(75usize..112),
            sit_out_every in 1usize..9,
            n_state_slots in prop::sample::select(vec![0, 2, 3, 5, 9, 20]),
        ) {
            let mut options = scheduler(max_running, chunk, n_blocks).options;
            options.groups[0].window = window;
            options.groups.extend(other.map(|(n_blocks, window)| BlockGroup { n_blocks, window: Some(window) }));
            options.n_state_slots = n_state_slots;
            options.speculative = speculative;
            options.context_shift = context_length.map(|context_length| ContextShift { context_length });
            let mut simulation = Simulation {
                scheduler: Scheduler::new(options),
                memory: HashMap::new(),
                states: HashMap::new(),
                expected: HashMap::new(),
                sit_out_every,
                n_sampled: 0,
                sitting_out: HashMap::new(),
            };
            let mut upcoming = requests.iter().enumerate();
            let (mut next, mut pause) = (upcoming.next(), 0);
            let mut n_batches = 0;
            loop {
                while let Some((n, request)) = next && pause >= request.pause {
                    simulation.add(n as u64, request);
                    (next, pause) = (upcoming.next(), 0);
                }
                pause += 1;
                if next.is_none() && simulation.scheduler.is_idle() {
                    break;
                }
                n_batches += 1;
                prop_assert!(n_batches < 5000, "it does not terminate");
                simulation.resume();
                let batch = simulation.scheduler.next_batch();
                check_integrity(&simulation.scheduler);
                let may_be_empty = simulation.scheduler.is_idle() || !simulation.sitting_out.is_empty();
                prop_assert!(!batch.sequences.is_empty() || may_be_empty);
                prop_assert!(batch.sequences.len() <= max_running);
                simulation.check_batch(&batch);
                simulation.write(&batch);
                simulation.update_states(&batch);
                simulation.generate(&batch);
                simulation.cancel_impatient();
                check_integrity(&simulation.scheduler);
            }
            prop_assert!(simulation.expected.is_empty());
            prop_assert_eq!(simulation.scheduler.load().n_used_blocks, 0);
        }
    }
}
