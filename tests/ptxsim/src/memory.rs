//! The device's global memory: buffers at made-up addresses, so that a wild pointer is an error and never a crash.

use crate::shadow::Shadow;

/// An address is this bit, a buffer's number and an offset: no host address, and no sum of small numbers, looks like it.
const GLOBAL: u64 = 1 << 60;
const OFFSET_BITS: u32 = 36;
const OFFSET: u64 = (1 << OFFSET_BITS) - 1;
/// In a generic address: shared memory.
pub const SHARED: u64 = 1 << 61;
/// In a generic address: a thread's own memory.
pub const LOCAL: u64 = 1 << 62;
/// What memory holds before anything is written: NaN in every floating type.
pub const NEVER_WRITTEN: u8 = 0xff;

/// Bytes of device memory and who touched them.
pub(crate) struct Buffer {
    pub data: Vec<u8>,
    /// Kept where launches are checked.
    pub shadow: Option<Shadow>,
}

/// A device's memory.
///
/// A number is never given to a second buffer, so that an address of a freed one stays wrong.
pub struct Memory {
    check: bool,
    /// The first number of a segment that no access is stamped with yet.
    pub(crate) segment: u32,
    buffers: Vec<Option<Buffer>>,
}

impl Memory {
    /// Nothing in use; `check`: launches are checked, for which every byte keeps its history (12 bytes).
    pub fn new(check: bool) -> Self {
        Self { check, segment: 1, buffers: Vec::new() }
    }

    /// Whether launches are checked.
    pub fn checks(&self) -> bool {
        self.check
    }

    /// A buffer of `len` bytes that count as never written; its address.
    pub fn alloc(&mut self, len: usize) -> u64 {
        assert!(len as u64 <= OFFSET, "a buffer of {len} bytes");
        let shadow = self.check.then(|| Shadow::new(len));
        self.buffers.push(Some(Buffer { data: vec![NEVER_WRITTEN; len], shadow }));
        GLOBAL | (self.buffers.len() as u64 - 1) << OFFSET_BITS
    }

    /// Frees the buffer that starts at `at`; whether there was one.
    pub fn free(&mut self, at: u64) -> bool {
        let Some((index, 0)) = split(at) else { return false };
        self.buffers.get_mut(index).and_then(Option::take).is_some()
    }

    /// Writes as the host does; outside one buffer's bounds it is an error.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), String> {
        let (buffer, offset) = self.find_mut(at, bytes.len())?;
        buffer.data[offset..offset + bytes.len()].copy_from_slice(bytes);
        if let Some(shadow) = &mut buffer.shadow {
            shadow.settle(offset, bytes.len());
        }
        Ok(())
    }

    /// `len` bytes at `at`; outside one buffer's bounds it is an error.
    pub fn read(&self, at: u64, len: usize) -> Result<&[u8], String> {
        let (index, offset) = self.locate(at, len)?;
        Ok(&self.buffers[index].as_ref().expect("located").data[offset..offset + len])
    }

    /// All bytes of the buffer that starts at `at`.
    pub fn whole(&self, at: u64) -> Result<&[u8], String> {
        self.read(at, split(at).map_or(0, |(index, _)| self.len(index).unwrap_or(0)))
    }

    /// Forgets who touched what, but not what was never written.
    pub(crate) fn settle(&mut self) {
        let buffers = self.buffers.iter_mut().flatten();
        buffers.filter_map(|buffer| buffer.shadow.as_mut()).for_each(Shadow::settle_written);
    }

    pub(crate) fn find_mut(&mut self, at: u64, len: usize) -> Result<(&mut Buffer, usize), String> {
        if let Some((index, offset)) = split(at)
            && let Some(Some(buffer)) = self.buffers.get(index)
            && offset + len <= buffer.data.len()
        {
            return Ok((self.buffers[index].as_mut().expect("just seen"), offset));
        }
        Err(self.wild(at, len))
    }

    fn locate(&self, at: u64, len: usize) -> Result<(usize, usize), String> {
        let place = split(at).filter(|&(index, offset)| self.len(index).is_some_and(|size| offset + len <= size));
        place.ok_or_else(|| self.wild(at, len))
    }

    fn len(&self, index: usize) -> Option<usize> {
        Some(self.buffers.get(index)?.as_ref()?.data.len())
    }

    fn wild(&self, at: u64, len: usize) -> String {
        let Some((index, offset)) = split(at) else {
            return format!("{len} bytes at {at:#x}: not an address of this memory");
        };
        match self.len(index) {
            Some(size) => format!("{len} bytes at offset {offset} of buffer {index}, which has {size}"),
            None if index < self.buffers.len() => {
                format!("{len} bytes at offset {offset} of buffer {index}, which is freed")
            }
            // One byte before a buffer's start lies at the end of the number before it.
            None => format!("{len} bytes at {at:#x}: not an address of this memory"),
        }
    }
}

/// Number of the buffer, and offset.
fn split(at: u64) -> Option<(usize, usize)> {
    (at >> 60 == 1).then_some((((at & !GLOBAL) >> OFFSET_BITS) as usize, (at & OFFSET) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_outside_a_living_buffer_are_errors() {
        let mut memory = Memory::new(true);
        let (a, b) = (memory.alloc(16), memory.alloc(8));
        memory.write(a + 8, &[1; 8]).unwrap();
        assert_eq!(memory.read(a + 7, 2).unwrap(), [NEVER_WRITTEN, 1]);
        assert!(memory.write(a + 8, &[1; 9]).unwrap_err().contains("offset 8 of buffer 0, which has 16"));
        assert!(memory.read(b - 1, 1).is_err() && memory.read(0, 1).is_err() && memory.read(!0, 1).is_err());
        assert!(!memory.free(a + 1) && memory.free(a) && !memory.free(a));
        assert!(memory.read(a, 1).unwrap_err().contains("freed"));
        assert_ne!(memory.alloc(16), a);
    }
}
