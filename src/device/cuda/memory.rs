//! The GPU's memory between uses, and the way there from the host.
//!
//! Steps of training ask for the same sizes again and again, and asking the driver stops the GPU: so what is given back
//! is kept, by size class, and returned to the driver only when an allocation fails. Everything happens in one stream,
//! so memory may be given out again while its last user still runs. The lowest address is given out first, so that the same
//! work gets the same memory again.

use super::driver::{Context, Event};
use super::queue::{Queue, Work};
use crate::Result;
use dialoguellm_kernels::cuda::Ptr;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Memory of one GPU.
pub(super) struct Memory {
    context: Arc<Context>,
    /// What waits, by its size.
    free: Mutex<BTreeMap<usize, BTreeSet<Ptr>>>,
}

/// The smallest piece: every address is aligned to it.
const PIECE: usize = 512;

/// The size that is allocated for `bytes`: eight classes between a power of two and the next, so an eighth is lost at most.
fn class(bytes: usize) -> usize {
    let bytes = bytes.max(1).next_multiple_of(PIECE);
    let step = (bytes.next_power_of_two() / 16).max(PIECE);
    bytes.next_multiple_of(step)
}

impl Memory {
    pub fn new(context: &Arc<Context>) -> Arc<Self> {
        Arc::new(Self { context: context.clone(), free: Mutex::default() })
    }

    fn free(&self) -> MutexGuard<'_, BTreeMap<usize, BTreeSet<Ptr>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for `bytes` that come and go, contents unspecified.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Result<Block> {
        self.sized(class(bytes))
    }

    /// Memory for `bytes` that stay.
    pub fn exactly(self: &Arc<Self>, bytes: usize) -> Result<Block> {
        self.sized(bytes.max(1).next_multiple_of(PIECE))
    }

    fn sized(self: &Arc<Self>, size: usize) -> Result<Block> {
        let waiting = self.free().get_mut(&size).and_then(BTreeSet::pop_first);
        let at = match waiting {
            Some(at) => at,
            None => self.context.allocate(size)?,
        };
        Ok(Block { at, size, home: Some(self.clone()) })
    }

    /// Returns what waits to the driver; whether there was anything. No work that uses it may still be waiting to be asked
    /// for.
    pub fn release(&self) -> bool {
        let waiting = std::mem::take(&mut *self.free());
        let any = waiting.values().any(|blocks| !blocks.is_empty());
        for at in waiting.into_values().flatten() {
            // SAFETY: it waited, so nobody has it; freeing waits for the work that still uses it.
            unsafe { self.context.free(at) };
        }
        any
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = self.context.bind();
        self.release();
    }
}

/// A piece of the GPU's memory, which goes back when dropped; or nothing, where the pass has failed.
pub(super) struct Block {
    at: Ptr,
    size: usize,
    home: Option<Arc<Memory>>,
}

impl Block {
    /// No memory.
    pub fn nothing() -> Self {
        Self { at: Ptr(0), size: 0, home: None }
    }
    /// Where it begins.
    pub fn at(&self) -> Ptr {
        self.at
    }
    /// Bytes there are.
    pub fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.free().entry(self.size).or_default().insert(self.at);
        }
    }
}

/// The way to the GPU: pinned memory in parts that are filled in turn, so that filling one overlaps copying another.
pub(super) struct Staging {
    context: Arc<Context>,
    pinned: *mut u8,
    parts: Mutex<Parts>,
}

// SAFETY: `pinned` is written only under the lock of `parts`.
unsafe impl Send for Staging {}
// SAFETY: as above.
unsafe impl Sync for Staging {}

struct Parts {
    /// The part that is being filled, and how many of its bytes are.
    now: usize,
    used: usize,
    /// Reached when the copies from a part are done.
    done: Vec<Event>,
}

/// Parts of the pinned memory, and bytes of one: 64 MiB in all.
const PARTS: usize = 4;
/// The most that one [`Staging::put`] takes.
pub(super) const PART: usize = 16 << 20;

impl Staging {
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        let done = (0..PARTS).map(|_| context.event()).collect::<Result<_>>()?;
        let pinned = context.pinned(PARTS * PART)?;
        Ok(Self { context: context.clone(), pinned, parts: Mutex::new(Parts { now: 0, used: 0, done }) })
    }

    /// Begins with the first part again, so that a pass stages where the pass before did; waits for all copies.
    pub fn rewind(&self, queue: &Queue) -> Result<()> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        queue.flush()?;
        self.context.synchronize()?;
        (parts.now, parts.used) = (0, 0);
        Ok(())
    }

    /// Fills `block` from byte `offset` on with the `len` bytes that `fill` writes, at most [`PART`], later.
    pub fn put(
        &self,
        queue: &Queue,
        block: &Block,
        offset: usize,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        assert!(len <= PART && offset + len <= block.size(), "{len} bytes at {offset} of a block of {}", block.size());
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if parts.used + len > PART {
            queue.flush()?;
            self.context.record(&parts.done[parts.now])?;
            parts.now = (parts.now + 1) % PARTS;
            parts.used = 0;
            self.context.wait(&parts.done[parts.now])?;
        }
        // SAFETY: the range is inside the part, no copy reads it any more, and the lock keeps others away.
        let room = unsafe { std::slice::from_raw_parts_mut(self.pinned.add(parts.now * PART + parts.used), len) };
        fill(room);
        parts.used += len;
        let work = Work::Upload { to: block.at().offset(offset), from: room.as_ptr(), bytes: len };
        // SAFETY: both ranges were checked; the part is filled again only behind its event, or behind everything.
        unsafe { queue.push(work) };
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = self.context.bind();
        let _ = self.context.synchronize();
        // SAFETY: the stream is empty, so no copy is under way.
        unsafe { self.context.free_pinned(self.pinned) };
        let parts = self.parts.get_mut().unwrap_or_else(PoisonError::into_inner);
        parts.done.drain(..).for_each(|event| self.context.destroy(event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_class_holds_its_bytes_and_loses_an_eighth_at_most() {
        for bytes in (0..100_000).step_by(61).chain([1 << 30, (1 << 30) + 1, 5 << 28]) {
            let class = class(bytes);
            assert!(class >= bytes.max(1) && class.is_multiple_of(PIECE), "{bytes} in {class}");
            assert!(class - bytes <= (bytes / 8).max(PIECE), "{bytes} in {class}");
        }
    }
}
