//! A time profile of forward passes.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// An operation of a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardOp {
    /// Token embedding look-up, and the preparation of a batch before its first layer.
    Embedding,
    /// The norm and the projections of queries, keys and values.
    Qkv,
    /// Rotary embedding, KV cache write and attention.
    Attention,
    /// The output projection of attention.
    Output,
    /// A recurrent mixer: its norm, projections, convolution and recurrence.
    Recurrence,
    /// The norm and the gate, up and down projections.
    Mlp,
    /// A mixture of experts, its router included.
    Experts,
    /// The last norm and the projection to the vocabulary.
    Head,
}

impl ForwardOp {
    /// Every operation, in the order of a forward pass.
    pub const ALL: [Self; 8] = [
        Self::Embedding,
        Self::Qkv,
        Self::Attention,
        Self::Output,
        Self::Recurrence,
        Self::Mlp,
        Self::Experts,
        Self::Head,
    ];
}

/// The time spent in each [`ForwardOp`]. Always on: reading the clock takes about 30 ns, and the shortest
/// operation of the default model 8 µs.
#[derive(Debug)]
pub struct ForwardProfile {
    last: Cell<Instant>,
    times: [Cell<Duration>; ForwardOp::ALL.len()],
}

impl Default for ForwardProfile {
    fn default() -> Self {
        Self { last: Cell::new(Instant::now()), times: Default::default() }
    }
}

impl ForwardProfile {
    /// Starts the clock at the beginning of a forward pass.
    pub fn start(&self) {
        self.last.set(Instant::now());
    }

    /// Adds the time since the last call to `op`.
    pub fn lap(&self, op: ForwardOp) {
        let (now, time) = (Instant::now(), &self.times[op as usize]);
        time.set(time.get() + now.duration_since(self.last.replace(now)));
    }

    /// Returns the time of each operation and resets it to zero.
    pub fn take_times(&self) -> [(ForwardOp, Duration); ForwardOp::ALL.len()] {
        ForwardOp::ALL.map(|op| (op, self.times[op as usize].take()))
    }
}
