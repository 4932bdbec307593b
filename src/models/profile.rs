//! Where the time of forward passes goes.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// A part of a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Looking up token embeddings, and what a batch needs before its first layer.
    Embedding,
    /// Norm and projections of queries, keys and values.
    Qkv,
    Attention,
    /// Output projection.
    Output,
    /// Norm, gate, up and down projections.
    Mlp,
    /// A mixture of experts, its router among them.
    Experts,
    /// Last norm, and the projection to the vocabulary.
    Head,
}

impl Op {
    pub const ALL: [Self; 7] =
        [Self::Embedding, Self::Qkv, Self::Attention, Self::Output, Self::Mlp, Self::Experts, Self::Head];
}

/// Time spent in each [`Op`]. Reading the clock takes some 30 ns, and the shortest of them in the default
/// model 8 µs, so this is always on.
#[derive(Debug)]
pub struct Profile {
    last: Cell<Instant>,
    times: [Cell<Duration>; Op::ALL.len()],
}

impl Default for Profile {
    fn default() -> Self {
        Self { last: Cell::new(Instant::now()), times: Default::default() }
    }
}

impl Profile {
    /// A forward pass begins.
    pub fn start(&self) {
        self.last.set(Instant::now());
    }

    /// What has passed since the last call was `op`.
    pub fn lap(&self, op: Op) {
        let (now, time) = (Instant::now(), &self.times[op as usize]);
        time.set(time.get() + now.duration_since(self.last.replace(now)));
    }

    /// The time of each since it was last asked for.
    pub fn take(&self) -> [(Op, Duration); Op::ALL.len()] {
        Op::ALL.map(|op| (op, self.times[op as usize].take()))
    }
}
