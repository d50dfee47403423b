//! Where a network's weights come from, and whether they become whole numbers on the way.

use crate::device::{Bits, Device};
use crate::files::safetensors::{Described, Tensors};
use crate::{Cancel, Error, Result};
use dialoguellm_kernels::quantize::RUN;
use std::sync::Arc;

/// What a network is opened from.
pub struct Weights<'a> {
    /// The folder's tensors.
    pub tensors: &'a Arc<Tensors>,
    /// What linear maps become that are stored as numbers; they stay as they are where none are given. With either, the
    /// embedding and the head become 8 bits.
    pub bits: Option<Bits>,
    /// Stops opening, inside a matrix too where it becomes whole numbers.
    pub cancel: &'a Cancel,
}

impl Weights<'_> {
    /// A linear map's matrix. Errors: those of [`Device::weight`]; UNSUPPORTED where 4 bits do not fit its width;
    /// CANCELLED.
    pub fn linear<D: Device>(&self, device: &D, name: &str, shape: [usize; 2]) -> Result<D::Weight> {
        self.cancel.check()?;
        refuse_width(name, shape[1], self.bits)?;
        device.weight(self.tensors, name, shape, self.bits, self.cancel)
    }

    /// The embedding or the head: 4 bits would cost them more than they are worth. Errors: those of [`Device::weight`].
    pub fn table<D: Device>(&self, device: &D, name: &str, shape: [usize; 2]) -> Result<D::Weight> {
        device.weight(self.tensors, name, shape, self.bits.map(|_| Bits::Eight), self.cancel)
    }
}

/// A row of 4 bits is cut into whole runs, so that a file of them says by its shapes how long runs are.
pub(super) fn refuse_width(name: &str, cols: usize, bits: Option<Bits>) -> Result<()> {
    if bits == Some(Bits::Four) && !cols.is_multiple_of(RUN) {
        let text = format!("{name} has rows of {cols} weights, 4 bits need a multiple of {RUN}: take 8 bits");
        return Err(Error::unsupported(text));
    }
    Ok(())
}

/// Bytes of a folder's weights once they are opened: as they are stored, or in a GPU's memory.
pub fn bytes(tensors: &Tensors, bits: Option<Bits>, on_gpu: bool) -> usize {
    let one = |Described { name, dtype, shape, bytes, .. }: Described| match (dtype, shape) {
        (Some(dtype), &[rows, cols]) if !name.ends_with("_scale") => match bits {
            None => rows * cols * if on_gpu { 2 } else { dtype.size() },
            Some(bits) => {
                let bits = if name.contains(".layers.") { bits } else { Bits::Eight };
                let scales = rows * cols.div_ceil(bits.run(cols));
                rows * bits.row_bytes(cols) + scales * if on_gpu { 4 } else { 2 }
            }
        },
        (Some(dtype), _) if on_gpu => bytes / dtype.size() * 4,
        _ => bytes,
    };
    tensors.described().map(one).sum()
}
