//! A request to stop, and reading that heeds it.

use crate::{Code, Error, Result};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A request to stop, readable and settable from any thread and from a signal handler.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks whatever watches this to stop: at its next layer, tensor, line or piece of a file.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
    /// Lets the next call run again.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
    /// Whether a stop was asked for.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
    /// CANCELLED once a stop was asked for.
    pub fn check(&self) -> Result<()> {
        if self.is_set() {
            return Err(Error::new(Code::Cancelled, "stopped, as asked"));
        }
        Ok(())
    }
}

/// Bytes that are read or written between two looks: a millisecond's worth.
pub(crate) const PIECE: usize = 1 << 20;

/// What is read piece by piece until a stop is asked for: an error from then on, whose kind does not matter.
pub(crate) struct Watched<'a, R> {
    pub from: R,
    pub cancel: &'a Cancel,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.cancel.check().map_err(io::Error::other)?;
        let len = to.len().min(PIECE);
        self.from.read(&mut to[..len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_ends_at_the_next_piece_after_a_stop() {
        let (bytes, cancel) = (vec![1; 3 * PIECE], Cancel::default());
        let mut watched = Watched { from: &*bytes, cancel: &cancel };
        let mut to = vec![0; 3 * PIECE];
        assert_eq!(watched.read(&mut to).unwrap(), PIECE);
        cancel.set();
        assert!(watched.read(&mut to).is_err() && cancel.check().is_err());
        cancel.clear();
        assert_eq!(watched.read_to_end(&mut Vec::new()).unwrap(), 2 * PIECE);
    }
}
