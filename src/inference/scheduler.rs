//! What the next batch holds. Pure: ids and counts in, a [`Batch`] out; no tensor, clock, channel
//! or string is known here.
//!
//! Every running sequence whose prompt is computed gets one token per batch. One chunk of one
//! unfinished prompt rides along; prompts take turns, so a long one cannot keep short ones
//! waiting. Sequences start in the order they came, when there is room for all of their tokens.

use std::collections::VecDeque;
use std::ops::Range;

use crate::models::SequenceId;

/// Decides what is computed together.
#[derive(Debug)]
pub struct Scheduler {
    max_running: usize,
    prefill_chunk: usize,
    /// Tokens that no running sequence has a claim to.
    free_room: usize,
    waiting: VecDeque<Sequence>,
    /// In turn order: the first unfinished prompt is the next to get a chunk.
    running: VecDeque<Sequence>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Sequence {
    id: SequenceId,
    n_prompt: usize,
    /// Tokens it may come to need room for.
    room: usize,
    /// Prompt tokens computed so far.
    n_computed: usize,
}

/// One turn's work.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Sequences that get their next token computed.
    pub decode: Vec<SequenceId>,
    /// A sequence and the part of its prompt to compute.
    pub prefill: Option<(SequenceId, Range<usize>)>,
}

impl Scheduler {
    /// At most `max_running` sequences at once, which together need room for at most `room` tokens;
    /// at most `prefill_chunk` prompt tokens a batch.
    pub fn new(max_running: usize, prefill_chunk: usize, room: usize) -> Self {
        Self {
            max_running: max_running.max(1),
            prefill_chunk: prefill_chunk.max(1),
            free_room: room,
            waiting: VecDeque::new(),
            running: VecDeque::new(),
        }
    }

    /// Queues a sequence with a prompt of `n_prompt` tokens that may need room for `room` in all: no
    /// more than the scheduler was given.
    pub fn add(&mut self, id: SequenceId, n_prompt: usize, room: usize) {
        self.waiting.push_back(Sequence { id, n_prompt, room, n_computed: 0 });
    }

    /// Forgets a sequence, wherever it is.
    pub fn remove(&mut self, id: SequenceId) {
        self.waiting.retain(|sequence| sequence.id != id);
        self.running.retain(|sequence| {
            let stays = sequence.id != id;
            self.free_room += if stays { 0 } else { sequence.room };
            stays
        });
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// The next batch; its work counts as done. Empty only when idle.
    pub fn next_batch(&mut self) -> Batch {
        while self.running.len() < self.max_running
            && let Some(sequence) = self.waiting.pop_front_if(|next| next.room <= self.free_room)
        {
            self.free_room -= sequence.room;
            self.running.push_back(sequence);
        }
        let decode = self
            .running
            .iter()
            .filter(|sequence| sequence.is_decoding())
            .map(|sequence| sequence.id)
            .collect();
        let turn = self.running.iter().position(|sequence| !sequence.is_decoding());
        let prefill = turn.and_then(|turn| self.running.remove(turn)).map(|mut sequence| {
            let start = sequence.n_computed;
            let end = sequence.n_prompt.min(start + self.prefill_chunk);
            sequence.n_computed = end;
            let chunk = (sequence.id, start..end);
            self.running.push_back(sequence);
            chunk
        });
        Batch { decode, prefill }
    }
}

impl Sequence {
    fn is_decoding(&self) -> bool {
        self.n_computed >= self.n_prompt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u64) -> SequenceId {
        SequenceId(n)
    }

    fn batch(decode: &[u64], prefill: Option<(u64, Range<usize>)>) -> Batch {
        Batch {
            decode: decode.iter().copied().map(SequenceId).collect(),
            prefill: prefill.map(|(n, range)| (id(n), range)),
        }
    }

    #[test]
    fn prompts_take_turns_and_decodes_never_wait() {
        let mut scheduler = Scheduler::new(2, 10, 100);
        scheduler.add(id(1), 25, 30);
        scheduler.add(id(2), 4, 30);
        scheduler.add(id(3), 1, 30);
        assert_eq!(scheduler.next_batch(), batch(&[], Some((1, 0..10))));
        assert_eq!(scheduler.next_batch(), batch(&[], Some((2, 0..4))));
        assert_eq!(scheduler.next_batch(), batch(&[2], Some((1, 10..20))));
        assert_eq!(scheduler.next_batch(), batch(&[2], Some((1, 20..25))));
        assert_eq!(scheduler.next_batch(), batch(&[2, 1], None));
        scheduler.remove(id(2));
        assert_eq!(scheduler.next_batch(), batch(&[1], Some((3, 0..1))));
        scheduler.remove(id(1));
        scheduler.remove(id(3));
        assert!(scheduler.is_idle());
        assert_eq!(scheduler.next_batch(), Batch::default());
    }

    #[test]
    fn a_waiting_sequence_can_be_removed() {
        let mut scheduler = Scheduler::new(1, 10, 100);
        scheduler.add(id(1), 1, 30);
        scheduler.add(id(2), 1, 30);
        scheduler.next_batch();
        scheduler.remove(id(2));
        scheduler.remove(id(1));
        assert!(scheduler.is_idle());
    }

    #[test]
    fn a_sequence_waits_for_room_and_keeps_its_place() {
        let mut scheduler = Scheduler::new(8, 10, 100);
        scheduler.add(id(1), 1, 60);
        scheduler.add(id(2), 1, 60);
        scheduler.add(id(3), 1, 10);
        assert_eq!(scheduler.next_batch(), batch(&[], Some((1, 0..1))));
        assert_eq!(scheduler.next_batch(), batch(&[1], None), "3 does not overtake 2");
        scheduler.remove(id(1));
        assert_eq!(scheduler.next_batch(), batch(&[], Some((2, 0..1))));
        assert_eq!(scheduler.next_batch(), batch(&[2], Some((3, 0..1))));
    }

    proptest! {
        #[test]
        fn every_prompt_is_computed_once_in_order_within_bounded_turns(
            prompts in prop::collection::vec(1usize..60, 1..12),
            max_running in 1usize..5,
            chunk in 1usize..20,
        ) {
            let mut scheduler = Scheduler::new(max_running, chunk, 100);
            for (n, &prompt) in prompts.iter().enumerate() {
                scheduler.add(id(n as u64), prompt, prompt);
            }
            let mut computed = vec![0usize; prompts.len()];
            let bound: usize = prompts.iter().map(|p| p.div_ceil(chunk) + 1).sum();
            for _ in 0..bound {
                let batch = scheduler.next_batch();
                prop_assert!(batch.decode.len() + usize::from(batch.prefill.is_some()) <= max_running);
                for decoding in batch.decode {
                    prop_assert_eq!(computed[decoding.0 as usize], prompts[decoding.0 as usize]);
                    scheduler.remove(decoding);
                }
                if let Some((SequenceId(n), range)) = batch.prefill {
                    prop_assert_eq!(range.start, computed[n as usize]);
                    prop_assert!(range.len() <= chunk && !range.is_empty());
                    computed[n as usize] = range.end;
                }
            }
            prop_assert!(scheduler.is_idle());
            prop_assert_eq!(scheduler.free_room, 100);
        }
    }
}
