//! Threads that wait for work: a fixed number per pool, none when it is one, nothing global.
//!
//! A job is a number of tasks; the caller works too. Which thread takes which task is left to chance, so a task's
//! result may depend on its number only, never on who runs it: that is what makes results equal on any number of threads.
//!
//! A pass is thousands of jobs of some 100 microseconds, so whoever waits looks again and again for a moment (`SPINS`)
//! before it sleeps: waking a thread costs more than many of the jobs. The mutex decides; the atomics only say when to look.

use crate::{Code, Error, Result};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// A fixed set of threads; joined when dropped.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time: a second caller waits here.
    callers: Mutex<()>,
}

/// Looks before sleep: 100 to 500 microseconds, by how long the processor's pause lasts. What the caller does alone between two
/// jobs, mostly attention of one query, is over by then.
const SPINS: u32 = 10_000;

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    done: Condvar,
    /// As `State::number`.
    published: AtomicU64,
    /// Whether `State::working` is not zero.
    busy: AtomicBool,
    /// [`SPINS`], or none where threads outnumber cores: there a thread that looks takes time from one that works.
    spins: u32,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    /// Counts jobs, so that a worker takes each only once.
    number: u64,
    working: usize,
    /// Workers asleep, and whether the caller is: nobody is woken who is not.
    asleep: usize,
    caller_asleep: bool,
    panic: Option<Box<dyn std::any::Any + Send>>,
    closing: bool,
}

/// A borrowed closure whose lifetime `run` guarantees by not returning before every worker let go of it.
#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    next: *const AtomicUsize,
    tasks: usize,
}
// SAFETY: the closure is Sync, the counter atomic, and both outlive the job (see `Pool::run`).
unsafe impl Send for Job {}

impl Pool {
    /// `threads` including the caller; 0 means one per core. With one, nothing is started.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = if threads == 0 { cores } else { threads };
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            published: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            spins: if threads <= cores { SPINS } else { 0 },
        });
        let mut pool = Pool { shared, workers: Vec::new(), callers: Mutex::default() };
        for i in 1..threads {
            let shared = pool.shared.clone();
            let name = format!("dialoguellm-{i}");
            pool.workers.push(std::thread::Builder::new().name(name).spawn(move || shared.serve())?);
        }
        Ok(pool)
    }

    /// As [`Pool::new`], to be shared. Errors: IO where the system gives no threads.
    pub fn shared(threads: usize) -> Result<Arc<Pool>> {
        let refused = |error| Error::new(Code::Io, format!("cannot start {threads} threads: {error}"));
        Pool::new(threads).map(Arc::new).map_err(refused)
    }

    /// Threads that work on a job, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(i)` for every `i < tasks`, each once, and returns when all have returned. A panic in one is passed on.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        if self.workers.is_empty() || tasks <= 1 {
            return (0..tasks).for_each(task);
        }
        let _turn = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let next = AtomicUsize::new(0);
        let task: &(dyn Fn(usize) + Sync) = &task;
        // SAFETY: only the lifetime is erased; this function keeps both borrows alive until no worker holds the job.
        let task: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(task) };
        let job = Job { task, next: &next, tasks };
        self.shared.publish(job);
        let mine = catch_unwind(AssertUnwindSafe(|| job.work()));
        let theirs = self.shared.withdraw();
        if let Err(panic) = mine.and(theirs.map_or(Ok(()), Err)) {
            resume_unwind(panic);
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool of {}", self.threads())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // a worker only ends by closing; its panics were passed on
        }
    }
}

impl Job {
    fn work(&self) {
        // SAFETY: `Pool::run` keeps both alive while any thread is between publish and withdraw.
        let (task, next) = unsafe { (&*self.task, &*self.next) };
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= self.tasks {
                return;
            }
            task(i);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at `ready` for a moment; what it says is only a reason to take the lock.
    fn look(&self, ready: impl Fn() -> bool) {
        for _ in 0..self.spins {
            if ready() {
                return;
            }
            std::hint::spin_loop();
        }
    }

    fn publish(&self, job: Job) {
        let mut state = self.lock();
        state.job = Some(job);
        state.number += 1;
        self.published.store(state.number, Ordering::Release);
        if state.asleep > 0 {
            self.work.notify_all();
        }
    }

    /// Takes the job back and waits for the threads that hold it; returns the first panic.
    fn withdraw(&self) -> Option<Box<dyn std::any::Any + Send>> {
        self.lock().job = None;
        self.look(|| !self.busy.load(Ordering::Acquire));
        let mut state = self.lock();
        while state.working > 0 {
            state.caller_asleep = true;
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.caller_asleep = false;
        state.panic.take()
    }

    fn serve(&self) {
        let mut seen = 0;
        loop {
            let Some(job) = self.wait_for_job(&mut seen) else { return };
            let result = catch_unwind(AssertUnwindSafe(|| job.work()));
            let mut state = self.lock();
            if let Err(panic) = result {
                state.panic.get_or_insert(panic);
            }
            state.working -= 1;
            self.busy.store(state.working > 0, Ordering::Release);
            if state.working == 0 && state.caller_asleep {
                self.done.notify_all();
            }
        }
    }

    fn wait_for_job(&self, seen: &mut u64) -> Option<Job> {
        loop {
            self.look(|| self.published.load(Ordering::Acquire) != *seen);
            let mut state = self.lock();
            while state.number == *seen && !state.closing {
                state.asleep += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.asleep -= 1;
            }
            if state.closing {
                return None;
            }
            *seen = state.number;
            if let Some(job) = state.job {
                state.working += 1;
                self.busy.store(true, Ordering::Release);
                return Some(job);
            } // withdrawn before this thread came
        }
    }
}

/// A slice cut into chunks of `size` (the last may be shorter), each of which one task may write.
pub struct Chunks<'a, T> {
    first: *mut T,
    len: usize,
    size: usize,
    slice: PhantomData<&'a mut [T]>,
}
// SAFETY: `get` hands every chunk to one task only, by its contract.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

impl<'a, T> Chunks<'a, T> {
    /// Cuts `slice`.
    pub fn new(slice: &'a mut [T], size: usize) -> Self {
        Self { first: slice.as_mut_ptr(), len: slice.len(), size: size.max(1), slice: PhantomData }
    }
    /// Chunks there are.
    pub fn count(&self) -> usize {
        self.len.div_ceil(self.size)
    }
    /// Chunk `i`.
    ///
    /// # Safety
    /// No two live borrows of the same `i`.
    #[allow(clippy::mut_from_ref)] // the point of this type
    pub unsafe fn get(&self, i: usize) -> &mut [T] {
        // SAFETY: the caller's promise for this range.
        unsafe { self.range(i * self.size, self.size.min(self.len - i * self.size)) }
    }
    /// `len` values from `at`.
    ///
    /// # Safety
    /// No two live borrows that overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn range(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at + len <= self.len);
        // SAFETY: inside the slice borrowed for 'a; disjoint from other borrows by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(at), len) }
    }
    /// The first of `len` values from `at`, for tasks whose values lie between those of others.
    pub fn first(&self, at: usize, len: usize) -> *mut T {
        assert!(at + len <= self.len);
        // SAFETY: inside the slice, or its end.
        unsafe { self.first.add(at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 100] {
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(50, |i| assert!(i != 20, "twenty"))));
        assert!(result.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }

    #[test]
    fn two_callers_share_one_pool() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(5, |i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 200 * 10);
    }
}
