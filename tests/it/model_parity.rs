//! Parity of the models with `transformers` in float32, on tiny models with random weights.

use std::fs;
use std::path::Path;

use predict_otron_9000::inference::scheduler::{
    BlockGroup, NewSequence, Priority, Scheduler, SchedulerOptions,
};
use predict_otron_9000::kernels::attention::kv_block::{BLOCK_TOKENS, KvFormat};
use predict_otron_9000::models::decoder::{CausalLm, KvGroup};
use predict_otron_9000::models::encoder::{EncoderConfig, TextEncoder};
use predict_otron_9000::models::load::{SafetensorsFiles, Weights};
use predict_otron_9000::models::{
    Backend, BlockId, BlockTable, Decoder, ForwardInput, LogitSpan, ModelConfig, SequenceChunk, SequenceId,
    SequenceStates, StateStep,
};

use crate::support::reference::{self, DecoderReference};

fn weights(folder: &Path) -> Weights {
    Weights::Safetensors(SafetensorsFiles::open(&folder.join("model.safetensors")).unwrap())
}

fn decoder(folder: &Path, backend: Backend) -> CausalLm {
    let config = ModelConfig::from_json(&fs::read(folder.join("config.json")).unwrap());
    let config = config.unwrap_or_else(|e| panic!("{folder:?}: {e}"));
    CausalLm::load(config, &weights(folder), backend).unwrap_or_else(|e| panic!("{folder:?}: {e}"))
}

#[test]
fn decoder_reference_logits_whole_and_in_chunks() {
    for folder in reference::decoders() {
        let reference: DecoderReference = reference::read(&folder);
        for backend in reference::backends() {
            let mut model = decoder(&folder, backend);
            for chunk in [reference.input_ids.len(), 33, 16, 7, 1] {
                reference::assert_logits(&format!("{folder:?} {backend:?}"), &mut model, &reference, chunk);
            }
        }
    }
}

#[test]
fn decoder_reference_greedy_tokens_alone_and_beside_others() {
    for folder in reference::decoders() {
        let reference: DecoderReference = reference::read(&folder);
        for backend in reference::backends() {
            let mut model = decoder(&folder, backend);
            for n_neighbors in [0, 3] {
                let found = greedy(&mut model, &reference, n_neighbors);
                assert_eq!(found, reference.greedy, "{folder:?} {backend:?}");
            }
        }
    }
}

/// Generates greedily while `n_neighbors` other sequences, of other lengths, share every batch.
fn greedy(model: &mut CausalLm, reference: &DecoderReference, n_neighbors: usize) -> Vec<u32> {
    let mut states = SequenceStates::new(model.config(), KvFormat::F32);
    let mut sequences: Vec<(SequenceId, usize, Vec<u32>)> = (0..=n_neighbors)
        .map(|n| (SequenceId(n as u64), &reference.input_ids[7 * n..]))
        .map(|(id, prompt)| (id, prompt.len(), prompt.to_vec()))
        .collect();
    // The references were generated without end tokens, to a fixed length.
    let ends = model.config().eos_token_ids.clone();
    let mut n_computed = vec![0; sequences.len()];
    let mut generated = Vec::new();
    while generated.len() < reference.greedy.len() {
        let mut input = ForwardInput::default();
        for ((id, n_prompt, tokens), computed) in sequences.iter().zip(&mut n_computed) {
            let blocks = BlockId::consecutive(100 * id.0 as u32, tokens.len());
            input.push(SequenceChunk {
                sequence: *id,
                n_prompt: *n_prompt,
                n_rounded: 0,
                start: *computed,
                tables: &[blocks],
                state: Some(&StateStep { slot: BlockId(id.0 as u32), ..StateStep::default() }),
                token_ids: &tokens[*computed..],
                n_logits: 1,
            });
            *computed = tokens.len();
        }
        let logits = model.forward(&mut states, &input).unwrap();
        let logits = logits.to_vec2::<f32>().unwrap();
        let next: Vec<u32> = logits.iter().map(|logits| most_likely(logits, &ends)).collect();
        generated.push(next[0]);
        for ((.., tokens), next) in sequences.iter_mut().zip(next) {
            tokens.push(next);
        }
    }
    generated
}

/// Blocks that have left the window of all layers in a group are not needed.
#[test]
fn decoder_reference_windows_need_no_blocks_outside_of_them() {
    let n_windowed = for_each_decoder(has_window, |what, mut model, reference| {
        let groups = model.config().kv_groups();
        let tokens = reference.input_ids.repeat(3);
        let tables = |start: usize, drop_blocks: bool| -> Vec<BlockTable> {
            let table = |group: &KvGroup| {
                let mut table = BlockId::consecutive(0, tokens.len());
                if let Some(window) = group.window.filter(|_| drop_blocks) {
                    table[..(start + 1).saturating_sub(window) / BLOCK_TOKENS].fill(None);
                }
                table
            };
            groups.iter().map(table).collect()
        };
        let mut last_logits = |drop_blocks: bool| {
            let mut states = SequenceStates::new(model.config(), KvFormat::F32);
            let mut logits = Vec::new();
            for (idx, chunk) in tokens.chunks(7).enumerate() {
                let mut input = ForwardInput::default();
                input.push(SequenceChunk {
                    sequence: SequenceId(1),
                    n_prompt: tokens.len(),
                    n_rounded: 0,
                    start: 7 * idx,
                    tables: &tables(7 * idx, drop_blocks),
                    state: Some(&StateStep::default()),
                    token_ids: chunk,
                    n_logits: 1,
                });
                logits = model.forward(&mut states, &input).unwrap().to_vec2::<f32>().unwrap();
            }
            logits
        };
        assert_eq!(last_logits(true), last_logits(false), "{what}");
        let n_dropped = tables(tokens.len() - 1, true).iter().flatten().filter(|id| id.is_none()).count();
        assert!(n_dropped >= 2, "{what}: no blocks were dropped");
    });
    assert!(n_windowed >= 4, "{n_windowed}");
}

/// Sequences with shared prefixes, draft tokens and few blocks generate the same tokens as each does alone.
#[test]
fn decoder_reference_windows_and_states_with_shared_and_scarce_blocks() {
    let has_state = |config: &ModelConfig| has_window(config) || config.state_layout().n_layers > 0;
    let n_stateful = for_each_decoder(has_state, |what, mut model, reference| {
        let groups = model.config().kv_groups();
        let prefix = reference.input_ids.repeat(3);
        let prompts: Vec<Vec<u32>> =
            (0..4).map(|n| [&prefix[..70 + 9 * n], &[n as u32 + 5]].concat()).collect();
        let alone: Vec<Vec<u32>> = prompts
            .iter()
            .map(|prompt| generate(&mut model, &groups, std::slice::from_ref(prompt), 100).remove(0))
            .collect();
        assert_eq!(generate(&mut model, &groups, &prompts, 13), alone, "{what}");
    });
    assert!(n_stateful >= 8, "{n_stateful}");
}

fn has_window(config: &ModelConfig) -> bool {
    config.kv_groups().iter().any(|group| group.window.is_some())
}

/// Runs `test` for every model that `is_tested` on every backend, and returns the number of runs.
fn for_each_decoder(
    is_tested: impl Fn(&ModelConfig) -> bool,
    mut test: impl FnMut(&str, CausalLm, &DecoderReference),
) -> usize {
    let mut n_tested = 0;
    for folder in reference::decoders() {
        let reference: DecoderReference = reference::read(&folder);
        for backend in reference::backends() {
            let model = decoder(&folder, backend);
            if is_tested(model.config()) {
                n_tested += 1;
                test(&format!("{folder:?} {backend:?}"), model, &reference);
            }
        }
    }
    n_tested
}

/// Generates twenty tokens after each prompt, in one scheduler with `n_blocks` blocks per group.
fn generate(
    model: &mut CausalLm,
    groups: &[KvGroup],
    prompts: &[Vec<u32>],
    n_blocks: usize,
) -> Vec<Vec<u32>> {
    const N_TOKENS: usize = 20;
    let mut states = SequenceStates::new(model.config(), KvFormat::F32);
    let mut scheduler = Scheduler::new(SchedulerOptions {
        max_running: 3,
        prefill_chunk: 24,
        groups: groups.iter().map(|group| BlockGroup { n_blocks, window: group.window }).collect(),
        n_state_slots: if model.config().state_layout().n_layers > 0 { n_blocks / 2 } else { 0 },
        speculative: true,
        rounded_prompts: false,
        context_shift: None,
    });
    for (n, prompt) in prompts.iter().enumerate() {
        let id = SequenceId(n as u64);
        let (tenant, cache_namespace) = ("".into(), "".into());
        let (prompt, prediction) = (prompt.clone(), Vec::new());
        scheduler.add(NewSequence {
            id,
            prompt,
            prediction,
            is_scored: false,
            borders: Vec::new(),
            continuations: [].into(),
            max_tokens: N_TOKENS,
            tenant,
            priority: Priority::Interactive,
            cache_namespace,
        });
    }
    let mut outputs = vec![Vec::new(); prompts.len()];
    while !scheduler.is_idle() {
        let batch = scheduler.next_batch();
        let mut input = ForwardInput::default();
        for part in &batch.sequences {
            input.push(SequenceChunk {
                sequence: part.id,
                n_prompt: part.n_prompt,
                n_rounded: 0,
                start: part.start,
                tables: &part.block_tables,
                state: part.state.as_ref(),
                token_ids: &part.tokens,
                n_logits: part.n_logits(),
            });
        }
        let logits = model.forward(&mut states, &input).unwrap().to_vec2::<f32>().unwrap();
        for LogitSpan { sequence: id, rows, following, .. } in input.logit_spans() {
            let mut drafts = following.iter();
            let mut new = Vec::new();
            for logits in &logits[rows] {
                new.push(most_likely(logits, &[]));
                if drafts.next() != new.last() {
                    break;
                }
            }
            let output = &mut outputs[id.0 as usize];
            output.extend(&new);
            if output.len() < N_TOKENS {
                scheduler.append(id, &new);
            } else {
                scheduler.remove(id, false);
            }
        }
    }
    outputs
}

fn most_likely(logits: &[f32], excluded: &[u32]) -> u32 {
    let ids = (0..logits.len() as u32).filter(|id| !excluded.contains(id));
    ids.max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize])).unwrap()
}

#[test]
fn encoder_reference_states_and_scores_alone_and_in_a_batch() {
    for folder in reference::encoders() {
        for backend in reference::encoder_backends() {
            let config = EncoderConfig::from_json(&fs::read(folder.join("config.json")).unwrap());
            let config = config.unwrap_or_else(|e| panic!("{folder:?}: {e}"));
            let model = TextEncoder::load(config, &weights(&folder), backend);
            let model = model.unwrap_or_else(|e| panic!("{folder:?}: {e}"));
            reference::assert_states_and_scores(&folder, &model, backend);
        }
    }
}
