//! The memory of conversations with which a template exceeded a limit, so that a retry does not take as long again.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::TemplateInput;
use crate::error::Error;

/// Conversations to remember.
const MAX_FAILURES: usize = 64;

/// Hashes of the latest conversations that exceeded a limit, and their errors. Other conversations are not affected.
#[derive(Default)]
pub struct Failures {
    hasher: RandomState,
    latest: Mutex<VecDeque<(u64, Error)>>,
}

impl Failures {
    /// The error of an earlier attempt with the same conversation.
    pub fn find<M: Serialize>(&self, input: &TemplateInput<'_, M>) -> Option<Error> {
        if self.latest().is_empty() {
            return None;
        }
        let hash = self.hash(input);
        self.latest().iter().find(|(failed, _)| *failed == hash).map(|(_, e)| e.clone())
    }

    /// Remembers the error of a conversation.
    pub fn remember<M: Serialize>(&self, input: &TemplateInput<'_, M>, e: &Error) {
        let failure = (self.hash(input), e.clone());
        let mut latest = self.latest();
        latest.truncate(MAX_FAILURES - 1);
        latest.push_front(failure);
    }

    fn hash<M: Serialize>(&self, input: &TemplateInput<'_, M>) -> u64 {
        let TemplateInput { messages, tools, documents, add_generation_prompt, variables, now: _ } = input;
        let content = serde_json::to_vec(&(messages, tools, documents, add_generation_prompt, variables));
        self.hasher.hash_one(content.unwrap_or_default())
    }

    fn latest(&self) -> MutexGuard<'_, VecDeque<(u64, Error)>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
