//! What the next batch holds, and in which blocks. Pure: tokens and names in, a [`Batch`] out; no tensor,
//! clock, channel or string of text is known here.
//!
//! Every running sequence whose tokens are all computed but the newest gets that one computed. With what is
//! left of the batch's bound prompts are computed, one after the other, but a long one lets others go first
//! after each full chunk, and only a little at a time while others generate, so that those do not stutter.
//! Before
//! a part of a prompt is computed, the blocks of any earlier or simultaneous sequence that began alike are
//! taken over.
//!
//! Sequences start in the order they came, but of several tenants the one with the fewest running goes
//! first, unless that has let too many pass already. When no block is left for a running one, the youngest gives its blocks back and is computed again
//! later: what it has said stays said.
//!
//! A sequence whose context is full may go on without the middle of its past, and blocks that no layer sees any
//! more are given back.
//!
//! Where the text itself suggests what comes next, a few guesses are computed along, as many as pay.

use std::collections::VecDeque;
use std::sync::Arc;

use super::block_pool::{BlockPool, Parent, Prefixes};
use super::prompt_lookup::{PromptLookup, RowCost};
use crate::models::{BLOCK_TOKENS, BlockId, BlockTable, SequenceId, window_start};

/// Prompt tokens that may ride along with each sequence that generates: they make its next token take a few
/// times as long as alone.
const PROMPT_TOKENS_PER_DECODE: usize = 4;

/// Prompt tokens of a batch however few sequences generate.
const LEAST_PROMPT_TOKENS: usize = 32;

/// Tokens of a prompt that a batch computes at once even while others generate: it is over sooner, and in large
/// batches each token takes less time.
const SHORT_PROMPT: usize = 128;

/// Bounds of a scheduler.
#[derive(Debug, Clone)]
pub struct SchedulerOptions {
    /// Sequences at once.
    pub max_running: usize,
    /// Prompt tokens of a batch, and of a sequence's turn.
    pub prefill_chunk: usize,
    /// Blocks for keys and values, of each group of layers; those that see farthest first.
    pub groups: Vec<BlockGroup>,
    /// Whether what comes next is guessed at.
    pub speculative: bool,
    /// What becomes of sequences that grow beyond the context, if they may.
    pub context_shift: Option<ContextShift>,
}

/// Blocks of layers that see equally far.
#[derive(Debug, Clone, Copy)]
pub struct BlockGroup {
    pub n_blocks: usize,
    /// How many tokens back the layers see, if not all.
    pub window: Option<usize>,
}

impl BlockGroup {
    /// Most blocks that one sequence ever has at once, however long it is: those that its layers see, and those
    /// that `prefill_chunk` tokens are written to.
    pub fn most_blocks(window: Option<usize>, prefill_chunk: usize) -> usize {
        let of_window =
            |window: usize| window.div_ceil(BLOCK_TOKENS) + prefill_chunk.div_ceil(BLOCK_TOKENS) + 2;
        window.map_or(usize::MAX, of_window)
    }
}

/// How a text that is longer than the context is cut: the beginning, on which attention rests however far away
/// it is (Xiao and others, "Efficient Streaming Language Models with Attention Sinks", 2023), and the end stay.
/// What stays is computed anew, since every token has seen those that go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextShift {
    /// Most tokens of a sequence.
    pub context_length: usize,
}

impl ContextShift {
    /// How many of the first tokens stay.
    const N_FIRST: usize = 4;

    /// How many tokens stay in front, and how many at the end: so many that there is room for as many more.
    pub fn n_kept(&self) -> (usize, usize) {
        let n_first = Self::N_FIRST.min(self.context_length / 4);
        (n_first, self.context_length / 2 - n_first)
    }
}

/// A sequence to be computed.
#[derive(Debug, Clone)]
pub struct NewSequence {
    pub id: SequenceId,
    pub prompt: Vec<u32>,
    /// What is predicted to be generated.
    pub prediction: Vec<u32>,
    /// Most tokens that are generated.
    pub max_tokens: usize,
    /// Who sent it: tenants get their turns alike.
    pub tenant: Arc<str>,
    /// Those with the same name may share blocks.
    pub cache_namespace: Arc<str>,
}

/// Decides what is computed together.
#[derive(Debug)]
pub struct Scheduler {
    options: SchedulerOptions,
    blocks: Blocks,
    row_cost: RowCost,
    /// Oldest first; those that had to give their blocks back before all others.
    waiting: VecDeque<Sequence>,
    /// Oldest first.
    running: Vec<Sequence>,
    /// The last whose turn to have its prompt computed has ended: the next is whose turn it is.
    last_turn: u64,
    n_added: u64,
    n_preempted: u64,
}

#[derive(Debug)]
struct Sequence {
    id: SequenceId,
    /// Its place among all that ever came.
    number: u64,
    tenant: Arc<str>,
    cache_namespace: Arc<str>,
    /// Prompt and what was generated.
    tokens: Vec<u32>,
    n_prompt: usize,
    n_generated: usize,
    max_tokens: usize,
    lookup: PromptLookup,
    /// Tokens whose keys and values are there, or will be after the current batch.
    n_computed: usize,
    /// Of each group of layers.
    tables: Vec<Table>,
    /// Blocks that others can find, and what comes after the last of them.
    n_published: usize,
    parent: Parent,
    /// Tokens computed of its prompt since its turn began.
    n_of_turn: usize,
    /// Tokens of its prompt that were there before it began.
    n_cached: usize,
    /// Whether any of it was ever computed.
    has_begun: bool,
    /// Later ones that started before it.
    n_overtaken: usize,
}

/// A sequence's blocks in a group of layers; those that are out of sight are given back.
#[derive(Debug, Clone, Default)]
struct Table {
    blocks: BlockTable,
    n_unseen: usize,
}

/// All blocks there are.
#[derive(Debug)]
struct Blocks {
    prefixes: Prefixes,
    pools: Vec<BlockPool>,
    windows: Vec<Option<usize>>,
}

impl Blocks {
    /// A block of a group, if there is one.
    fn allocate(&mut self, group: usize) -> Option<BlockId> {
        let allocated = self.pools[group].allocate()?;
        // What is known lies in the first group; the others may know less of it.
        if let Some(content) = allocated.forgotten.filter(|_| group == 0) {
            self.prefixes.forget(content);
        }
        Some(allocated.id)
    }

    /// The first block of which the token at `position` sees anything in a group.
    fn first_seen(&self, group: usize, position: usize) -> usize {
        window_start(position, self.windows[group]) / BLOCK_TOKENS
    }

    /// How many of `contents`, which come after `n_before` blocks, can be taken over: so many that in each group
    /// all that the next token sees is there.
    fn n_usable(&self, n_before: usize, contents: &[u64]) -> usize {
        // Of each group how many of the last are there.
        let mut runs = vec![0; self.pools.len()];
        let mut n_usable = 0;
        for (idx, &content) in contents.iter().enumerate() {
            let n = idx + 1;
            let mut is_usable = true;
            for (group, run) in runs.iter_mut().enumerate() {
                *run = if self.pools[group].knows(content) { *run + 1 } else { 0 };
                let n_unseen = self.first_seen(group, (n_before + n) * BLOCK_TOKENS).saturating_sub(n_before);
                is_usable &= *run + n_unseen >= n;
            }
            if is_usable {
                n_usable = n;
            }
        }
        n_usable
    }
}

/// One turn's work.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub sequences: Vec<ScheduledSeq>,
}

/// Tokens of a sequence to be computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduledSeq {
    pub id: SequenceId,
    pub n_prompt: usize,
    /// Position of the first.
    pub start: usize,
    pub tokens: Vec<u32>,
    /// All blocks of the sequence, in each group of layers.
    pub block_tables: Vec<BlockTable>,
    /// How many of the last of them are guesses.
    pub n_drafts: usize,
    /// Whether the last of the others is to be followed by a new token.
    pub needs_logits: bool,
}

impl ScheduledSeq {
    /// Tokens that are each to be followed by a new one: the last, and the guesses after it.
    pub fn n_logits(&self) -> usize {
        if self.needs_logits { 1 + self.n_drafts } else { 0 }
    }
}

/// How busy a scheduler is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SchedulerLoad {
    pub n_running: usize,
    pub n_waiting: usize,
    /// Tokens of those that wait.
    pub n_waiting_tokens: usize,
    /// Blocks of the layers that see farthest, and how many of them running sequences use.
    pub n_blocks: usize,
    pub n_used_blocks: usize,
    /// Share of the blocks that running sequences use, in the group of layers that has the fewest left.
    pub kv_usage: f64,
    /// Sequences that ever had to give their blocks back.
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
    pub fn new(options: SchedulerOptions) -> Self {
        Self {
            blocks: Blocks {
                prefixes: Prefixes::default(),
                pools: options.groups.iter().map(|group| BlockPool::new(group.n_blocks)).collect(),
                windows: options.groups.iter().map(|group| group.window).collect(),
            },
            options,
            row_cost: RowCost::default(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            last_turn: 0,
            n_added: 0,
            n_preempted: 0,
        }
    }

    /// Queues a sequence, which must not come to need more blocks than there are.
    pub fn add(&mut self, new: NewSequence) {
        let NewSequence { id, prompt, prediction, max_tokens, tenant, cache_namespace } = new;
        self.n_added += 1;
        self.waiting.push_back(Sequence {
            id,
            number: self.n_added,
            tenant,
            n_prompt: prompt.len(),
            tokens: prompt,
            n_generated: 0,
            max_tokens,
            lookup: PromptLookup::new(prediction),
            n_computed: 0,
            tables: vec![Table::default(); self.options.groups.len()],
            n_published: 0,
            parent: Parent::Root(cache_namespace.clone()),
            cache_namespace,
            n_of_turn: 0,
            n_cached: 0,
            has_begun: false,
            n_overtaken: 0,
        });
    }

    /// Adds generated tokens to a running sequence: the new one, and before it the guesses that were right.
    /// Where there is no room for them in the context, the sequence goes on without the middle of its past.
    pub fn push(&mut self, id: SequenceId, tokens: &[u32]) {
        let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.id == id) else { return };
        sequence.tokens.extend(tokens);
        sequence.n_generated += tokens.len();
        sequence.n_computed += tokens.len().saturating_sub(1);
        if let Some(shift) =
            self.options.context_shift.filter(|shift| sequence.tokens.len() > shift.context_length)
        {
            let (n_first, n_last) = shift.n_kept();
            sequence.forget_computed(&mut self.blocks);
            sequence.tokens.drain(n_first..sequence.tokens.len() - n_last);
            sequence.lookup = PromptLookup::default();
        }
    }

    /// Learns how long a batch took.
    pub fn learn(&mut self, batch: &Batch, seconds: f64) {
        if batch.sequences.iter().all(|part| part.tokens.len() == part.n_logits()) {
            self.row_cost.learn(batch.sequences.iter().map(ScheduledSeq::n_logits).sum(), seconds);
        }
    }

    /// Forgets a sequence, wherever it is. What it has computed stays to be found, unless `failed` says that
    /// the last batch did not compute it.
    pub fn remove(&mut self, id: SequenceId, failed: bool) {
        self.waiting.retain(|sequence| sequence.id != id);
        if let Some(idx) = self.running.iter().position(|sequence| sequence.id == id) {
            let mut sequence = self.running.remove(idx);
            if !failed {
                sequence.publish(&mut self.blocks);
            }
            sequence.forget_computed(&mut self.blocks);
        }
    }

    /// Tokens of a running sequence's prompt that were there before it began.
    pub fn n_cached(&self, id: SequenceId) -> usize {
        self.running.iter().find(|sequence| sequence.id == id).map_or(0, |sequence| sequence.n_cached)
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    pub fn load(&self) -> SchedulerLoad {
        let pools = &self.blocks.pools;
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

    /// The next batch; its work counts as done. Empty only when idle.
    pub fn next_batch(&mut self) -> Batch {
        for sequence in &mut self.running {
            sequence.publish(&mut self.blocks);
        }
        self.start_waiting();
        let mut batch = Batch::default();
        self.decode(&mut batch);
        let n_decoding = batch.sequences.len();
        let bound = if n_decoding == 0 {
            self.options.prefill_chunk
        } else {
            (n_decoding * PROMPT_TOKENS_PER_DECODE).max(LEAST_PROMPT_TOKENS).min(self.options.prefill_chunk)
        };
        self.prefill(&mut batch, bound);
        if self.options.speculative && batch.sequences.len() == n_decoding {
            self.guess(&mut batch);
        }
        while batch.sequences.is_empty() && self.running.len() > 1 {
            // Unfinished prompts hold all blocks.
            self.preempt_youngest();
            self.prefill(&mut batch, bound);
        }
        batch
    }

    /// Starts what waits, as long as there is room for all of its tokens so far.
    fn start_waiting(&mut self) {
        while self.running.len() < self.options.max_running {
            let n_running = |tenant: &Arc<str>| self.running.iter().filter(|r| r.tenant == *tenant).count();
            let next = (0..self.waiting.len()).min_by_key(|&idx| {
                let sequence = &self.waiting[idx];
                let is_patient = sequence.n_overtaken < self.options.max_running;
                (!sequence.has_begun, is_patient, n_running(&sequence.tenant), sequence.number)
            });
            let Some(next) = next else { return };
            // What those that run still lack of their own tokens is theirs.
            let has_room = |(group, pool): (usize, &BlockPool)| {
                let window = self.blocks.windows[group];
                let most = BlockGroup::most_blocks(window, self.options.prefill_chunk);
                let all = self.running.iter().chain([&self.waiting[next]]);
                let n_lacking: usize = all.map(|sequence| sequence.n_lacking_blocks(group, most)).sum();
                n_lacking + self.running.len() <= pool.n_available()
            };
            if !self.running.is_empty() && !self.blocks.pools.iter().enumerate().all(has_room) {
                return;
            }
            if let Some(sequence) = self.waiting.remove(next) {
                let earlier = self.waiting.iter_mut().filter(|other| other.number < sequence.number);
                earlier.for_each(|other| other.n_overtaken += 1);
                let place = self.running.partition_point(|other| other.number < sequence.number);
                self.running.insert(place, sequence);
            }
        }
    }

    /// Adds the newest token of each sequence of which only that is left.
    fn decode(&mut self, batch: &mut Batch) {
        let mut idx = 0;
        // Those that are preempted are the last.
        while idx < self.running.len() {
            if self.running[idx].n_left() != 1 {
                idx += 1;
                continue;
            }
            self.running[idx].drop_unseen(&mut self.blocks);
            while self.running[idx].make_room(&mut self.blocks, 1) == 0 {
                self.preempt_youngest();
                if idx >= self.running.len() {
                    return;
                }
            }
            batch.sequences.push(self.running[idx].take(1));
            idx += 1;
        }
    }

    /// Adds parts of prompts, up to `bound` tokens in all.
    fn prefill(&mut self, batch: &mut Batch, bound: usize) {
        let mut n_left = bound;
        let first = self.running.partition_point(|sequence| sequence.number <= self.last_turn);
        for turn in 0..self.running.len() {
            let idx = (first + turn) % self.running.len();
            let sequence = &mut self.running[idx];
            if sequence.n_left() <= 1 && sequence.n_computed > 0 || n_left == 0 {
                continue;
            }
            if batch.sequences.iter().any(|part| part.id == sequence.id) {
                continue;
            }
            sequence.find_computed(&mut self.blocks);
            sequence.drop_unseen(&mut self.blocks);
            // What is soon done is done at once.
            let is_short = n_left == bound && sequence.n_left() <= SHORT_PROMPT;
            let most = if is_short { sequence.n_left() } else { n_left.min(sequence.n_left()) };
            let most = most.min(self.options.prefill_chunk - sequence.n_of_turn);
            let n = sequence.make_room(&mut self.blocks, most);
            if n == 0 {
                continue;
            }
            n_left = n_left.saturating_sub(n);
            sequence.n_of_turn += n;
            batch.sequences.push(sequence.take(n));
            if sequence.n_left() == 0 || sequence.n_of_turn == self.options.prefill_chunk {
                self.last_turn = sequence.number;
                sequence.n_of_turn = 0;
            }
        }
    }

    /// Adds guesses to sequences that generate, the likeliest first, as long as they pay.
    fn guess(&mut self, batch: &mut Batch) {
        let n_running = self.running.len();
        let mut n_rows = batch.sequences.len();
        let mut n_tokens = n_rows as f64;
        // Parts are in the order of their sequences.
        let mut parts = batch.sequences.iter_mut().peekable();
        let drafts = self.running.iter_mut().filter_map(|sequence| {
            let part = parts.next_if(|part| part.id == sequence.id)?;
            let (guesses, right) = sequence.guesses(self.options.context_shift);
            Some(Draft { part, sequence, guesses: guesses.into_iter(), right, likelihood: right })
        });
        let mut drafts: Vec<Draft> = drafts.collect();
        loop {
            let open = drafts.iter_mut().filter(|draft| !draft.guesses.as_slice().is_empty());
            let Some(draft) = open.max_by(|a, b| a.likelihood.total_cmp(&b.likelihood)) else { return };
            if draft.likelihood <= self.row_cost.least_likelihood(n_rows, n_tokens) {
                return;
            }
            // Nobody gives way to a guess, not in the next batch either.
            let n = 1 + draft.part.n_drafts;
            let is_spare = self.blocks.pools.iter().all(|pool| pool.n_available() > n_running);
            let has_room =
                draft.sequence.room() >= n || is_spare && draft.sequence.make_room(&mut self.blocks, n) >= n;
            if !has_room {
                draft.guesses = Vec::new().into_iter();
                continue;
            }
            draft.part.tokens.extend(draft.guesses.next());
            draft.part.n_drafts += 1;
            draft.part.block_tables = draft.sequence.block_tables();
            n_rows += 1;
            n_tokens += draft.likelihood;
            draft.likelihood *= draft.right;
        }
    }

    /// Takes the blocks of the youngest that runs; it waits until there is room again.
    fn preempt_youngest(&mut self) {
        if let Some(mut sequence) = self.running.pop() {
            self.n_preempted += 1;
            sequence.forget_computed(&mut self.blocks);
            self.waiting.push_front(sequence);
        }
    }
}

/// Guesses for a part of a batch.
struct Draft<'a> {
    part: &'a mut ScheduledSeq,
    sequence: &'a mut Sequence,
    /// Those that are not in the part yet.
    guesses: std::vec::IntoIter<u32>,
    /// How likely each is right if those before it are.
    right: f64,
    /// How likely the next one is reached and right.
    likelihood: f64,
}

impl Sequence {
    /// What may come next, and how likely each is right if those before it are.
    fn guesses(&mut self, shift: Option<ContextShift>) -> (Vec<u32>, f64) {
        self.lookup.read(&self.tokens);
        let (mut guesses, right) = self.lookup.guess();
        // Where all are right, a token more comes out of the batch.
        guesses.truncate(self.max_tokens.saturating_sub(self.n_generated + 1));
        if let Some(ContextShift { context_length }) = shift {
            // A context is full at the same token with guesses and without.
            guesses.truncate(context_length.saturating_sub(self.tokens.len()));
        }
        (guesses, right)
    }

    /// Tokens to be computed.
    fn n_left(&self) -> usize {
        self.tokens.len() - self.n_computed
    }

    /// Blocks of a group that its tokens so far still need, if it needs no more than `most` at once.
    fn n_lacking_blocks(&self, group: usize, most: usize) -> usize {
        let Table { blocks, n_unseen } = &self.tables[group];
        let n_to_come = self.tokens.len().div_ceil(BLOCK_TOKENS).saturating_sub(blocks.len());
        n_to_come.min(most.saturating_sub(blocks.len() - n_unseen))
    }

    /// Gives its blocks back; it is as if nothing had been computed.
    fn forget_computed(&mut self, blocks: &mut Blocks) {
        for (table, pool) in self.tables.iter_mut().zip(&mut blocks.pools) {
            pool.release(std::mem::take(table).blocks.into_iter().flatten());
        }
        self.n_computed = 0;
        self.n_published = 0;
        self.parent = Parent::Root(self.cache_namespace.clone());
    }

    /// Gives back the blocks that its next tokens do not see.
    fn drop_unseen(&mut self, blocks: &mut Blocks) {
        for (group, table) in self.tables.iter_mut().enumerate() {
            let n_unseen =
                blocks.first_seen(group, self.n_computed).min(self.n_published).max(table.n_unseen);
            let unseen = table.blocks[table.n_unseen..n_unseen].iter_mut().filter_map(Option::take);
            blocks.pools[group].release(unseen);
            table.n_unseen = n_unseen;
        }
    }

    fn block(&self, idx: usize) -> Option<&[u32; BLOCK_TOKENS]> {
        self.tokens.get(idx * BLOCK_TOKENS..)?.first_chunk()
    }

    /// Lets others find what has been computed.
    fn publish(&mut self, blocks: &mut Blocks) {
        while (self.n_published + 1) * BLOCK_TOKENS <= self.n_computed
            && let Some(tokens) = self.block(self.n_published)
        {
            let content = blocks.prefixes.number(&self.parent, tokens);
            for (table, pool) in self.tables.iter().zip(&mut blocks.pools) {
                if let Some(id) = table.blocks[self.n_published] {
                    pool.publish(id, content);
                }
            }
            self.parent = Parent::Content(content);
            self.n_published += 1;
        }
    }

    /// Takes over blocks that hold what comes next; the last token is always computed, for what follows it.
    fn find_computed(&mut self, blocks: &mut Blocks) {
        let n_before = self.n_published;
        let has_more = self.tables.iter().any(|table| table.blocks.len() != n_before);
        if n_before * BLOCK_TOKENS != self.n_computed || has_more {
            return;
        }
        let (mut contents, mut parent) = (Vec::new(), self.parent.clone());
        while (n_before + contents.len() + 1) * BLOCK_TOKENS < self.tokens.len()
            && let Some(tokens) = self.block(n_before + contents.len())
            && let Some(content) = blocks.prefixes.find(&parent, tokens)
        {
            parent = Parent::Content(content);
            contents.push(content);
        }
        contents.truncate(blocks.n_usable(n_before, &contents));
        if let Some(&last) = contents.last() {
            self.parent = Parent::Content(last);
            self.n_published += contents.len();
            self.n_computed = self.n_published * BLOCK_TOKENS;
        }
        for (group, table) in self.tables.iter_mut().enumerate() {
            let first_seen = blocks.first_seen(group, self.n_computed);
            for (idx, &content) in (n_before..).zip(&contents) {
                let is_seen = idx >= first_seen;
                table.blocks.push(if is_seen { blocks.pools[group].find(content) } else { None });
            }
        }
        if !self.has_begun {
            self.n_cached = self.n_computed;
        }
    }

    /// Makes room for up to `n` tokens more; gives for how many there is.
    fn make_room(&mut self, blocks: &mut Blocks, n: usize) -> usize {
        for (group, table) in self.tables.iter_mut().enumerate() {
            while table.blocks.len() * BLOCK_TOKENS < self.n_computed + n
                && let Some(id) = blocks.allocate(group)
            {
                table.blocks.push(Some(id));
            }
        }
        self.room().min(n)
    }

    /// For how many tokens more its blocks have room.
    fn room(&self) -> usize {
        let n_blocks = self.tables.iter().map(|table| table.blocks.len()).min().unwrap_or_default();
        n_blocks * BLOCK_TOKENS - self.n_computed
    }

    fn block_tables(&self) -> Vec<BlockTable> {
        self.tables.iter().map(|table| table.blocks.clone()).collect()
    }

    /// Its next `n` tokens, which count as computed.
    fn take(&mut self, n: usize) -> ScheduledSeq {
        let start = self.n_computed;
        self.n_computed += n;
        self.has_begun = true;
        ScheduledSeq {
            id: self.id,
            n_prompt: self.n_prompt,
            start,
            tokens: self.tokens[start..self.n_computed].to_vec(),
            n_drafts: 0,
            block_tables: self.block_tables(),
            needs_logits: self.n_computed == self.tokens.len(),
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
            speculative: false,
            context_shift: None,
        })
    }

    /// A prompt of `len` tokens that no other begins like.
    fn prompt(n: u64, len: usize) -> Vec<u32> {
        (0..len as u32).map(|i| n as u32 * 1000 + i).collect()
    }

    fn new(n: u64, prompt: Vec<u32>) -> NewSequence {
        let prediction = Vec::new();
        NewSequence {
            id: id(n),
            prompt,
            prediction,
            max_tokens: 1000,
            tenant: "".into(),
            cache_namespace: "".into(),
        }
    }

    fn add(scheduler: &mut Scheduler, n: u64, prompt: Vec<u32>) {
        scheduler.add(new(n, prompt));
    }

    /// Of each part the sequence, where it starts, and how many tokens it has.
    fn parts(batch: &Batch) -> Vec<(u64, usize, usize)> {
        batch.sequences.iter().map(|part| (part.id.0, part.start, part.tokens.len())).collect()
    }

    /// Takes a batch and lets every sequence that is due say something.
    fn step(scheduler: &mut Scheduler) -> Vec<(u64, usize, usize)> {
        let batch = scheduler.next_batch();
        for part in batch.sequences.iter().filter(|part| part.needs_logits) {
            scheduler.push(part.id, &[7]);
        }
        check(scheduler);
        parts(&batch)
    }

    fn check(scheduler: &Scheduler) {
        for (group, pool) in scheduler.blocks.pools.iter().enumerate() {
            let tables = scheduler.running.iter().map(|sequence| &sequence.tables[group].blocks);
            pool.check_integrity(tables.flatten().flatten());
        }
        let mut waiting = scheduler.waiting.iter().flat_map(|sequence| &sequence.tables);
        assert!(waiting.all(|table| table.blocks.is_empty()));
    }

    /// Another group of layers for a scheduler without sequences.
    fn with_group(scheduler: Scheduler, n_blocks: usize, window: usize) -> Scheduler {
        let mut options = scheduler.options;
        options.groups.push(BlockGroup { n_blocks, window: Some(window) });
        Scheduler::new(options)
    }

    #[test]
    fn prompts_take_turns_and_decodes_never_wait() {
        let mut s = scheduler(4, 40, 100);
        add(&mut s, 1, prompt(1, 250));
        add(&mut s, 2, prompt(2, 10));
        add(&mut s, 3, prompt(3, 230));
        assert_eq!(step(&mut s), [(1, 0, 40)]);
        assert_eq!(step(&mut s), [(2, 0, 10), (3, 0, 30)]);
        // One generates: the others' prompts get no more than 32 tokens.
        assert_eq!(step(&mut s), [(2, 10, 1), (3, 30, 10), (1, 40, 22)]);
        assert_eq!(step(&mut s), [(2, 11, 1), (1, 62, 18), (3, 40, 14)]);
        assert_eq!(step(&mut s), [(2, 12, 1), (3, 54, 26), (1, 80, 6)]);
        // A short prompt is computed at once when its turn comes.
        add(&mut s, 4, prompt(4, 36));
        assert_eq!(step(&mut s), [(2, 13, 1), (4, 0, 36)]);
        assert_eq!(step(&mut s), [(2, 14, 1), (4, 36, 1), (1, 86, 32)]);
        s.remove(id(4), false);
        (1..=3).for_each(|n| s.remove(id(n), false));
        assert!(s.is_idle());
        assert_eq!(s.next_batch(), Batch::default());
    }

    #[test]
    fn a_beginning_is_computed_once() {
        let mut s = scheduler(4, 64, 100);
        let shared = prompt(0, 50);
        let with_end = |n: u64| [&shared[..], &prompt(n, 20)].concat();
        add(&mut s, 1, with_end(1));
        add(&mut s, 2, with_end(2));
        assert_eq!(step(&mut s), [(1, 0, 64)], "the second waits for its turn");
        // Three blocks of sixteen are alike.
        assert_eq!(step(&mut s), [(2, 48, 22), (1, 64, 6)]);
        assert_eq!((s.n_cached(id(1)), s.n_cached(id(2))), (0, 48));
        s.remove(id(1), false);
        s.remove(id(2), false);
        // What has ended is still there, but the last token is always computed.
        add(&mut s, 3, with_end(1)[..64].to_vec());
        assert_eq!(step(&mut s), [(3, 48, 16)]);
        // Others' is not.
        s.add(NewSequence { cache_namespace: "salt".into(), ..new(4, with_end(1)) });
        assert_eq!(step(&mut s), [(3, 64, 1), (4, 0, 64)]);
    }

    #[test]
    fn what_failed_is_not_found() {
        let mut s = scheduler(4, 64, 100);
        add(&mut s, 1, prompt(1, 40));
        step(&mut s);
        s.remove(id(1), true);
        add(&mut s, 2, prompt(1, 40));
        assert_eq!(step(&mut s), [(2, 0, 40)]);
    }

    #[test]
    fn the_youngest_gives_way_and_goes_on_later() {
        let mut s = scheduler(4, 64, 5);
        add(&mut s, 1, prompt(1, 30));
        add(&mut s, 2, prompt(2, 16));
        assert_eq!(step(&mut s), [(1, 0, 30), (2, 0, 16)]);
        for n in 0..16 {
            assert_eq!(step(&mut s), [(1, 30 + n, 1), (2, 16 + n, 1)]);
        }
        // All five blocks are full; the younger one's two go to the older.
        assert_eq!(s.load().n_used_blocks, 5);
        assert_eq!(step(&mut s), [(1, 46, 1)]);
        assert_eq!(step(&mut s), [(1, 47, 1)]);
        assert_eq!(step(&mut s), [(1, 48, 1)]);
        assert_eq!((s.load().n_preempted, s.load().n_waiting), (1, 1));
        s.remove(id(1), false);
        // It has 33 tokens by now, of which the first block is still there.
        assert_eq!(step(&mut s), [(2, 16, 17)]);
        assert_eq!(step(&mut s), [(2, 33, 1)]);
        assert_eq!(s.n_cached(id(2)), 0, "its own work is no saving");
    }

    #[test]
    fn guesses_ride_along_as_long_as_they_pay() {
        let mut s = scheduler(2, 64, 5);
        s.options.speculative = true;
        let text = [1, 2, 3, 4, 5, 6];
        s.add(NewSequence { max_tokens: 9, ..new(1, text.repeat(2)) });
        assert_eq!(parts(&s.next_batch()), [(1, 0, 12)], "a prompt is not guessed at");
        let mut next = |said: &[u32]| {
            s.push(id(1), said);
            let ScheduledSeq { start, tokens, n_drafts, .. } = s.next_batch().sequences.remove(0);
            check(&s);
            (start, tokens, n_drafts)
        };
        assert_eq!(next(&[1]), (12, vec![1, 2], 1));
        // It repeats itself, so more is worth a try.
        assert_eq!(next(&[2, 3]), (14, vec![3, 4, 5], 2));
        // It has six of nine tokens, and one comes for nothing.
        assert_eq!(next(&[4, 5, 6]), (17, vec![6, 1, 2], 2));
        // All wrong, and this has not stood there before.
        assert_eq!(next(&[9]), (18, vec![9], 0));

        // Nobody gives way to a guess.
        let mut s = scheduler(1, 64, 1);
        s.options.speculative = true;
        add(&mut s, 1, text.repeat(2));
        s.next_batch();
        s.push(id(1), &[1]);
        assert_eq!(parts(&s.next_batch()), [(1, 12, 2)]);
        s.push(id(1), &[2, 3]);
        assert_eq!(parts(&s.next_batch()), [(1, 14, 2)], "then the block is full");
    }

    #[test]
    fn blocks_out_of_sight_are_given_back() {
        let mut options = scheduler(2, 32, 0).options;
        options.groups = vec![BlockGroup { n_blocks: 8, window: Some(20) }];
        let mut s = Scheduler::new(options);
        add(&mut s, 1, prompt(1, 200));
        let mut n_held = Vec::new();
        for start in (0..192).step_by(32) {
            let batch = s.next_batch();
            assert_eq!(parts(&batch), [(1, start, 32)]);
            check(&s);
            let n_unseen =
                batch.sequences[0].block_tables[0].iter().take_while(|block| block.is_none()).count();
            assert_eq!(n_unseen, (start + 1).saturating_sub(20) / 16);
            n_held.push(s.load().n_used_blocks);
        }
        assert_eq!(n_held, [2, 4, 4, 4, 4, 4], "eight blocks are enough for two hundred tokens");
        assert_eq!(step(&mut s), [(1, 192, 8)]);
        assert_eq!(step(&mut s), [(1, 200, 1)]);
        // What was given back and is not needed yet is still found.
        add(&mut s, 2, prompt(1, 200)[..50].to_vec());
        s.remove(id(1), false);
        assert_eq!(step(&mut s).len(), 1);
    }

    #[test]
    fn layers_with_a_window_need_no_more_of_a_beginning_than_they_see() {
        let mut s = with_group(scheduler(1, 32, 40), 6, 20);
        let text = prompt(1, 200);
        add(&mut s, 1, text.clone());
        (0..7).for_each(|_| drop(step(&mut s)));
        s.remove(id(1), false);
        // Of the windowed layers' blocks the last six are there: it ends within what they know, or begins anew.
        let mut cached = |n_tokens: usize| {
            add(&mut s, n_tokens as u64, text[..n_tokens].to_vec());
            step(&mut s);
            let n_cached = s.n_cached(id(n_tokens as u64));
            let part = &s.running[0].tables;
            let n_seen = part.iter().map(|table| table.blocks.iter().flatten().count()).collect::<Vec<_>>();
            s.remove(id(n_tokens as u64), false);
            (n_cached, n_seen)
        };
        // The next token, the 192nd, sees the one block before it and a part of another.
        assert_eq!(cached(200), (192, vec![13, 3]));
        assert_eq!(cached(50).0, 0, "what it would need is there no more");
    }

    #[test]
    fn a_full_context_goes_on_without_its_middle() {
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
        s.push(id(1), &[7]);
        assert_eq!(step(&mut s), [(1, 20, 1)]);
    }

    #[test]
    fn tenants_get_their_turns_alike() {
        let mut s = scheduler(2, 64, 100);
        for (n, tenant) in [(1, "a"), (2, "a"), (3, "a"), (4, "b")] {
            s.add(NewSequence { tenant: tenant.into(), ..new(n, prompt(n, 5)) });
        }
        assert_eq!(step(&mut s), [(1, 0, 5), (4, 0, 5)]);
        s.remove(id(1), false);
        assert_eq!(step(&mut s), [(4, 5, 1), (2, 0, 5)]);
    }

    #[test]
    fn nobody_is_overtaken_for_ever() {
        let mut s = scheduler(2, 64, 100);
        let add_for = |s: &mut Scheduler, n: u64, tenant: &str| {
            s.add(NewSequence { tenant: tenant.into(), ..new(n, prompt(n, 5)) });
        };
        // One of a tenant runs, and its second waits while new tenants keep coming.
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
        assert_eq!(started, [3, 4, 2, 5], "after as many as run at once it is its turn");
    }

    #[derive(Debug, Clone)]
    struct Arrival {
        /// Batches before it comes.
        pause: usize,
        prompt: Vec<u32>,
        n_generated: usize,
        tenant: &'static str,
        /// Batches after which its client leaves.
        patience: usize,
    }

    /// A sequence as it should be.
    struct Alive<'a> {
        arrival: &'a Arrival,
        tokens: Vec<u32>,
        n_said: usize,
        /// Batches since it came.
        n_seen: usize,
    }

    fn arrival() -> impl Strategy<Value = Arrival> {
        // Few different tokens, so that beginnings are alike.
        let prompt = (1usize..4, 1usize..70).prop_map(|(kind, len)| {
            (0..len).map(|i| if i < 35 { kind as u32 % 2 } else { (i * kind) as u32 }).collect::<Vec<u32>>()
        });
        (0usize..4, prompt, 1usize..40, prop::sample::select(vec!["a", "b"]), 1usize..400).prop_map(
            |(pause, prompt, n_generated, tenant, patience)| Arrival {
                pause,
                prompt,
                n_generated,
                tenant,
                patience,
            },
        )
    }

    proptest! {
        /// Whatever comes and goes, every sequence computes its own tokens, in order and without gaps, in
        /// blocks that hold just what came before, and ends in bounded time; no block is lost.
        #[test]
        fn every_sequence_is_computed_and_no_block_is_lost(
            arrivals in prop::collection::vec(arrival(), 1..14),
            max_running in 1usize..6,
            chunk in 1usize..50,
            n_blocks in 7usize..30,
            speculative: bool,
            window in prop::option::of(1usize..60),
            other in prop::option::of((7usize..30, 1usize..60)),
            context_length in prop::option::of(75usize..112),
        ) {
            let mut options = scheduler(max_running, chunk, n_blocks).options;
            options.groups[0].window = window;
            options.groups.extend(other.map(|(n_blocks, window)| BlockGroup { n_blocks, window: Some(window) }));
            let mut s = Scheduler::new(options);
            s.options.speculative = speculative;
            s.options.context_shift = context_length.map(|context_length| ContextShift { context_length });
            // What each block holds, as the model would have written it.
            let mut memory: HashMap<(usize, BlockId), Vec<u32>> = HashMap::new();
            let mut alive: HashMap<u64, Alive> = HashMap::new();
            let mut to_come = arrivals.iter().enumerate();
            let (mut next, mut pause) = (to_come.next(), 0);
            let mut n_batches = 0;
            loop {
                while let Some((n, arrival)) = next && pause >= arrival.pause {
                    s.add(NewSequence {
                        max_tokens: arrival.n_generated,
                        tenant: arrival.tenant.into(),
                        cache_namespace: arrival.tenant.into(),
                        ..new(n as u64, arrival.prompt.clone())
                    });
                    let tokens = arrival.prompt.clone();
                    alive.insert(n as u64, Alive { arrival, tokens, n_said: 0, n_seen: 0 });
                    (next, pause) = (to_come.next(), 0);
                }
                pause += 1;
                if next.is_none() && s.is_idle() {
                    break;
                }
                n_batches += 1;
                prop_assert!(n_batches < 5000, "it goes on for ever");
                let batch = s.next_batch();
                check(&s);
                prop_assert!(!batch.sequences.is_empty() || s.is_idle());
                prop_assert!(batch.sequences.len() <= max_running);
                let blocks_from = |part: &ScheduledSeq, first: usize| -> Vec<(usize, BlockId)> {
                    let of_group = |(group, table): (usize, &BlockTable)| {
                        table[first..].iter().map(move |block| (group, block.unwrap())).collect::<Vec<_>>()
                    };
                    part.block_tables.iter().enumerate().flat_map(of_group).collect()
                };
                let written: Vec<(usize, BlockId)> =
                    batch.sequences.iter().flat_map(|part| blocks_from(part, part.start / BLOCK_TOKENS)).collect();
                for part in &batch.sequences {
                    let Alive { arrival, tokens, n_said, .. } = &alive[&part.id.0];
                    let (known, guessed) = part.tokens.split_at(part.tokens.len() - part.n_drafts);
                    let end = part.start + known.len();
                    prop_assert_eq!(known, &tokens[part.start..end]);
                    prop_assert_eq!(part.needs_logits, end == tokens.len());
                    prop_assert!(guessed.is_empty() || part.needs_logits);
                    prop_assert!(part.n_logits() <= arrival.n_generated - n_said);
                    for (group, table) in part.block_tables.iter().enumerate() {
                        prop_assert!(table.len() * BLOCK_TOKENS >= end + guessed.len());
                        for (position, token) in tokens[..part.start].iter().enumerate() {
                            match table[position / BLOCK_TOKENS] {
                                Some(block) => {
                                    prop_assert_eq!(memory[&(group, block)][position % BLOCK_TOKENS], *token);
                                }
                                None => {
                                    let window = s.options.groups[group].window.unwrap();
                                    prop_assert!(position + window <= part.start);
                                }
                            }
                        }
                    }
                    for block in blocks_from(part, part.start / BLOCK_TOKENS) {
                        prop_assert_eq!(written.iter().filter(|other| **other == block).count(), 1);
                    }
                }
                for part in &batch.sequences {
                    for (position, token) in (part.start..).zip(&part.tokens) {
                        for (group, table) in part.block_tables.iter().enumerate() {
                            let id = table[position / BLOCK_TOKENS].unwrap();
                            let block = memory.entry((group, id)).or_default();
                            block.resize(BLOCK_TOKENS, u32::MAX);
                            block[position % BLOCK_TOKENS] = *token;
                        }
                    }
                }
                for part in batch.sequences.iter().filter(|part| part.needs_logits) {
                    let Alive { arrival, tokens, n_said, .. } = alive.get_mut(&part.id.0).unwrap();
                    // It says 0, 1, 2 over and over, as far as its guesses allow at once.
                    let mut guesses = part.tokens[part.tokens.len() - part.n_drafts..].iter();
                    let mut said = vec![*n_said as u32 % 3];
                    while guesses.next() == said.last() {
                        said.push((*n_said + said.len()) as u32 % 3);
                    }
                    tokens.extend(&said);
                    *n_said += said.len();
                    if let Some(length) = context_length.filter(|length| tokens.len() > *length) {
                        prop_assert_eq!(tokens.len(), length + 1);
                        // The first four tokens and the end are half of what there is room for.
                        tokens.drain(4..tokens.len() + 4 - length / 2);
                    }
                    if *n_said >= arrival.n_generated {
                        alive.remove(&part.id.0);
                        s.remove(part.id, false);
                    } else {
                        s.push(part.id, &said);
                    }
                }
                let mut leaving = Vec::new();
                for (n, Alive { arrival, n_seen, .. }) in &mut alive {
                    *n_seen += 1;
                    if *n_seen > arrival.patience {
                        leaving.push(*n);
                    }
                }
                for n in leaving {
                    alive.remove(&n);
                    s.remove(id(n), false);
                }
                check(&s);
            }
            prop_assert!(alive.is_empty());
            prop_assert_eq!(s.load().n_used_blocks, 0);
        }
    }
}
