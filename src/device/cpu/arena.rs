//! Memory for tensors, kept between uses: every layer needs the same few sizes, and fresh pages are slow.

use super::super::Tensor;
use dialoguellm_kernels::Elem;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

/// A cache line: packed panels load fastest from line to line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; 64]); // only ever read as numbers

/// Buffers between uses: the same few sizes are needed by every layer.
#[derive(Default)]
pub(super) struct Arena(Mutex<Vec<Vec<Line>>>);

impl Arena {
    /// A buffer of at least `lines` lines, contents unspecified.
    fn take(&self, lines: usize) -> Vec<Line> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = (0..free.len()).filter(|&i| free[i].len() >= lines && free[i].len() <= 2 * lines + 64);
        match fits.min_by_key(|&i| free[i].len()) {
            Some(best) => free.swap_remove(best),
            None => vec![Line([0; 64]); lines],
        }
    }
    fn give(&self, buffer: Vec<Line>) {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(buffer);
        if free.len() > 64 {
            free.remove(0);
        }
    }
}

/// A matrix of numbers whose memory goes back to its arena.
pub struct Buffer<T: Elem> {
    lines: Vec<Line>,
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
