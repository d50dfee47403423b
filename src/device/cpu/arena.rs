//! Memory for tensors, kept between uses: every layer needs the same few sizes, and fresh pages are slow.
//!
//! An operation answers tensors, not errors, so memory that the system refuses unwinds to [`or_refused`]. That is no panic:
//! no hook hears of it, and nothing is printed.

use super::super::Tensor;
use super::memory::{LINE, Lines};
use crate::{Code, Error, Result};
use dialoguellm_kernels::Elem;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What unwinds.
struct Refused {
    bytes: usize,
}

fn refuse(bytes: usize) -> ! {
    resume_unwind(Box::new(Refused { bytes }))
}

/// What `work` answers, or OUT_OF_MEMORY where memory for one of its tensors is refused.
pub(super) fn or_refused<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // What is half done then is what a cancel leaves half done too, and nobody takes it for whole after an error.
    let unwound = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(answer) => return answer,
        Err(unwound) => unwound,
    };
    match unwound.downcast::<Refused>() {
        Ok(refused) => {
            let text =
                format!("the system refused {} bytes for a tensor; fewer tokens at once need less", refused.bytes);
            Err(Error::new(Code::OutOfMemory, text))
        }
        Err(panic) => resume_unwind(panic),
    }
}

/// As many values, or [`or_refused`].
pub(super) fn filled<T: Clone>(len: usize, value: T) -> Vec<T> {
    let mut values = Vec::new();
    if values.try_reserve_exact(len).is_err() {
        refuse(len.saturating_mul(size_of::<T>()));
    }
    values.resize(len, value);
    values
}

/// Buffers between uses. What is in use and what waits is together never more than the most that was ever in use.
#[derive(Default)]
pub(super) struct Arena(Mutex<Held>);

#[derive(Default)]
struct Held {
    /// Buffers that wait, by their number of lines.
    free: BTreeMap<usize, Vec<Lines>>,
    /// Lines that wait, lines in use, and the most that were ever in use.
    waiting: usize,
    used: usize,
    peak: usize,
}

impl Arena {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer of at least `lines` lines and at most twice as many, contents unspecified, or [`or_refused`].
    fn take(&self, lines: usize) -> Lines {
        let mut held = self.held();
        let best = held.free.range(lines..=2 * lines).next().map(|(&len, _)| len);
        if let Some(buffer) = best.and_then(|len| held.remove(len)) {
            held.used += buffer.len();
            held.peak = held.peak.max(held.used);
            return buffer;
        }
        held.used += lines;
        let peak = held.peak;
        held.peak = peak.max(held.used);
        while held.used + held.waiting > held.peak
            && let Some((&largest, _)) = held.free.last_key_value()
        {
            drop(held.remove(largest));
        }
        drop(held);
        let again = || {
            self.held().clear();
            Lines::new(lines)
        };
        Lines::new(lines).or_else(again).unwrap_or_else(|| {
            let mut held = self.held();
            held.used -= lines;
            held.peak = peak.max(held.used);
            drop(held);
            refuse(lines.saturating_mul(LINE))
        })
    }

    fn give(&self, buffer: Lines) {
        let mut held = self.held();
        held.used -= buffer.len();
        held.waiting += buffer.len();
        held.free.entry(buffer.len()).or_default().push(buffer);
    }
}

impl Held {
    /// Gives what waits back to the system.
    fn clear(&mut self) {
        self.free.clear();
        self.waiting = 0;
    }

    fn remove(&mut self, len: usize) -> Option<Lines> {
        let buffers = self.free.get_mut(&len)?;
        let buffer = buffers.pop()?;
        if buffers.is_empty() {
            self.free.remove(&len);
        }
        self.waiting -= len;
        Some(buffer)
    }
}

/// A matrix of numbers whose memory goes back to its arena.
pub struct Buffer<T: Elem> {
    lines: Lines,
    pub(super) rows: usize,
    pub(super) cols: usize,
    home: Arc<Arena>,
    values: PhantomData<T>,
}

impl<T: Elem> Buffer<T> {
    pub(super) fn new(home: &Arc<Arena>, rows: usize, cols: usize) -> Self {
        let lines = home.take((rows * cols * size_of::<T>()).div_ceil(LINE));
        Self { lines, rows, cols, home: home.clone(), values: PhantomData }
    }
    /// All values, row-major.
    pub fn values(&self) -> &[T] {
        // SAFETY: `new` took enough lines, all initialised; any bytes are a number, and a line's alignment is enough.
        unsafe { std::slice::from_raw_parts(self.lines.bytes().as_ptr().cast(), self.rows * self.cols) }
    }
    /// All values, row-major.
    pub fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `values`, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.lines.bytes_mut().as_mut_ptr().cast(), self.rows * self.cols) }
    }
    pub(super) fn row(&self, i: usize) -> &[T] {
        &self.values()[i * self.cols..][..self.cols]
    }
}

impl<T: Elem> Drop for Buffer<T> {
    fn drop(&mut self) {
        self.home.give(std::mem::take(&mut self.lines));
    }
}

impl<T: Elem> Tensor for Buffer<T> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn bytes(&self) -> usize {
        size_of_val(self.values())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::pool::Pool;
    use super::*;

    /// More than any address space: refused at once.
    const HUGE: usize = 1 << 52;

    #[test]
    fn memory_that_is_refused_is_an_error_wherever_it_was_asked_for() {
        let (arena, pool) = (Arc::<Arena>::default(), Pool::shared(3).unwrap());
        let waits = Buffer::<f32>::new(&arena, 1000, 1000);
        drop(waits);
        let ask = |rows| Buffer::<f32>::new(&arena, rows, 1).rows;
        let shared = || pool.run(8, |i| assert_eq!(ask([70_000, HUGE][i / 7]), 70_000));
        let refused = [
            or_refused(|| Ok(ask(HUGE))),
            or_refused(|| {
                shared();
                Ok(0)
            }),
            or_refused(|| Ok(filled(HUGE, 1.0).len())),
        ];
        for refused in refused {
            let error = refused.unwrap_err();
            assert_eq!(error.code(), Code::OutOfMemory);
            assert!(error.text().contains(" bytes for a tensor"), "{error}");
        }
        let held = arena.held();
        assert!(held.used == 0 && held.waiting < 62_500, "what waited went back to the system");
        assert!(held.peak < 1_000_000, "what was refused counts as used");
        drop(held);
        assert_eq!(or_refused(|| Ok(ask(7))), Ok(7));
    }

    #[test]
    fn a_panic_stays_one() {
        let unwound = catch_unwind(|| or_refused::<()>(|| resume_unwind(Box::new("a panic"))));
        assert_eq!(unwound.unwrap_err().downcast_ref(), Some(&"a panic"));
    }
}
