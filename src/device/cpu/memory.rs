//! Memory by cache lines, from which packed panels load fastest.

use memmap2::MmapMut;

/// Bytes of a line.
pub(super) const LINE: usize = 64;

#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line(#[allow(dead_code)] [u8; LINE]); // only ever read as numbers

/// Lines of initialised memory.
pub(super) enum Lines {
    Small(Vec<Line>),
    /// Pages of its own, which go back to the system when dropped: the allocator would keep them, in pieces.
    Large(MmapMut),
}

/// Bytes from which memory has pages of its own.
const LARGE: usize = 256 << 10;

impl Lines {
    /// Zeros, or `None` where the system refuses.
    pub(super) fn new(lines: usize) -> Option<Self> {
        let bytes = lines.checked_mul(LINE)?;
        if bytes >= LARGE {
            let pages = MmapMut::map_anon(bytes).ok()?;
            // Of 2 MiB where the system grants them: fewer faults, and the processor knows the addresses of more memory at a time.
            #[cfg(target_os = "linux")]
            let _ = pages.advise(memmap2::Advice::HugePage);
            return Some(Lines::Large(pages));
        }
        let mut small = Vec::new();
        small.try_reserve_exact(lines).ok()?;
        small.resize(lines, Line([0; LINE]));
        Some(Lines::Small(small))
    }

    pub(super) fn len(&self) -> usize {
        self.bytes().len() / LINE
    }

    /// All bytes, the first of them at the start of a line.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            // SAFETY: as many bytes, all initialised.
            Lines::Small(lines) => unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(&**lines)) },
            Lines::Large(pages) => pages,
        }
    }

    /// All bytes, as in [`Self::bytes`].
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            // SAFETY: as in `bytes`, and borrowed exclusively.
            Lines::Small(lines) => unsafe {
                std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(&**lines))
            },
            Lines::Large(pages) => pages,
        }
    }
}

impl Default for Lines {
    fn default() -> Self {
        Lines::Small(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_any_size_is_zero_and_begins_with_a_line() {
        for lines in [0, 1, LARGE / LINE - 1, LARGE / LINE, 3 * LARGE / LINE + 1] {
            let memory = Lines::new(lines).unwrap();
            assert_eq!((memory.len(), memory.bytes().len()), (lines, lines * LINE));
            assert!(memory.bytes().as_ptr().addr().is_multiple_of(LINE), "{lines}");
            assert!(memory.bytes().iter().all(|byte| *byte == 0), "{lines}");
        }
        assert!(Lines::new(usize::MAX).is_none() && Lines::new(1 << 52).is_none());
    }
}
