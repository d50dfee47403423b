//! An adapter merged into its base: W + scale B A, written as a model folder of its own.
//!
//! Rows pass through one at a time, so memory is bounded by a row and the adapter, not by the model. Every tensor keeps
//! its type; a sum is made in f32 and rounded once, to nearest even (PEFT's `merge_and_unload` rounds scale B A first
//! where the base is 16 bits wide). Weights without a pair are copied bit for bit.

use super::{Adapter, lora::Slot};
use crate::files::safetensors::{NewTensor, SINGLE, TensorView, Tensors, Writer, encode};
use crate::files::{Access, Config, folder, room_for};
use crate::{Cancel, Code, Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// What a merge did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Tensors written.
    pub tensors: usize,
    /// Of those, how many had a pair.
    pub changed: usize,
    /// Bytes of all tensors.
    pub bytes: usize,
}

/// Makes `out` the model `base` with the adapter folder `adapter` merged in. `more` may add files to the folder that is
/// being built; `progress` is told tensors done and in all, and stops the merge with `false`; `cancel` is read row by
/// row. `out` is replaced in one step: after an error or a kill it is as it was.
///
/// # Errors
/// As [`Config::read`], [`Tensors::open`] and [`Adapter::read`]; BadFile where a weight that has a pair is not there or of
/// another shape; Numeric where a merged weight is not finite in its type; Cancelled; Io; those of `more`.
pub fn merge(
    base: &Path,
    adapter: &Path,
    out: &Path,
    more: impl FnOnce(&Path) -> Result<()>,
    progress: &mut dyn FnMut(usize, usize) -> bool,
    cancel: &Cancel,
) -> Result<Merged> {
    folder::refuse_source(out, base)?;
    folder::refuse_source(out, adapter)?;
    let config = Config::read(base)?;
    let adapter = Adapter::read(adapter, &config)?;
    let tensors = Tensors::open(base, Access::Mapped)?;
    let plan = Plan::new(&tensors, &adapter)?;
    folder::replace(out, |dir| {
        plan.write(&dir.join(SINGLE), progress, cancel)?;
        folder::copy_settings(base, dir)?;
        more(dir)
    })?;
    let bytes = plan.views.iter().map(|view| view.bytes.len()).sum();
    Ok(Merged { tensors: plan.views.len(), changed: adapter.slots().len(), bytes })
}

/// Every tensor in the order it is written, and the pairs by the weight they change.
struct Plan<'a> {
    adapter: &'a Adapter,
    views: Vec<TensorView<'a>>,
    slots: HashMap<String, &'a Slot>,
}

impl<'a> Plan<'a> {
    fn new(tensors: &'a Tensors, adapter: &'a Adapter) -> Result<Self> {
        let name = |slot: &Slot| format!("{}.weight", slot.spec.site.path(slot.spec.layer));
        let slots: HashMap<String, &Slot> = adapter.slots().iter().map(|slot| (name(slot), slot)).collect();
        for (name, slot) in &slots {
            if !tensors.matrix(name, slot.at.outputs, slot.at.inputs)?.is_plain() {
                let text = format!("{name} is quantised; merge into the model it was made of, then quantise that");
                return Err(Error::unsupported(text));
            }
        }
        let mut views: Vec<TensorView> = tensors.names().map(|name| tensors.get(name)).collect::<Result<_>>()?;
        // 4-byte types first: readers map the file and want every tensor aligned
        views.sort_by_key(|view| std::cmp::Reverse(view.dtype.size()));
        Ok(Self { adapter, views, slots })
    }

    fn write(&self, path: &Path, progress: &mut dyn FnMut(usize, usize) -> bool, cancel: &Cancel) -> Result<()> {
        let entry = |view: &TensorView| -> NewTensor { (view.name.to_owned(), view.dtype, view.shape.to_vec()) };
        let entries: Vec<NewTensor> = self.views.iter().map(entry).collect();
        let mut writer = Writer::create(path, &entries, &[("format", "pt")])?.heeding(cancel);
        let all = self.views.len();
        for (done, view) in self.views.iter().enumerate() {
            if !progress(done, all) {
                return Err(Error::new(Code::Cancelled, format!("stopped after {done} of {all} tensors")));
            }
            match self.slots.get(view.name) {
                None => writer.write(view.bytes)?,
                Some(slot) => self.write_sum(view, slot, &mut writer)?,
            }
        }
        progress(all, all);
        writer.finish()
    }

    fn write_sum(&self, view: &TensorView, slot: &Slot, writer: &mut Writer) -> Result<()> {
        let (rows, cols) = (slot.at.outputs, slot.at.inputs);
        let matrix = view.matrix(rows, cols)?;
        let mut row = room_for(cols, view.name)?;
        row.resize(cols, 0.0);
        let mut bytes = room_for(cols * view.dtype.size(), view.name)?;
        for i in 0..rows {
            matrix.read_row(i, 0, &mut row);
            self.add_row(slot, i, &mut row);
            bytes.clear();
            encode(&row, view.dtype, &mut bytes).map_err(|x| not_finite(view, i, x))?;
            writer.write(&bytes)?;
        }
        Ok(())
    }

    /// row += scale (B A)\[i\], rank after rank.
    fn add_row(&self, slot: &Slot, i: usize, row: &mut [f32]) {
        let (at, params) = (slot.at, self.adapter.params());
        let b = &params[at.b + i * at.rank..][..at.rank];
        let mut sum = vec![0.0f32; row.len()];
        for (b, a) in b.iter().zip(params[at.a..].chunks_exact(at.inputs)) {
            sum.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
        }
        let scale = slot.spec.scale as f32;
        row.iter_mut().zip(sum).for_each(|(row, sum)| *row += scale * sum);
    }
}

fn not_finite(view: &TensorView, row: usize, x: f32) -> Error {
    let text = format!("row {row} of {} becomes {x}, which {:?} cannot hold as a finite number", view.name, view.dtype);
    Error::new(Code::Numeric, text)
}
