//! The compute pool: threads that do one piece of work together, in step.
//!
//! [`run`] gives all threads the same closure; inside it they share out the work by [`Claims`] and
//! wait for each other at [`Team::barrier`]. The caller is one of them. Between two pieces of work
//! the others spin for a moment, since a forward pass brings hundreds of pieces in a row, and then
//! sleep.
//!
//! candle multiplies matrices on rayon's global pool and on a pool of its own, which are used where
//! models are loaded and by its plain operations; both read their size from the environment when
//! they are first used, so it is settled here, once, before any other thread exists.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

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
/// threads take turns; `work` must not call it.
///
/// # Panics
/// When `work` panics on any thread.
pub fn run(work: impl Fn(&Team) + Sync) {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool::start(n_threads())).run(&work);
}

/// The threads that do a piece of work, as one of them sees it.
pub struct Team<'a> {
    index: usize,
    shared: &'a Shared,
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

    /// Waits until all threads are here; what they did before can then be read.
    pub fn barrier(&self) {
        let Shared { n_threads, arrived, passed, is_poisoned, .. } = self.shared;
        let turn = passed.load(Ordering::Relaxed);
        if arrived.fetch_add(1, Ordering::AcqRel) + 1 == *n_threads {
            arrived.store(0, Ordering::Relaxed);
            passed.store(turn.wrapping_add(1), Ordering::Release);
            return;
        }
        wait_for(|| {
            assert!(!is_poisoned.load(Ordering::Relaxed), "another compute thread has panicked");
            passed.load(Ordering::Acquire) != turn
        });
    }
}

/// Shares out numbered pieces of work: whoever has time takes the next few.
#[derive(Debug, Default)]
pub struct Claims(AtomicUsize);

impl Claims {
    /// Takes the next up to `at_once` of `n` pieces, until there are none.
    pub fn take(&self, n: usize, at_once: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        std::iter::from_fn(move || {
            let start = self.0.fetch_add(at_once, Ordering::Relaxed);
            (start < n).then(|| start..n.min(start + at_once))
        })
    }
}

struct Pool {
    shared: Arc<Shared>,
    /// Held while a piece of work is done.
    turn: Mutex<()>,
}

/// The closure of [`run`], whose lifetime is not known to the threads.
#[derive(Clone, Copy)]
struct Work(NonNull<dyn Fn(&Team) + Sync>);

// SAFETY: what it points to is `Sync`; `Pool::run` keeps it alive while threads use it.
unsafe impl Send for Work {}

struct Shared {
    n_threads: usize,
    /// The current work, and the number of those that sleep.
    work: Mutex<(Option<Work>, usize)>,
    wake: Condvar,
    /// Pieces of work begun so far.
    begun: AtomicUsize,
    /// Threads, other than the caller's, that have finished the current one.
    finished: AtomicUsize,
    /// Threads at the barrier, and barriers passed.
    arrived: AtomicUsize,
    passed: AtomicUsize,
    is_poisoned: AtomicBool,
}

impl Pool {
    fn start(n_threads: usize) -> Self {
        let shared = Arc::new(Shared {
            n_threads,
            work: Mutex::new((None, 0)),
            wake: Condvar::new(),
            begun: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            arrived: AtomicUsize::new(0),
            passed: AtomicUsize::new(0),
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
        Self { shared, turn: Mutex::new(()) }
    }

    fn run<'a>(&self, work: &'a (dyn Fn(&Team) + Sync + 'a)) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        shared.finished.store(0, Ordering::Relaxed);
        // SAFETY: only the lifetime changes; the pointer is not used after this function, which waits
        // for every thread.
        let unbounded = unsafe {
            std::mem::transmute::<NonNull<dyn Fn(&Team) + Sync + 'a>, NonNull<dyn Fn(&Team) + Sync + 'static>>(
                NonNull::from(work),
            )
        };
        {
            let mut slot = shared.work.lock().unwrap_or_else(PoisonError::into_inner);
            slot.0 = Some(Work(unbounded));
            shared.begun.fetch_add(1, Ordering::Release);
            if slot.1 > 0 {
                shared.wake.notify_all();
            }
        }
        let own = shared.caught(0, work);
        wait_for(|| shared.finished.load(Ordering::Acquire) == shared.n_threads - 1);
        if shared.is_poisoned.swap(false, Ordering::Relaxed) {
            shared.arrived.store(0, Ordering::Relaxed);
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
        for n in 1.. {
            let work = self.next_work(n);
            // SAFETY: `Pool::run` waits for `finished` before the closure goes.
            let work = unsafe { work.0.as_ref() };
            // The caller reports it.
            let _ = self.caught(index, work);
            self.finished.fetch_add(1, Ordering::Release);
        }
    }

    /// The `n`th piece of work, once it has begun.
    fn next_work(&self, n: usize) -> Work {
        let has_begun = || self.begun.load(Ordering::Acquire) >= n;
        let start = Instant::now();
        while !has_begun() && start.elapsed() < SPIN {
            for _ in 0..TURNS_PER_LOOK {
                if has_begun() {
                    break;
                }
                std::hint::spin_loop();
            }
        }
        let mut slot = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match slot.0 {
                Some(work) if has_begun() => return work,
                _ => {
                    slot.1 += 1;
                    slot = self.wake.wait(slot).unwrap_or_else(PoisonError::into_inner);
                    slot.1 -= 1;
                }
            }
        }
    }

    fn caught(&self, index: usize, work: &(dyn Fn(&Team) + Sync)) -> thread::Result<()> {
        let result = catch_unwind(AssertUnwindSafe(|| work(&Team { index, shared: self })));
        if result.is_err() {
            self.is_poisoned.store(true, Ordering::Relaxed);
        }
        result
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
    fn every_piece_is_done_once_and_barriers_order_them() {
        let (first, second) = (Claims::default(), Claims::default());
        let done: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
        run(|team| {
            for piece in first.take(1000, 7).flatten() {
                done[piece].fetch_add(1, Ordering::Relaxed);
            }
            team.barrier();
            assert!(done.iter().all(|n| n.load(Ordering::Relaxed) >= 1));
            team.barrier();
            for piece in second.take(1000, 3).flatten() {
                done[piece].fetch_add(1, Ordering::Relaxed);
            }
        });
        assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 2));
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
                            team.barrier();
                            running.fetch_sub(1, Ordering::AcqRel);
                        });
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for culprit in 0..n_threads() {
            let caught = catch_unwind(|| {
                run(|team| {
                    assert!(team.index() != culprit, "on purpose");
                    team.barrier();
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
