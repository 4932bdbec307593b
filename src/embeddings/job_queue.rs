//! The queue of the embedding thread, and the choice of its next batch.
//!
//! A batch is filled one input at a time. Each is of the tenant that was served least, and of this tenant's request
//! that was served least. A large request therefore delays a small one by a single batch, not by all of its own,
//! and a tenant with many requests delays another one by no more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::backend::TokenizedInput;
use super::fairness::TenantShares;
use super::ledger::Ticket;
use crate::error::Result;

/// A request in the queue of the embedding thread.
pub struct EmbedJob {
    /// Inputs not computed yet with their indices in the job, longest first. Batches take them from the end, so
    /// that each batch has inputs of similar length.
    pending: Vec<(usize, TokenizedInput)>,
    /// Results by index; empty where not computed yet.
    vectors: Vec<Vec<f32>>,
    n_remaining: usize,
    reply: oneshot::Sender<Result<JobOutput>>,
    tenant: Arc<str>,
    /// Tokens computed so far, plus those that the least served request of its tenant had when this one arrived.
    served: u64,
    arrived: Instant,
    /// How long it waited for its first batch, once that has started.
    queue_time: Option<Duration>,
    /// How long its batches have taken.
    compute_time: Duration,
    /// Released when the job is dropped, in whichever way it ends.
    ticket: Arc<Ticket>,
}

/// The result of a job.
#[derive(Debug, Default)]
pub struct JobOutput {
    /// One vector for each input.
    pub vectors: Vec<Vec<f32>>,
    /// How long the job waited for its first batch.
    pub queue_time: Duration,
    /// How long its batches took.
    pub compute_time: Duration,
}

/// One input of a batch.
#[derive(Clone)]
pub struct BatchItem {
    /// The job's index in the queue.
    pub job_idx: usize,
    /// The input's index in the job.
    pub input_idx: usize,
    /// The input.
    pub input: TokenizedInput,
}

/// The jobs that wait, with what their tenants were served.
#[derive(Default)]
pub struct JobQueue {
    jobs: Vec<EmbedJob>,
    shares: TenantShares,
}

impl EmbedJob {
    /// A job that computes `inputs` for a tenant, and replies with their vectors.
    pub fn new(
        inputs: Vec<TokenizedInput>,
        tenant: Arc<str>,
        ticket: Arc<Ticket>,
        reply: oneshot::Sender<Result<JobOutput>>,
    ) -> Self {
        let n_inputs = inputs.len();
        let mut pending: Vec<(usize, TokenizedInput)> = inputs.into_iter().enumerate().collect();
        pending.sort_by_key(|(_, input)| std::cmp::Reverse(input.ids.len()));
        Self {
            pending,
            vectors: vec![Vec::new(); n_inputs],
            n_remaining: n_inputs,
            reply,
            tenant,
            served: 0,
            arrived: Instant::now(),
            queue_time: None,
            compute_time: Duration::ZERO,
            ticket,
        }
    }
}

impl JobQueue {
    /// Appends a job.
    pub fn push(&mut self, mut job: EmbedJob) {
        self.shares.activate(&job.tenant);
        let others = self.jobs.iter().filter(|other| other.tenant == job.tenant);
        job.served = others.map(|other| other.served).min().unwrap_or(0);
        self.jobs.push(job);
    }

    /// Drops the jobs that nobody waits for. Returns whether any are left.
    pub fn drop_abandoned(&mut self) -> bool {
        self.jobs.retain(|job| !job.reply.is_closed());
        let Self { jobs, shares } = self;
        shares.retain(|tenant| jobs.iter().any(|job| &*job.tenant == tenant));
        !jobs.is_empty()
    }

    /// Takes inputs of up to `max_tokens` in all out of the queue, but at least one. Items are in the order of their
    /// jobs.
    pub fn next_batch(&mut self, max_tokens: usize) -> Vec<BatchItem> {
        let mut batch: Vec<BatchItem> = Vec::new();
        let mut n_tokens = 0;
        loop {
            let Self { jobs, shares } = self;
            let fits = |job: &EmbedJob| {
                let next = job.pending.last().map(|(_, input)| input.ids.len());
                next.is_some_and(|n| batch.is_empty() || n_tokens + n <= max_tokens)
            };
            let least_served = (0..jobs.len())
                .filter(|&idx| fits(&jobs[idx]))
                .min_by_key(|&idx| (shares.served(&jobs[idx].tenant), jobs[idx].served));
            let Some(job_idx) = least_served else { break };
            let job = &mut jobs[job_idx];
            let Some((input_idx, input)) = job.pending.pop() else { break };
            n_tokens += input.ids.len();
            // An input without tokens costs something, too.
            let cost = input.ids.len().max(1) as u64;
            job.served += cost;
            shares.charge(&job.tenant, cost);
            batch.push(BatchItem { job_idx, input_idx, input });
        }
        batch.sort_by_key(|item| item.job_idx);
        batch
    }

    /// Notes that the jobs of `batch` are computed from now on.
    pub fn begin(&mut self, batch: &[BatchItem], now: Instant) {
        for job_idx in jobs_of(batch) {
            let job = &mut self.jobs[job_idx];
            if job.queue_time.is_none() {
                job.queue_time = Some(now - job.arrived);
                job.ticket.begin();
            }
        }
    }

    /// Hands the vectors of a batch to their jobs.
    pub fn scatter(&mut self, batch: &[BatchItem], vectors: Vec<Vec<f32>>) {
        for (item, vector) in batch.iter().zip(vectors) {
            let job = &mut self.jobs[item.job_idx];
            job.ticket.record_computed(item.input.ids.len());
            job.vectors[item.input_idx] = vector;
            job.n_remaining -= 1;
        }
    }

    /// Ends a batch that took this long: replies to the jobs that failed, with their error, and to those that are
    /// complete.
    pub fn finish(
        &mut self,
        batch: &[BatchItem],
        failures: Vec<(usize, crate::error::Error)>,
        took: Duration,
    ) {
        for job_idx in jobs_of(batch) {
            self.jobs[job_idx].compute_time += took;
        }
        let mut failures = failures.into_iter().peekable();
        let mut left = Vec::new();
        for (idx, job) in std::mem::take(&mut self.jobs).into_iter().enumerate() {
            let failure = failures.next_if(|(failed, _)| *failed == idx);
            // In both cases the client may have disconnected.
            if let Some((_, e)) = failure {
                let _ = job.reply.send(Err(e));
            } else if job.n_remaining == 0 {
                let EmbedJob { vectors, queue_time, compute_time, reply, .. } = job;
                let queue_time = queue_time.unwrap_or_default();
                let _ = reply.send(Ok(JobOutput { vectors, queue_time, compute_time }));
            } else {
                left.push(job);
            }
        }
        self.jobs = left;
    }
}

/// The indices of the jobs of a batch, each once.
pub fn jobs_of(batch: &[BatchItem]) -> Vec<usize> {
    let mut jobs: Vec<usize> = batch.iter().map(|item| item.job_idx).collect();
    jobs.dedup();
    jobs
}

#[cfg(test)]
mod tests {
    use super::super::ledger::{LedgerLimits, RequestLedger};
    use super::*;

    const LIMITS: LedgerLimits = LedgerLimits { requests: 1000, bytes: 1 << 20, tokens: 1 << 20 };

    /// Adds a job of a tenant with inputs of these lengths, the last first.
    fn push(queue: &mut JobQueue, tenant: &str, lengths: &[usize]) -> oneshot::Receiver<Result<JobOutput>> {
        let (reply, response) = oneshot::channel();
        let ledger = RequestLedger::new(LIMITS);
        let (ticket, _) = ledger.admit(&tenant.into(), 0).unwrap();
        let input = |&n: &usize| TokenizedInput { text: None, ids: vec![0; n], n_first: None };
        let inputs = lengths.iter().map(input).collect();
        queue.push(EmbedJob::new(inputs, tenant.into(), Arc::new(ticket), reply));
        response
    }

    /// The inputs of each job in the next batch.
    fn counts(queue: &mut JobQueue, max_tokens: usize, n_jobs: usize) -> Vec<usize> {
        let mut counts = vec![0; n_jobs];
        queue.next_batch(max_tokens).iter().for_each(|item| counts[item.job_idx] += 1);
        counts
    }

    #[test]
    fn a_batch_shares_its_tokens_equally_among_jobs() {
        let mut queue = JobQueue::default();
        let _replies = [&[10; 50][..], &[10; 2], &[10; 50]].map(|lengths| push(&mut queue, "a", lengths));
        assert_eq!(counts(&mut queue, 120, 3), [5, 2, 5]);
        assert_eq!(counts(&mut queue, 120, 3), [6, 0, 6]);
    }

    #[test]
    fn a_batch_shares_its_tokens_equally_among_tenants() {
        let mut queue = JobQueue::default();
        let mut replies: Vec<_> = (0..9).map(|_| push(&mut queue, "many", &[10; 50])).collect();
        replies.push(push(&mut queue, "one", &[10; 50]));
        let counts = counts(&mut queue, 180, 10);
        assert_eq!(counts, [1, 1, 1, 1, 1, 1, 1, 1, 1, 9]);
    }

    #[test]
    fn a_new_job_is_in_the_next_batch_whatever_waits() {
        let mut queue = JobQueue::default();
        let mut replies: Vec<_> = (0..50).map(|_| push(&mut queue, "many", &[500; 50])).collect();
        for _ in 0..70 {
            assert_eq!(queue.next_batch(512).len(), 1);
        }
        replies.push(push(&mut queue, "many", &[7]));
        replies.push(push(&mut queue, "one", &[9, 500]));
        let batch: Vec<_> =
            queue.next_batch(512).iter().map(|item| (item.job_idx, item.input.ids.len())).collect();
        assert!(batch.contains(&(50, 7)) || batch.contains(&(51, 9)), "{batch:?}");
        let next: Vec<_> =
            queue.next_batch(512).iter().map(|item| (item.job_idx, item.input.ids.len())).collect();
        let both = [batch, next].concat();
        assert!(both.contains(&(50, 7)) && both.contains(&(51, 9)), "{both:?}");
    }

    #[test]
    fn a_batch_has_at_least_one_input() {
        let mut queue = JobQueue::default();
        assert!(queue.next_batch(100).is_empty());
        let _replies = [push(&mut queue, "a", &[500]), push(&mut queue, "a", &[3, 2])];
        assert_eq!(counts(&mut queue, 100, 2), [1, 0]);
        assert_eq!(counts(&mut queue, 100, 2), [0, 2]);
        assert!(queue.next_batch(100).is_empty());
    }

    #[test]
    fn jobs_are_answered_when_complete_failed_or_dropped_when_abandoned() {
        let mut queue = JobQueue::default();
        let mut done = push(&mut queue, "a", &[1]);
        let mut failed = push(&mut queue, "a", &[1]);
        let mut open = push(&mut queue, "a", &[100, 1]);
        let abandoned = push(&mut queue, "b", &[1]);
        drop(abandoned);
        assert!(queue.drop_abandoned());
        let batch = queue.next_batch(3);
        assert_eq!(jobs_of(&batch), [0, 1, 2]);
        queue.begin(&batch, Instant::now());
        queue.scatter(&[batch[0].clone(), batch[2].clone()], vec![vec![1.0], vec![2.0]]);
        let failure = (1, crate::error::Error::internal("x"));
        queue.finish(&batch, vec![failure], Duration::from_secs(1));
        assert_eq!(done.try_recv().unwrap().unwrap().vectors, [vec![1.0]]);
        assert!(failed.try_recv().unwrap().is_err());
        assert!(open.try_recv().is_err());
        let batch = queue.next_batch(3);
        queue.scatter(&batch, vec![vec![3.0]]);
        queue.finish(&batch, Vec::new(), Duration::from_secs(1));
        let output = open.try_recv().unwrap().unwrap();
        assert_eq!((output.vectors, output.compute_time.as_secs()), (vec![vec![3.0], vec![2.0]], 2));
        assert!(!queue.drop_abandoned());
    }
}
