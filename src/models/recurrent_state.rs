//! The recurrent state of all sequences, in numbered slots of a fixed size.
//!
//! Slots come from the scheduler: one for each running sequence, and those of the prefix cache's snapshots.

use super::forward_input::{BlockId, ForwardInput};
use crate::error::{Error, Result};
use crate::kernels::recurrent::{SequenceState, StateLayout, StateSlot};

/// The slots; memory is allocated when a slot is first used.
#[derive(Debug)]
pub struct RecurrentStates {
    layout: StateLayout,
    slots: Vec<StateSlot>,
}

impl RecurrentStates {
    /// No slots yet.
    pub fn new(layout: StateLayout) -> Self {
        Self { layout, slots: Vec::new() }
    }

    /// The sizes of a slot.
    pub fn layout(&self) -> StateLayout {
        self.layout
    }

    /// Resolves the slots of a batch: restores snapshots, clears the state of new sequences, and returns the state of each
    /// span's sequence. Empty for a model without recurrent layers.
    ///
    /// # Errors
    /// When a sequence has no slot, or two of them write to one.
    pub fn sequences(&mut self, input: &ForwardInput) -> Result<Vec<SequenceState<'_>>> {
        if self.layout.n_layers == 0 {
            return Ok(Vec::new());
        }
        let steps: Option<Vec<_>> = input.states.iter().map(Option::as_ref).collect();
        let steps = steps.filter(|steps| steps.len() == input.spans.len());
        let steps = steps.ok_or_else(|| Error::internal("a sequence has no slot for its recurrent state"))?;
        let snapshots = || steps.iter().flat_map(|step| step.snapshots.iter().map(|(_, slot)| *slot));
        let used = steps.iter().flat_map(|step| [Some(step.slot), step.restored_from]).flatten();
        let n_used = used.chain(snapshots()).map(|slot| slot.0 as usize + 1).max().unwrap_or(0);
        while self.slots.len() < n_used {
            self.slots.push(StateSlot::new(&self.layout));
        }
        // A snapshot may be evicted in the same batch, so all are restored before anything is written.
        let restored = steps.iter().filter_map(|step| Some((step, step.restored_from?)));
        let copies: Vec<_> =
            restored.map(|(step, from)| (step.slot, self.slots[from.0 as usize].clone())).collect();
        for (slot, snapshot) in copies {
            self.slots[slot.0 as usize].copy_from(&snapshot);
        }
        for (span, step) in input.spans.iter().zip(&steps) {
            if span.start == 0 {
                self.slots[step.slot.0 as usize].clear();
            }
        }
        let mut slots: Vec<Option<&mut StateSlot>> = self.slots.iter_mut().map(Some).collect();
        let mut take = |slot: BlockId| {
            let conflict = || Error::internal(format!("two sequences write to slot {slot:?}"));
            slots[slot.0 as usize].take().ok_or_else(conflict)
        };
        let sequences = input.spans.iter().zip(steps);
        sequences
            .map(|(span, step)| {
                Ok(SequenceState {
                    len: span.len,
                    n_drafts: step.n_drafts,
                    n_replayed: step.n_replayed,
                    slot: take(step.slot)?,
                    snapshots: step
                        .snapshots
                        .iter()
                        .map(|&(n, slot)| Ok((n, take(slot)?)))
                        .collect::<Result<_>>()?,
                })
            })
            .collect()
    }
}
