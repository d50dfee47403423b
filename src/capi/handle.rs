//! What C's handles are: a number that tells them from other memory, and a value that calls share or take turns at.

use super::boundary::quietly;
use crate::{Code, Error, Result};
use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// One kind of handle: a struct of C's name around a [`Handle`].
pub(super) trait Kind: Sized {
    type Value;
    /// What it is called in errors.
    const NAME: &'static str;
    fn new(handle: Handle<Self::Value>) -> Self;
    fn handle(&self) -> &Handle<Self::Value>;
}

/// What is behind every handle's address. A call that runs keeps the value alive, so a handle may be freed under it.
pub(super) struct Handle<T> {
    magic: AtomicU32,
    slot: Arc<Slot<T>>,
}

struct Slot<T> {
    /// The process that made it: after a fork its threads and GPU are not there.
    process: u32,
    busy: AtomicBool,
    poisoned: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached shared, which `share` allows for values that are Sync only, or by one call at a time.
unsafe impl<T: Send> Send for Slot<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Slot<T> {}

const ALIVE: u32 = 0x646c_6c6d;

/// A new handle's address.
pub(super) fn give<K: Kind>(value: K::Value) -> *mut K {
    let slot = Slot {
        process: std::process::id(),
        busy: AtomicBool::new(false),
        poisoned: AtomicBool::new(false),
        value: UnsafeCell::new(value),
    };
    Box::into_raw(Box::new(K::new(Handle { magic: AtomicU32::new(ALIVE), slot: Arc::new(slot) })))
}

/// # Safety
/// NULL or a handle of this kind that was not freed.
unsafe fn slot<K: Kind>(at: *const K) -> Result<Arc<Slot<K::Value>>> {
    let wrong = |what: &str| Error::invalid(format!("the {} handle {what}", K::NAME));
    if at.is_null() {
        return Err(wrong("is NULL"));
    }
    if !at.is_aligned() {
        return Err(wrong("is not an address that this library gave"));
    }
    // SAFETY: not null and aligned, so a handle of this kind as the caller promises; the magic is a second look.
    let handle = unsafe { &*at }.handle();
    if handle.magic.load(Ordering::Relaxed) != ALIVE {
        return Err(wrong("was freed, or is not of this library"));
    }
    let slot = &handle.slot;
    if slot.process != std::process::id() {
        let made = slot.process;
        return Err(wrong(&format!("was made in process {made}, before a fork: make a new one in this process")));
    }
    if slot.poisoned.load(Ordering::Acquire) {
        let text = format!("the {} was left unusable by an internal error: free it", K::NAME);
        return Err(Error::new(Code::Poisoned, text));
    }
    Ok(slot.clone())
}

/// A value that calls share.
pub(super) struct Shared<T>(Arc<Slot<T>>);

/// A handle's value, for any number of calls at once.
///
/// # Safety
/// NULL or a handle of this kind that was not freed.
pub(super) unsafe fn share<K: Kind>(at: *const K) -> Result<Shared<K::Value>>
where
    K::Value: Sync,
{
    // SAFETY: the caller's promise.
    unsafe { slot(at) }.map(Shared)
}

/// As [`share`], or none for NULL.
///
/// # Safety
/// As [`share`].
pub(super) unsafe fn share_if<K: Kind>(at: *const K) -> Result<Option<Shared<K::Value>>>
where
    K::Value: Sync,
{
    // SAFETY: the caller's promise.
    if at.is_null() { Ok(None) } else { unsafe { share(at) }.map(Some) }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: values that are shared are never taken exclusively: a kind uses `share` or `take`.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.poisoned.store(true, Ordering::Release);
        }
    }
}

/// A value that one call has for itself.
pub(super) struct Taken<T>(Arc<Slot<T>>);

/// A handle's value for this call alone. Errors: BUSY where another call has it.
///
/// # Safety
/// NULL or a handle of this kind that was not freed.
pub(super) unsafe fn take<K: Kind>(at: *const K) -> Result<Taken<K::Value>> {
    // SAFETY: the caller's promise.
    let slot = unsafe { slot(at) }?;
    if slot.busy.swap(true, Ordering::Acquire) {
        let text = format!("the {} is in use by another call, or by the one that calls back", K::NAME);
        return Err(Error::new(Code::Busy, text));
    }
    Ok(Taken(slot))
}

impl<T> Deref for Taken<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: `busy` is set, so no other call has the value.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Taken<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Taken<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.poisoned.store(true, Ordering::Release);
        }
        self.0.busy.store(false, Ordering::Release);
    }
}

/// Gives a handle up; NULL is fine. In a process forked after it was made its memory stays, since the threads that would
/// have to end are not there.
///
/// # Safety
/// NULL or a handle of this kind that was not freed.
pub(super) unsafe fn free<K: Kind>(at: *mut K) {
    if at.is_null() || !at.is_aligned() {
        return;
    }
    quietly((), || {
        // SAFETY: not null and aligned, so a handle of this kind; freed once, as the caller promises.
        unsafe {
            let handle = (*at).handle();
            let alive = handle.magic.swap(0, Ordering::Relaxed) == ALIVE;
            if alive && handle.slot.process == std::process::id() {
                drop(Box::from_raw(at));
            }
        }
    });
}
