//! Work that waits until someone wants a result, and then is asked for in one go.
//!
//! Memory and staging give a pass of the same shape the same addresses again, so that its work is the same to the byte,
//! whatever values it works on. Work that comes again becomes a graph, which costs one call instead of hundreds; where a
//! driver makes none, every piece is asked for by itself as before. A graph names addresses and holds nothing: it runs only
//! where the same work was asked for again, of whoever has those addresses now.

use super::blaslt::{Algorithm, Library, Operands, Shape};
use super::driver::{Context, Function, Graph};
use crate::{Error, Result};
use dialoguellm_kernels::cuda::{Launch, Ptr};
use std::collections::VecDeque;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One piece of the stream's work.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum Work {
    /// A kernel.
    Launch(Function, Launch),
    /// A product of cuBLASLt.
    Multiply(Shape, Algorithm, Operands),
    /// Bytes inside the GPU, ranges apart.
    Copy { to: Ptr, from: Ptr, bytes: usize },
    /// Bytes that become zero.
    Zero { at: Ptr, bytes: usize },
    /// Bytes of pinned memory.
    Upload { to: Ptr, from: *const u8, bytes: usize },
}

/// The work of one stream.
pub(super) struct Queue {
    context: Arc<Context>,
    library: Option<Arc<Library>>,
    state: Mutex<State>,
}

// SAFETY: the pointers are into pinned memory, which any thread may name; only the driver reads there.
unsafe impl Send for Queue {}
// SAFETY: as above, and all is under a lock.
unsafe impl Sync for Queue {}

#[derive(Default)]
struct State {
    waiting: Vec<Work>,
    /// Hashes of what was asked for lately, the oldest first.
    seen: VecDeque<u64>,
    /// What came again, the longest unused first.
    known: VecDeque<(u64, Vec<Work>, Graph)>,
    /// Whether the driver has failed to make a graph.
    without_graphs: bool,
}

/// Less work than this is asked for by itself: a graph would not be faster.
const FEW: usize = 8;
/// Hashes that are remembered.
const SEEN: usize = 256;
/// Graphs that are kept.
const GRAPHS: usize = 32;

impl Queue {
    pub fn new(context: &Arc<Context>, library: Option<&Arc<Library>>) -> Self {
        Self { context: context.clone(), library: library.cloned(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts work behind what waits.
    ///
    /// # Safety
    /// As the function of its kind asks ([`Context`], [`Library`]), from now until it was asked for and done.
    pub unsafe fn push(&self, work: Work) {
        self.state().waiting.push(work);
    }

    /// Forgets what waits.
    pub fn clear(&self) {
        self.state().waiting.clear();
    }

    /// Asks for everything that waits.
    pub fn flush(&self) -> Result<()> {
        let mut state = self.state();
        let work = std::mem::take(&mut state.waiting);
        if work.len() < FEW || state.without_graphs {
            return self.ask(&work);
        }
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(&work);
        if let Some(at) = state.known.iter().position(|(of, known, _)| *of == hash && *known == work) {
            let known = state.known.remove(at).expect("it was found there");
            let replayed = self.context.replay(&known.2);
            state.known.push_back(known);
            return replayed;
        }
        if !state.seen.contains(&hash) {
            keep(&mut state.seen, hash, SEEN);
            return self.ask(&work);
        }
        let Ok(graph) = self.context.capture(|| self.ask(&work)) else {
            state.without_graphs = true;
            return self.ask(&work);
        };
        let replayed = self.context.replay(&graph);
        if let Some((_, _, oldest)) = keep(&mut state.known, (hash, work, graph), GRAPHS) {
            self.context.forget(oldest);
        }
        replayed
    }

    fn ask(&self, work: &[Work]) -> Result<()> {
        // SAFETY: the promise of `push`.
        work.iter().try_for_each(|work| unsafe {
            match work {
                Work::Launch(function, launch) => self.context.launch(*function, launch),
                Work::Multiply(shape, algorithm, at) => self.multiply(shape, algorithm, at),
                Work::Copy { to, from, bytes } => self.context.copy(*to, *from, *bytes),
                Work::Zero { at, bytes } => self.context.zero(*at, *bytes),
                Work::Upload { to, from, bytes } => self.context.upload(*to, *from, *bytes),
            }
        })
    }

    /// # Safety
    /// As [`Library::multiply`].
    unsafe fn multiply(&self, shape: &Shape, algorithm: &Algorithm, at: &Operands) -> Result<()> {
        let library = self.library.as_ref().ok_or_else(|| Error::internal("cuBLASLt is not open"))?;
        // SAFETY: the caller's promise.
        unsafe { library.multiply(&self.context, shape, algorithm, at) }
    }
}

/// Adds a newest; the oldest where there are more than `most`.
fn keep<T>(all: &mut VecDeque<T>, newest: T, most: usize) -> Option<T> {
    all.push_back(newest);
    if all.len() > most { all.pop_front() } else { None }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let _ = self.context.bind();
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.known.drain(..).for_each(|(_, _, graph)| self.context.forget(graph));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_when_there_are_more_than_are_kept() {
        let mut all = VecDeque::new();
        let gone: Vec<_> = (0..5).map(|i| keep(&mut all, i, 3)).collect();
        assert_eq!(gone, [None, None, None, Some(0), Some(1)]);
        assert_eq!(all, [2, 3, 4]);
    }
}
