//! The compute pool: threads that run one parallel job at a time together.
//!
//! [`run`] gives all threads the same closure. Inside it they claim chunks of the work
//! ([`Team::claim_chunks`], with work stealing) and separate dependent stages by a barrier
//! ([`Team::barrier`]). The calling thread is one of them. Between two jobs the others spin for a moment,
//! since a forward pass brings hundreds of jobs in a row, and then sleep.
//!
//! candle multiplies matrices on rayon's global pool and on a pool of its own: when models are loaded, and
//! in its plain operations. Both read their size from the environment when first used, so [`configure`]
//! sets it once, before any other thread exists.

use std::cell::Cell;
use std::collections::HashSet;
use std::env;
use std::fs;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::fair_share::FairLock;

/// The environment variable that sets the number of compute threads.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// How long an idle thread spins before it sleeps: longer than the pauses within a forward pass, and between
/// two passes, when tokens are sampled.
const SPIN: Duration = Duration::from_micros(200);

/// Iterations of a spin loop between two looks at the clock.
const SPINS_PER_CLOCK_READ: u32 = 64;

/// Compute threads for each processor, at most. More only wait for each other: a job ends when its last thread has
/// had its turn, so a thousand threads on two processors would take minutes for a token.
const MAX_THREADS_PER_PROCESSOR: usize = 2;

/// Sets the number of compute threads: `requested`, else what the environment says, else the physical
/// cores that this process may use. Returns the number asked for if it is more than
/// `MAX_THREADS_PER_PROCESSOR` allow, and was reduced to that.
///
/// # Safety
/// No other thread runs yet: the environment changes, and another thread might read it meanwhile.
pub unsafe fn configure(requested: Option<usize>) -> Option<usize> {
    let asked = requested.or_else(threads_in_environment);
    if let Some(n_threads) = requested {
        // SAFETY: no other thread runs, as this function requires.
        unsafe { env::set_var(VARIABLE, n_threads.to_string()) };
    }
    for name in [VARIABLE, "CANDLE_NUM_THREADS"] {
        // SAFETY: no other thread runs, as this function requires.
        unsafe { env::set_var(name, n_threads().to_string()) };
    }
    asked.filter(|&asked| asked > n_threads())
}

/// The number of compute threads, fixed when first asked for.
pub fn n_threads() -> usize {
    static N_THREADS: OnceLock<usize> = OnceLock::new();
    *N_THREADS.get_or_init(|| {
        let available = thread::available_parallelism().map_or(1, usize::from);
        match threads_in_environment() {
            Some(asked) => asked.min(MAX_THREADS_PER_PROCESSOR * available),
            None => physical_cores().map_or(available, |cores| cores.min(available)),
        }
    })
}

fn threads_in_environment() -> Option<usize> {
    env::var(VARIABLE).ok().and_then(|n| n.parse().ok()).filter(|&n| n > 0)
}

/// The number of physical cores that this process may use, if the system tells: two threads on one core
/// share its execution units and gain nothing.
fn physical_cores() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let cores: Option<HashSet<String>> = parse_cpu_list(allowed)?
        .into_iter()
        .map(|processor| {
            let path = format!("/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list");
            fs::read_to_string(path).ok()
        })
        .collect();
    cores.map(|cores| cores.len()).filter(|&n| n > 0)
}

/// Parses a list of processors such as `0-3,8`.
fn parse_cpu_list(list: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        all.extend(first..=last);
    }
    Some(all)
}

/// Lowers the priority of the calling compute thread, so that the threads that serve HTTP, which need
/// little time but need it soon, run first.
pub fn lower_priority() {
    set_niceness(5);
}

/// Sets the niceness of the calling thread, and of the processes that it starts.
#[cfg_attr(not(target_os = "linux"), allow(unused_variables, reason = "elsewhere threads have none"))]
pub fn set_niceness(niceness: i32) {
    // SAFETY: changes only this thread's niceness; a failure costs only speed.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, niceness)
    };
}

/// Runs `job` on all compute threads and returns when all have finished. Callers on several threads
/// share the pool's time fairly; `job` itself must not call `run`.
///
/// # Panics
/// When `job` panics on any thread.
pub fn run(job: impl Fn(&Team) + Sync) {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool::start(n_threads())).run(&job);
}

/// Stages of a job at most: the parts between barriers.
const MAX_STAGES: usize = 4;

/// The compute threads, as one of them sees them while it runs a job.
pub struct Team<'a> {
    index: usize,
    shared: &'a Shared,
    /// The number of the current stage, counted over all jobs.
    stage: Cell<usize>,
}

impl Team<'_> {
    /// The index of this thread, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The number of threads.
    pub fn n_threads(&self) -> usize {
        self.shared.n_threads
    }

    /// Claims chunks of up to `at_once` of the items `0..n`, once in each stage. Each thread first works
    /// through a range of its own, so that it reads memory in order, and then steals from the others'.
    pub fn claim_chunks(&self, n: usize, at_once: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let n_threads = self.n_threads();
        let stage = self.stage.get();
        let mut owners = (0..n_threads).map(move |idx| (self.index + idx) % n_threads);
        let mut owner = owners.next();
        std::iter::from_fn(move || {
            while let Some(idx) = owner {
                let (start, end) = (idx * n / n_threads, (idx + 1) * n / n_threads);
                let item = start + self.shared.claimed(idx, stage).fetch_add(at_once, Ordering::Relaxed);
                if item < end {
                    return Some(item..end.min(item + at_once));
                }
                owner = owners.next();
            }
            None
        })
    }

    /// A barrier: waits until all threads have finished this stage, whose results all see in the next. Every
    /// thread must call it.
    ///
    /// # Panics
    /// When another thread has panicked, or the job has too many stages.
    pub fn barrier(&self) {
        let next = self.stage.get() + 1;
        assert!(!next.is_multiple_of(MAX_STAGES), "a job has at most {MAX_STAGES} stages");
        self.stage.set(next);
        self.shared.reached[self.index].0.store(next, Ordering::Release);
        wait_for(|| self.shared.all_have_reached(next) || self.shared.is_poisoned.load(Ordering::Relaxed));
        // A thread that panics counts as having reached every stage, so the wait may have ended by that alone, and
        // its part of this stage is missing. It has set the flag before that.
        if self.shared.is_poisoned.load(Ordering::Relaxed) {
            // No message: the other thread's panic is in the log.
            resume_unwind(Box::new("another compute thread has panicked"));
        }
    }
}

struct Pool {
    shared: Arc<Shared>,
    lock: FairLock,
}

/// The closure of [`run`], without its lifetime.
type Job = NonNull<dyn Fn(&Team) + Sync>;

/// A value on two cache lines of its own, since processors prefetch lines in pairs: no false sharing.
#[derive(Default)]
#[repr(align(128))]
struct CachePadded<T>(T);

struct Shared {
    n_threads: usize,
    /// The current job: the address of its caller's pointer to it.
    job: AtomicPtr<Job>,
    /// The number of jobs begun so far.
    begun: CachePadded<AtomicUsize>,
    /// The stage that each thread has reached. Job `n` has the stages from `n * MAX_STAGES` on; a thread that
    /// has finished it has reached the first stage of the next job.
    reached: Box<[CachePadded<AtomicUsize>]>,
    /// For each thread's range, how many items have been claimed: in the stages of this job and in those of
    /// the next, which each thread resets for itself.
    claimed: Box<[CachePadded<[AtomicUsize; 2 * MAX_STAGES]>]>,
    /// The number of sleeping threads.
    n_asleep: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    is_poisoned: AtomicBool,
}

impl Pool {
    /// A pool of `n_threads`, or of as many as the system starts.
    fn start(n_threads: usize) -> Self {
        let mut waiting = Vec::new();
        for index in 1..n_threads {
            let (sender, receiver) = mpsc::channel::<Arc<Shared>>();
            let serve = move || {
                if let Ok(shared) = receiver.recv() {
                    shared.serve(index);
                }
            };
            // Fewer threads do the same work, only slower.
            match thread::Builder::new().name(format!("compute-{index}")).spawn(serve) {
                Ok(_) => waiting.push(sender),
                Err(_) => break,
            }
        }
        let n_threads = 1 + waiting.len();
        let shared = Arc::new(Shared {
            n_threads,
            job: AtomicPtr::new(ptr::null_mut()),
            begun: CachePadded::default(),
            reached: (0..n_threads).map(|_| CachePadded::default()).collect(),
            claimed: (0..n_threads).map(|_| CachePadded::default()).collect(),
            n_asleep: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            is_poisoned: AtomicBool::new(false),
        });
        for sender in waiting {
            // A thread that has ended would have taken the process with it.
            let _ = sender.send(shared.clone());
        }
        Self { shared, lock: FairLock::new() }
    }

    fn run<'a>(&self, job: &'a (dyn Fn(&Team) + Sync + 'a)) {
        self.lock.run(|| self.run_locked(job));
    }

    fn run_locked<'a>(&self, job: &'a (dyn Fn(&Team) + Sync + 'a)) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; this function waits for every thread before it returns, and no
        // thread uses the pointer afterwards.
        let mut unbounded =
            unsafe { std::mem::transmute::<NonNull<dyn Fn(&Team) + Sync + 'a>, Job>(NonNull::from(job)) };
        shared.job.store(&raw mut unbounded, Ordering::Relaxed);
        // A thread about to sleep increments `n_asleep` and then reads `begun`; here it is the other way
        // round, so in either order one of the two sees the other.
        let n = shared.begun.0.fetch_add(1, Ordering::SeqCst);
        if shared.n_asleep.load(Ordering::SeqCst) > 0 {
            drop(shared.sleep.lock());
            shared.wake.notify_all();
        }
        let own = shared.run_and_catch_panic(0, n, job);
        wait_for(|| shared.all_have_reached((n + 1) * MAX_STAGES));
        if shared.is_poisoned.swap(false, Ordering::Relaxed) {
            match own {
                Err(panic) => resume_unwind(panic),
                Ok(()) => panic!("a compute thread has panicked"),
            }
        }
    }
}

impl Shared {
    /// The main loop of a compute thread.
    fn serve(&self, index: usize) {
        lower_priority();
        for n in 0.. {
            self.wait_for_job(n);
            // SAFETY: `Pool::run_locked` keeps pointer and closure alive until all threads have finished the job.
            let job = unsafe { (*self.job.load(Ordering::Relaxed)).as_ref() };
            // The calling thread reports a panic.
            let _ = self.run_and_catch_panic(index, n, job);
        }
    }

    /// Waits until job `n` has begun.
    fn wait_for_job(&self, n: usize) {
        let has_begun = || self.begun.0.load(Ordering::SeqCst) > n;
        let start = Instant::now();
        while start.elapsed() < SPIN {
            for _ in 0..SPINS_PER_CLOCK_READ {
                if has_begun() {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        let mut sleep = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.n_asleep.fetch_add(1, Ordering::SeqCst);
        while !has_begun() {
            sleep = self.wake.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        }
        self.n_asleep.fetch_sub(1, Ordering::SeqCst);
    }

    /// Runs a thread's part of job `n`.
    fn run_and_catch_panic(
        &self,
        index: usize,
        n: usize,
        job: &(dyn Fn(&Team) + Sync),
    ) -> thread::Result<()> {
        let first_stage = n * MAX_STAGES;
        // All threads have finished the last job, which used the same counters.
        for stage in first_stage + MAX_STAGES..first_stage + 2 * MAX_STAGES {
            self.claimed(index, stage).store(0, Ordering::Relaxed);
        }
        let team = Team { index, shared: self, stage: Cell::new(first_stage) };
        let result = catch_unwind(AssertUnwindSafe(|| job(&team)));
        if result.is_err() {
            self.is_poisoned.store(true, Ordering::Relaxed);
        }
        self.reached[index].0.store(first_stage + MAX_STAGES, Ordering::Release);
        result
    }

    fn claimed(&self, index: usize, stage: usize) -> &AtomicUsize {
        &self.claimed[index].0[stage % (2 * MAX_STAGES)]
    }

    fn all_have_reached(&self, stage: usize) -> bool {
        self.reached.iter().all(|reached| reached.0.load(Ordering::Acquire) >= stage)
    }
}

/// Spins until `is_done`; yields the core when that takes long, since the thread it waits for may need it.
fn wait_for(is_done: impl Fn() -> bool) {
    let mut n_spins = 0u32;
    while !is_done() {
        n_spins = n_spins.saturating_add(1);
        if n_spins > 1 << 12 {
            thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_claimed_once() {
        for (n, at_once) in [(0, 1), (1, 1), (5, 3), (1000, 7), (1000, 1), (3, 100)] {
            let done: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            run(|team| {
                for items in team.claim_chunks(n, at_once) {
                    assert!(items.len() <= at_once);
                    items.for_each(|item| {
                        done[item].fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
            assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{n} {at_once}");
        }
    }

    #[test]
    fn idle_threads_steal_from_a_slow_one() {
        let slow = AtomicUsize::new(usize::MAX);
        let done: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(usize::MAX)).collect();
        run(|team| {
            for item in team.claim_chunks(100, 1).flatten() {
                done[item].store(team.index(), Ordering::Relaxed);
                // The first thread waits until the others have done everything else.
                if slow.compare_exchange(usize::MAX, item, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                    wait_for(|| {
                        let n_left =
                            done.iter().filter(|by| by.load(Ordering::Relaxed) == usize::MAX).count();
                        n_left == 0 || team.n_threads() == 1
                    });
                }
            }
        });
        assert!(done.iter().all(|by| by.load(Ordering::Relaxed) < n_threads()));
    }

    #[test]
    fn a_stage_sees_the_results_of_the_stage_before_it() {
        const N: usize = 64;
        for _ in 0..1000 {
            let stages: [[AtomicUsize; N]; MAX_STAGES] =
                [const { [const { AtomicUsize::new(0) }; N] }; MAX_STAGES];
            run(|team| {
                for (stage, numbers) in stages.iter().enumerate() {
                    for item in team.claim_chunks(N, 3).flatten() {
                        let last = if stage > 0 {
                            stages[stage - 1][N - 1 - item].load(Ordering::Relaxed)
                        } else {
                            0
                        };
                        numbers[item].fetch_add(last + 1, Ordering::Relaxed);
                    }
                    if stage + 1 < MAX_STAGES {
                        team.barrier();
                    }
                }
            });
            for (stage, numbers) in stages.into_iter().enumerate() {
                assert!(numbers.into_iter().all(|n| n.into_inner() == stage + 1));
            }
        }
    }

    #[test]
    fn sleeping_threads_are_woken() {
        for _ in 0..5 {
            thread::sleep(3 * SPIN);
            let n = AtomicUsize::new(0);
            run(|_| {
                n.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(n.into_inner(), n_threads());
        }
    }

    #[test]
    fn cpu_lists_are_parsed() {
        assert_eq!(parse_cpu_list("0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_cpu_list("7"), Some(vec![7]));
        assert_eq!(parse_cpu_list("none"), None);
    }

    #[test]
    fn callers_take_turns() {
        let running = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        run(|team| {
                            let others = running.fetch_add(1, Ordering::AcqRel);
                            assert!(others < team.n_threads());
                            running.fetch_sub(1, Ordering::AcqRel);
                        });
                    }
                });
            }
        });
    }

    #[test]
    fn no_thread_waits_for_one_that_has_panicked() {
        let caught = catch_unwind(|| {
            run(|team| {
                assert!(team.index() != 0, "on purpose");
                team.barrier();
            });
        });
        assert!(caught.is_err());
    }

    /// The panic and the wait for it race, so this takes many rounds.
    #[test]
    fn no_thread_passes_a_barrier_that_another_has_not_reached() {
        let n_passed = AtomicUsize::new(0);
        for round in 0..2000 {
            let culprit = round % n_threads();
            let caught = catch_unwind(|| {
                run(|team| {
                    if team.index() == culprit {
                        // Unlike `panic!`, this prints nothing.
                        resume_unwind(Box::new("on purpose"));
                    }
                    // The others arrive at different moments.
                    for _ in 0..round % 50 {
                        std::hint::spin_loop();
                    }
                    team.barrier();
                    n_passed.fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(caught.is_err());
        }
        assert_eq!(n_passed.into_inner(), 0);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for culprit in 0..n_threads() {
            let caught = catch_unwind(|| {
                run(|team| {
                    assert!(team.index() != culprit, "on purpose");
                });
            });
            assert!(caught.is_err());
            let n = AtomicUsize::new(0);
            run(|_| {
                n.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(n.into_inner(), n_threads());
        }
    }
}
