//! The compute pool: threads that do one piece of work together, in step.
//!
//! [`run`] gives all threads the same closure; inside it they share out the work by [`Team::claim_chunks`],
//! stage by stage where one needs the results of the one before it ([`Team::barrier`]). The caller is one
//! of them. Between two pieces of work the others spin for a moment, since a forward pass brings
//! hundreds of pieces in a row, and then sleep.
//!
//! candle multiplies matrices on rayon's global pool and on a pool of its own, which are used where
//! models are loaded and by its plain operations; both read their size from the environment when
//! they are first used, so it is settled here, once, before any other thread exists.

use std::cell::Cell;
use std::collections::HashSet;
use std::env;
use std::fs;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::fair_share::Turns;

/// The variable that says how many threads compute.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// How long a thread without work spins before it sleeps: longer than the pauses within a forward
/// pass and between two, in which tokens are chosen.
const SPIN: Duration = Duration::from_micros(200);

/// Turns of a waiting loop between two looks at the clock.
const TURNS_PER_LOOK: u32 = 64;

/// Settles the number of compute threads: `requested`, else what the environment already says,
/// else the cores this process may use.
///
/// # Safety
/// No other thread may run: the environment changes, and others may read it.
pub unsafe fn configure(requested: Option<usize>) {
    if let Some(n_threads) = requested {
        // SAFETY: the caller says that no other thread runs.
        unsafe { env::set_var(VARIABLE, n_threads.to_string()) };
    }
    for name in [VARIABLE, "CANDLE_NUM_THREADS"] {
        // SAFETY: as above.
        unsafe { env::set_var(name, n_threads().to_string()) };
    }
}

/// How many threads compute; settled when it is first asked for.
pub fn n_threads() -> usize {
    static N_THREADS: OnceLock<usize> = OnceLock::new();
    *N_THREADS.get_or_init(|| {
        let settled = env::var(VARIABLE).ok().and_then(|n| n.parse().ok()).filter(|&n| n > 0);
        settled.unwrap_or_else(|| {
            let available = thread::available_parallelism().map_or(1, usize::from);
            physical_cores().map_or(available, |cores| cores.min(available))
        })
    })
}

/// How many cores the processors belong to that this process may use, where the system tells: two
/// threads on one core share its arithmetic and only wait for each other.
fn physical_cores() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let cores: Option<HashSet<String>> = processors(allowed)?
        .into_iter()
        .map(|processor| {
            let path = format!("/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list");
            fs::read_to_string(path).ok()
        })
        .collect();
    cores.map(|cores| cores.len()).filter(|&n| n > 0)
}

/// The numbers of a list such as `0-3,8`.
fn processors(list: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        all.extend(first..=last);
    }
    Some(all)
}

/// Makes the calling thread, which computes for long stretches, let others go first: those that
/// answer requests need little time, but soon.
pub fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        const NICENESS: libc::c_int = 5;
        // SAFETY: it changes nothing but this thread's niceness. Only speed is at stake.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    }
}

/// Runs `work` on all compute threads and returns when all have finished. Calls from several
/// threads take turns, each thread for the same share of the time; `work` must not call it.
///
/// # Panics
/// When `work` panics on any thread.
pub fn run(work: impl Fn(&Team) + Sync) {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool::start(n_threads())).run(&work);
}

/// Stages of a piece of work at most.
const MAX_STAGES: usize = 4;

/// The threads that do a piece of work, as one of them sees it.
pub struct Team<'a> {
    index: usize,
    shared: &'a Shared,
    /// The number of the current stage, among those of all pieces of work.
    stage: Cell<usize>,
}

impl Team<'_> {
    /// Which of the threads this is, from 0 on.
    pub fn index(&self) -> usize {
        self.index
    }

    /// How many there are.
    pub fn n_threads(&self) -> usize {
        self.shared.n_threads
    }

    /// Shares out pieces `0..n`, up to `at_once` at a time; once in each stage. Each thread goes through
    /// a stretch of its own, so that it reads memory in order, and then helps the others with theirs.
    pub fn claim_chunks(&self, n: usize, at_once: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let n_threads = self.n_threads();
        let stage = self.stage.get();
        let mut owners = (0..n_threads).map(move |idx| (self.index + idx) % n_threads);
        let mut owner = owners.next();
        std::iter::from_fn(move || {
            while let Some(idx) = owner {
                let (start, end) = (idx * n / n_threads, (idx + 1) * n / n_threads);
                let place = start + self.shared.taken(idx, stage).fetch_add(at_once, Ordering::Relaxed);
                if place < end {
                    return Some(place..end.min(place + at_once));
                }
                owner = owners.next();
            }
            None
        })
    }

    /// Begins the next stage when all threads have ended this one, whose results each then sees; all have
    /// to come.
    ///
    /// # Panics
    /// When another thread has panicked, or there are too many stages.
    pub fn barrier(&self) {
        let next = self.stage.get() + 1;
        assert!(!next.is_multiple_of(MAX_STAGES), "a piece of work has {MAX_STAGES} stages at most");
        self.stage.set(next);
        self.shared.reached[self.index].0.store(next, Ordering::Release);
        wait_for(|| {
            assert!(!self.shared.is_poisoned.load(Ordering::Relaxed), "another thread has panicked");
            self.shared.all_have_reached(next)
        });
    }
}

struct Pool {
    shared: Arc<Shared>,
    turns: Turns,
}

/// The closure of [`run`], whose lifetime is not known to the threads.
type Work = NonNull<dyn Fn(&Team) + Sync>;

/// What is on a cache line of its own, and its neighbour, which processors fetch along with it.
#[derive(Default)]
#[repr(align(128))]
struct CachePadded<T>(T);

struct Shared {
    n_threads: usize,
    /// The current work: where its caller has the pointer to it.
    work: AtomicPtr<Work>,
    /// Pieces of work begun so far.
    begun: CachePadded<AtomicUsize>,
    /// The stage that each thread has come to. Piece of work `n` has the stages from `n * MAX_STAGES` on;
    /// whoever has finished it has come to the first of the next.
    reached: Box<[CachePadded<AtomicUsize>]>,
    /// Of each thread's stretch, how much has been taken: in the stages of this piece of work and in those
    /// of the next, which each thread sets to zero for itself.
    taken: Box<[CachePadded<[AtomicUsize; 2 * MAX_STAGES]>]>,
    /// How many threads sleep.
    n_asleep: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    is_poisoned: AtomicBool,
}

impl Pool {
    fn start(n_threads: usize) -> Self {
        let shared = Arc::new(Shared {
            n_threads,
            work: AtomicPtr::new(ptr::null_mut()),
            begun: CachePadded::default(),
            reached: (0..n_threads).map(|_| CachePadded::default()).collect(),
            taken: (0..n_threads).map(|_| CachePadded::default()).collect(),
            n_asleep: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            is_poisoned: AtomicBool::new(false),
        });
        for index in 1..n_threads {
            let shared = shared.clone();
            #[allow(clippy::expect_used)] // As `thread::spawn`: without threads nothing can be done.
            thread::Builder::new()
                .name(format!("compute-{index}"))
                .spawn(move || shared.serve(index))
                .expect("a thread can be started");
        }
        Self { shared, turns: Turns::new() }
    }

    fn run<'a>(&self, work: &'a (dyn Fn(&Team) + Sync + 'a)) {
        self.turns.take(|| self.run_now(work));
    }

    fn run_now<'a>(&self, work: &'a (dyn Fn(&Team) + Sync + 'a)) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; the pointer is not used after this function, which waits
        // for every thread.
        let mut unbounded =
            unsafe { std::mem::transmute::<NonNull<dyn Fn(&Team) + Sync + 'a>, Work>(NonNull::from(work)) };
        shared.work.store(&raw mut unbounded, Ordering::Relaxed);
        // A thread that is about to sleep counts itself and looks at `begun`, here it is the other way
        // round; in whatever order, one of the two sees the other.
        let n = shared.begun.0.fetch_add(1, Ordering::SeqCst);
        if shared.n_asleep.load(Ordering::SeqCst) > 0 {
            drop(shared.sleep.lock());
            shared.wake.notify_all();
        }
        let own = shared.caught(0, n, work);
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
    /// The life of a thread.
    fn serve(&self, index: usize) {
        lower_priority();
        for n in 0.. {
            self.wait_for_work(n);
            // SAFETY: `Pool::run` waits for `finished` before pointer and closure go.
            let work = unsafe { (*self.work.load(Ordering::Relaxed)).as_ref() };
            // The caller reports it.
            let _ = self.caught(index, n, work);
        }
    }

    /// Waits until piece of work `n` has begun.
    fn wait_for_work(&self, n: usize) {
        let has_begun = || self.begun.0.load(Ordering::SeqCst) > n;
        let start = Instant::now();
        while start.elapsed() < SPIN {
            for _ in 0..TURNS_PER_LOOK {
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

    /// Does a thread's part of piece of work `n`.
    fn caught(&self, index: usize, n: usize, work: &(dyn Fn(&Team) + Sync)) -> thread::Result<()> {
        let first_stage = n * MAX_STAGES;
        // All have finished the last piece of work, which used the same places.
        for stage in first_stage + MAX_STAGES..first_stage + 2 * MAX_STAGES {
            self.taken(index, stage).store(0, Ordering::Relaxed);
        }
        let team = Team { index, shared: self, stage: Cell::new(first_stage) };
        let result = catch_unwind(AssertUnwindSafe(|| work(&team)));
        if result.is_err() {
            self.is_poisoned.store(true, Ordering::Relaxed);
        }
        self.reached[index].0.store(first_stage + MAX_STAGES, Ordering::Release);
        result
    }

    fn taken(&self, index: usize, stage: usize) -> &AtomicUsize {
        &self.taken[index].0[stage % (2 * MAX_STAGES)]
    }

    fn all_have_reached(&self, stage: usize) -> bool {
        self.reached.iter().all(|reached| reached.0.load(Ordering::Acquire) >= stage)
    }
}

/// Spins until `is_done`; gives the core away when that takes long, since the thread waited for may
/// need it.
fn wait_for(is_done: impl Fn() -> bool) {
    let mut turns = 0u32;
    while !is_done() {
        turns = turns.saturating_add(1);
        if turns > 1 << 12 {
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
    fn every_piece_is_done_once() {
        for (n, at_once) in [(0, 1), (1, 1), (5, 3), (1000, 7), (1000, 1), (3, 100)] {
            let done: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            run(|team| {
                for pieces in team.claim_chunks(n, at_once) {
                    assert!(pieces.len() <= at_once);
                    pieces.for_each(|piece| {
                        done[piece].fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
            assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{n} {at_once}");
        }
    }

    #[test]
    fn whoever_has_time_does_what_another_has_not_begun() {
        let slow = AtomicUsize::new(usize::MAX);
        let done: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(usize::MAX)).collect();
        run(|team| {
            for piece in team.claim_chunks(100, 1).flatten() {
                done[piece].store(team.index(), Ordering::Relaxed);
                // The first to come waits until the others have done all the rest.
                if slow.compare_exchange(usize::MAX, piece, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
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
    fn a_stage_sees_what_the_one_before_it_has_done() {
        const N: usize = 64;
        for _ in 0..1000 {
            let stages: [[AtomicUsize; N]; MAX_STAGES] =
                [const { [const { AtomicUsize::new(0) }; N] }; MAX_STAGES];
            run(|team| {
                for (stage, numbers) in stages.iter().enumerate() {
                    for piece in team.claim_chunks(N, 3).flatten() {
                        let last = if stage > 0 {
                            stages[stage - 1][N - 1 - piece].load(Ordering::Relaxed)
                        } else {
                            0
                        };
                        numbers[piece].fetch_add(last + 1, Ordering::Relaxed);
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
    fn threads_that_sleep_are_woken() {
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
    fn lists_of_processors_are_read() {
        assert_eq!(processors("0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(processors("7"), Some(vec![7]));
        assert_eq!(processors("none"), None);
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
    fn nobody_waits_for_a_thread_that_has_panicked() {
        let caught = catch_unwind(|| {
            run(|team| {
                assert!(team.index() != 0, "on purpose");
                team.barrier();
            });
        });
        assert!(caught.is_err());
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
