//! Batches in the form of their APIs.

use super::record::{BatchCounts, BatchRecord, BatchState};
use crate::anthropic::batches::{MessageBatchCounts, MessageBatchObject};
use crate::anthropic::rfc_3339;
use crate::openai::batches::{BatchErrors, BatchObject, RequestCounts};

/// A batch in OpenAI's form.
pub fn batch_object(batch: &BatchRecord) -> BatchObject {
    let at = |state: BatchState| batch.times.get(&state).copied();
    let status = serde_json::to_value(batch.state).ok();
    let errors = BatchErrors { object: "list", data: batch.errors.clone() };
    let file = |file: &super::record::ResultFile| {
        (batch.state.is_final() && file.n_bytes > 0).then(|| file.id.clone())
    };
    let BatchCounts { total, succeeded, errored, cancelled, expired } = batch.counts;
    BatchObject {
        id: batch.id.clone(),
        object: "batch",
        endpoint: batch.endpoint.clone(),
        model: batch.model.clone(),
        errors: Some(errors).filter(|errors| !errors.data.is_empty()),
        input_file_id: batch.input_file.clone(),
        completion_window: batch.completion_window.clone(),
        status: status.as_ref().and_then(|status| status.as_str()).unwrap_or_default().to_owned(),
        output_file_id: file(&batch.results),
        error_file_id: file(&batch.failures),
        created_at: batch.created_at(),
        in_progress_at: at(BatchState::InProgress),
        expires_at: batch.expires_at,
        finalizing_at: at(BatchState::Finalizing),
        completed_at: at(BatchState::Completed),
        failed_at: at(BatchState::Failed),
        expired_at: at(BatchState::Expired),
        cancelling_at: at(BatchState::Cancelling),
        cancelled_at: at(BatchState::Cancelled),
        request_counts: RequestCounts { total, completed: succeeded, failed: errored + cancelled + expired },
        usage: batch.usage,
        metadata: batch.metadata.clone(),
    }
}

/// A batch in Anthropic's form.
pub fn message_batch(batch: &BatchRecord) -> MessageBatchObject {
    let at = |state: BatchState| batch.times.get(&state).map(|&time| rfc_3339(time));
    let final_states =
        [BatchState::Completed, BatchState::Cancelled, BatchState::Expired, BatchState::Failed];
    let BatchCounts { total, succeeded, errored, cancelled: canceled, expired } = batch.counts;
    let has_ended = batch.state.is_final();
    let request_counts = match has_ended {
        true => MessageBatchCounts { processing: 0, succeeded, errored, canceled, expired },
        false => MessageBatchCounts { processing: total, succeeded: 0, errored: 0, canceled: 0, expired: 0 },
    };
    MessageBatchObject {
        id: batch.id.clone(),
        kind: "message_batch",
        processing_status: match batch.state {
            _ if has_ended => "ended",
            BatchState::Cancelling => "canceling",
            _ => "in_progress",
        },
        request_counts,
        ended_at: final_states.into_iter().find_map(at),
        created_at: rfc_3339(batch.created_at()),
        expires_at: rfc_3339(batch.expires_at),
        archived_at: None,
        cancel_initiated_at: at(BatchState::Cancelling),
        results_url: has_ended.then(|| format!("/v1/messages/batches/{}/results", batch.id)),
    }
}
