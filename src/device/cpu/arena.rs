//! Memory for tensors, kept between uses: every layer needs the same few sizes, and fresh pages are slow.

use super::super::Tensor;
use dialoguellm_kernels::Elem;
use memmap2::MmapMut;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A cache line: packed panels load fastest from line to line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; 64]); // only ever read as numbers

/// Lines of initialised memory.
enum Lines {
    Small(Vec<Line>),
    /// Pages of its own, which go back to the system when dropped: the allocator would keep them, in pieces.
    Large(MmapMut),
}

/// Bytes from which a buffer has pages of its own.
const LARGE: usize = 256 << 10;

impl Lines {
    fn new(lines: usize) -> Self {
        let bytes = lines * size_of::<Line>();
        let pages = (bytes >= LARGE).then(|| MmapMut::map_anon(bytes).ok()).flatten();
        pages.map_or_else(|| Lines::Small(vec![Line([0; 64]); lines]), Lines::Large)
    }
    fn len(&self) -> usize {
        match self {
            Lines::Small(lines) => lines.len(),
            Lines::Large(pages) => pages.len() / size_of::<Line>(),
        }
    }
    /// Aligned to a line: pages are.
    fn as_ptr(&self) -> *const u8 {
        match self {
            Lines::Small(lines) => lines.as_ptr().cast(),
            Lines::Large(pages) => pages.as_ptr(),
        }
    }
    fn as_mut_ptr(&mut self) -> *mut u8 {
        match self {
            Lines::Small(lines) => lines.as_mut_ptr().cast(),
            Lines::Large(pages) => pages.as_mut_ptr(),
        }
    }
}

impl Default for Lines {
    fn default() -> Self {
        Lines::Small(Vec::new())
    }
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

    /// A buffer of at least `lines` lines and at most twice as many, contents unspecified.
    fn take(&self, lines: usize) -> Lines {
        let mut held = self.held();
        let best = held.free.range(lines..=2 * lines).next().map(|(&len, _)| len);
        if let Some(buffer) = best.and_then(|len| held.remove(len)) {
            held.used += buffer.len();
            held.peak = held.peak.max(held.used);
            return buffer;
        }
        held.used += lines;
        held.peak = held.peak.max(held.used);
        while held.used + held.waiting > held.peak
            && let Some((&largest, _)) = held.free.last_key_value()
        {
            drop(held.remove(largest));
        }
        drop(held);
        Lines::new(lines)
    }

    fn give(&self, buffer: Lines) {
        let mut held = self.held();
        held.used -= buffer.len();
        held.waiting += buffer.len();
        held.free.entry(buffer.len()).or_default().push(buffer);
    }
}

impl Held {
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
        let lines = home.take((rows * cols * size_of::<T>()).div_ceil(size_of::<Line>()));
        Self { lines, rows, cols, home: home.clone(), values: PhantomData }
    }
    /// All values, row-major.
    pub fn values(&self) -> &[T] {
        // SAFETY: `new` took enough lines, all initialised; any bytes are a number, and a line's alignment is enough.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.rows * self.cols) }
    }
    /// All values, row-major.
    pub fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `values`, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.rows * self.cols) }
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
