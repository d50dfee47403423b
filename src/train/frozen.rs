//! What the layers below the lowest one that learns make of every prompt that a step takes, computed once for a whole run.
//!
//! Those layers are the frozen model's alone, so what enters the lowest layer that learns is the same at every step, in every
//! epoch and for every seed. It is kept in a file of 4 bytes a value, mapped, and a step begins there: with pairs in the
//! upper third of a model it costs a third. A group's rows lie together, as its own forest has them, so they can be found for
//! any batch; they are computed many groups at once, which is what a step's own may differ from by rounding.

use super::batch::{Batch, Layout};
use super::data::Group;
use super::loss::{Loss, Shape};
use crate::files::Access;
use crate::files::safetensors::{Tensors, Writer};
use crate::model::Model;
use crate::model::engine::{Engine, Pass};
use crate::{Cancel, Error, Result};
use dialoguellm_kernels::Dtype;
use sha2::{Digest, Sha256};
use std::path::Path;
use tempfile::NamedTempFile;

/// Tokens computed at once, and their rows held in memory.
const TOKENS: usize = 4096;
/// The tensor of all rows, `[rows, hidden_size]`.
const ROWS: &str = "rows";

/// The groups of a run, and whether any of its steps takes each.
#[derive(Clone, Copy)]
pub(crate) struct Groups<'a> {
    pub all: &'a [Group],
    pub taken: &'a [bool],
}

/// The rows of the groups that are taken.
pub(crate) struct Frozen {
    layer: usize,
    layout: Layout,
    /// Every group's first row; a group that is not taken has none, and that of the next.
    first: Vec<usize>,
    width: usize,
    rows: Tensors,
    /// Goes with the run, unless the rows are kept for others.
    _temporary: Option<NamedTempFile>,
}

impl Frozen {
    /// Finds the rows that enter layer `layer` in the folder `kept`, or makes them, there or in a file that goes with the run.
    /// `progress` is told how many of the groups that are taken are done.
    ///
    /// # Errors
    /// Io; BadFile for a file of another shape; those of [`Engine::entering`]. Nothing half-written is left.
    pub fn open(
        model: &Model,
        loss: Loss,
        Groups { all, taken }: Groups,
        layer: usize,
        kept: Option<&Path>,
        cancel: &Cancel,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let layout = Layout { loss, shape: Shape::default(), shared: true };
        let groups: Vec<&Group> = all.iter().zip(taken).filter_map(|(group, &taken)| taken.then_some(group)).collect();
        let lengths = all.iter().zip(taken).map(|(group, &taken)| if taken { rows_of(layout, group) } else { 0 });
        let (first, total) = one_after_another(lengths);
        let width = model.config().hidden_size;
        let make = |file: &NamedTempFile, progress: &mut dyn FnMut(usize)| {
            let shape = vec![total, width];
            let writer = Writer::create(file.path(), &[(ROWS.to_owned(), Dtype::F32, shape)], &[])?.heeding(cancel);
            fill(model.engine(), layout, &groups, layer, writer, cancel, progress)
        };
        let (rows, temporary) = match kept {
            None => {
                let folder = std::env::temp_dir();
                let file = NamedTempFile::new().map_err(|error| Error::io("write in", &folder, &error))?;
                make(&file, progress)?;
                (Tensors::open_file(file.path(), Access::Mapped)?, Some(file))
            }
            Some(folder) => {
                let path = folder.join(format!("{}.safetensors", name(model, layout, &groups, layer)));
                if !path.exists() {
                    std::fs::create_dir_all(folder).map_err(|error| Error::io("make", folder, &error))?;
                    let file = NamedTempFile::new_in(folder).map_err(|error| Error::io("write in", folder, &error))?;
                    make(&file, progress)?;
                    file.persist(&path).map_err(|error| Error::io("write", &path, &error.error))?;
                }
                (Tensors::open_file(&path, Access::Mapped)?, None)
            }
        };
        let stored = rows.get(ROWS)?;
        if (stored.dtype, stored.shape) != (Dtype::F32, &[total, width][..]) {
            let (dtype, shape) = (stored.dtype, stored.shape);
            let text = format!("rows are {dtype:?} {shape:?}, these prompts need F32 [{total}, {width}]");
            let remove = kept.map_or(String::new(), |kept| format!("; remove the files in {}", kept.display()));
            return Err(Error::new(crate::Code::BadFile, text + &remove));
        }
        Ok(Self { layer, layout, first, width, rows, _temporary: temporary })
    }

    /// The layer that the rows enter.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// The rows of a batch of the groups `numbers`.
    ///
    /// # Errors
    /// BadFile for rows in another type.
    pub fn of(&self, batch: &Batch, groups: &[&Group], numbers: &[u32]) -> Result<Vec<f32>> {
        let stored = self.rows.get(ROWS)?;
        let mut kept_at = vec![0; batch.forest.len()];
        let first = numbers.iter().map(|&number| self.first[number as usize]);
        places(self.layout, groups, first, &batch.rows, |kept, row| kept_at[row] = kept);
        let (bytes, mut values) = (4 * self.width, vec![0.0; batch.forest.len() * self.width]);
        for (to, kept) in values.chunks_exact_mut(self.width).zip(kept_at) {
            let from = stored.bytes[kept * bytes..][..bytes].as_chunks().0;
            to.iter_mut().zip(from).for_each(|(to, &from)| *to = f32::from_le_bytes(from));
        }
        Ok(values)
    }
}

/// A name that stands for all that the rows depend on.
fn name(model: &Model, layout: Layout, groups: &[&Group], layer: usize) -> String {
    let engine = model.engine();
    let mut hash = Sha256::new();
    for part in [model.fingerprint(), engine.precision(), &format!("{:?}", engine.isa()), &format!("{layer}")] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    for prompt in groups.iter().flat_map(|group| &group.prompts) {
        let ids = layout.computed(prompt);
        hash.update((ids.len() as u64).to_le_bytes());
        ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Tells `each` token's place among the kept rows and in the common forest of `groups`, whose kept rows begin at `first`.
fn places(
    layout: Layout,
    groups: &[&Group],
    first: impl Iterator<Item = usize>,
    rows: &[Vec<u32>],
    mut each: impl FnMut(usize, usize),
) {
    let mut rows = rows.iter();
    for (group, first) in groups.iter().zip(first) {
        for (own, rows) in layout.forest(&[group]).1.iter().zip(&mut rows) {
            own.iter().zip(rows).for_each(|(&own, &row)| each(first + own as usize, row as usize));
        }
    }
}

/// Rows of one group.
fn rows_of(layout: Layout, group: &Group) -> usize {
    layout.forest(&[group]).0.len()
}

/// Where each of what has these lengths begins, and where the last one ends.
fn one_after_another(lengths: impl Iterator<Item = usize>) -> (Vec<usize>, usize) {
    let (mut first, mut end) = (Vec::new(), 0);
    for length in lengths {
        first.push(end);
        end += length;
    }
    (first, end)
}

/// Computes the rows of every group, in order.
fn fill(
    engine: &dyn Engine,
    layout: Layout,
    all: &[&Group],
    layer: usize,
    mut writer: Writer,
    cancel: &Cancel,
    progress: &mut dyn FnMut(usize),
) -> Result<()> {
    let width = engine.config().hidden_size;
    for cut in layout.cut(all, TOKENS) {
        let (groups, done) = (&all[cut.clone()], cut.end);
        let (forest, rows) = layout.forest(groups);
        let entering = engine.entering(&Pass { forest: &forest, adapter: None, cancel }, layer)?;
        let (first, total) = one_after_another(groups.iter().map(|group| rows_of(layout, group)));
        let mut row_at = vec![0; total];
        places(layout, groups, first.into_iter(), &rows, |kept, row| row_at[kept] = row);
        for row in row_at {
            let values = &entering[row * width..][..width];
            writer.write(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        progress(done);
    }
    writer.finish()
}
