//! A model folder whose linear maps are whole numbers, as compressed-tensors has them: half or a quarter of bf16 on the disk,
//! read by transformers and vLLM as well.
//!
//! Rows pass through one at a time, so memory is bounded by a row and a matrix's scales, not by the model. Embedding, head, norms
//! and biases are copied bit for bit: other readers expect them so, and `--precision int8` makes whole numbers of the first
//! two when it opens the folder.

use super::weights::refuse_width;
use crate::files::adapter::Site;
use crate::files::safetensors::{NewTensor, SINGLE, TensorView, Tensors, Writer, Written};
use crate::files::{Access, Config, Dtype, compressed, config, fingerprint, folder, read_json, room_for};
use crate::{Cancel, Code, Error, Result};
use dialoguellm_kernels::quantize::{RUN, quantize as quantize_row};
use dialoguellm_kernels::{Bits, Matrix, bf16};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantized {
    /// Tensors of the source.
    pub tensors: usize,
    /// Of those, how many became whole numbers.
    pub quantized: usize,
    /// Bytes of all tensors written.
    pub bytes: usize,
}

/// Makes `out` the model `base` with linear maps of `bits`. `also` names files of the folder that are copied as well, where
/// they are there; `progress` is told tensors done and in all, and stops with `false`; `cancel` is read row by row. `out` is
/// replaced in one step: after an error or a kill it is as it was.
///
/// # Errors
/// As [`Config::read`] and [`Tensors::open`]; InvalidArgument where the model is quantised already; Unsupported where 4 bits
/// do not fit a width; Numeric where a weight is not finite; Cancelled; Io.
pub fn quantize(
    base: &Path,
    out: &Path,
    bits: Bits,
    also: &[&str],
    progress: &mut dyn FnMut(usize, usize) -> bool,
    cancel: &Cancel,
) -> Result<Quantized> {
    folder::refuse_source(out, base)?;
    let config = Config::read(base)?;
    let tensors = Tensors::open(base, Access::Mapped)?;
    let settings = settings(base, bits, &fingerprint(base, &tensors)?)?;
    let plan = Plan::new(&tensors, &config, bits)?;
    folder::replace(out, |dir| {
        plan.write(&dir.join(SINGLE), progress, cancel)?;
        folder::copy_settings(base, dir)?;
        also.iter().try_for_each(|name| folder::copy(&base.join(name), &dir.join(name)))?;
        let path = dir.join(config::FILE);
        std::fs::write(&path, &settings).map_err(|error| Error::io("write", &path, &error))
    })?;
    let bytes = plan.entries().iter().map(|(_, dtype, shape)| dtype.size() * shape.iter().product::<usize>()).sum();
    Ok(Quantized { tensors: plan.others.len() + plan.maps.len(), quantized: plan.maps.len(), bytes })
}

/// config.json with what the new weights are, and whose they were.
fn settings(base: &Path, bits: Bits, origin: &str) -> Result<String> {
    let path = base.join(config::FILE);
    let mut map: Map<String, Value> = read_json(&path)?;
    if map.get(compressed::FIELD).is_some_and(|value| !value.is_null()) {
        return Err(Error::invalid(format!("{} is quantised already: take the model it was made of", base.display())));
    }
    map.insert(compressed::FIELD.to_owned(), compressed::config(bits, RUN));
    map.insert(compressed::ORIGIN.to_owned(), origin.into());
    serde_json::to_string_pretty(&map).map_err(|_| Error::internal("config.json is not JSON"))
}

/// Every tensor, apart by what becomes of it.
struct Plan<'a> {
    bits: Bits,
    maps: BTreeMap<String, Matrix<'a>>,
    others: Vec<TensorView<'a>>,
}

impl<'a> Plan<'a> {
    fn new(tensors: &'a Tensors, config: &Config, bits: Bits) -> Result<Self> {
        let mut maps = BTreeMap::new();
        for (layer, site) in (0..config.n_layers).flat_map(|layer| Site::ALL.map(|site| (layer, site))) {
            let (name, (rows, cols)) = (format!("{}.weight", site.path(layer)), site.shape(config));
            refuse_width(&name, cols, Some(bits))?;
            maps.insert(name.clone(), tensors.get(&name)?.matrix(rows, cols)?);
        }
        let others = tensors.names().filter(|name| !maps.contains_key(*name)).map(|name| tensors.get(name));
        let mut others: Vec<TensorView> = others.collect::<Result<_>>()?;
        others.sort_by_key(|view| std::cmp::Reverse(view.dtype.size()));
        Ok(Self { bits, maps, others })
    }

    /// In the order they are written: larger types before smaller ones, then each map's numbers and scales.
    fn entries(&self) -> Vec<NewTensor<Written>> {
        let part = compressed::part;
        let mut entries = Vec::new();
        if self.bits == Bits::Four {
            entries.extend(self.maps.keys().map(|name| (part(name, "shape"), Written::I64, vec![2])));
        }
        let other = |view: &TensorView| (view.name.to_owned(), Written::Number(view.dtype), view.shape.to_vec());
        entries.extend(self.others.iter().map(other));
        for (name, w) in &self.maps {
            let runs = w.cols().div_ceil(self.bits.run(w.cols()));
            entries.push(match self.bits {
                Bits::Eight => (name.clone(), Written::I8, vec![w.rows(), w.cols()]),
                Bits::Four => (part(name, "packed"), Written::I32, vec![w.rows(), w.cols().div_ceil(8)]),
            });
            entries.push((part(name, "scale"), Written::Number(Dtype::Bf16), vec![w.rows(), runs]));
        }
        entries
    }

    fn write(&self, path: &Path, progress: &mut dyn FnMut(usize, usize) -> bool, cancel: &Cancel) -> Result<()> {
        let mut writer = Writer::create(path, &self.entries(), &[("format", "pt")])?.heeding(cancel);
        if self.bits == Bits::Four {
            for w in self.maps.values() {
                writer.write([w.rows(), w.cols()].map(|size| (size as i64).to_le_bytes()).as_flattened())?;
            }
        }
        self.others.iter().try_for_each(|view| writer.write(view.bytes))?;
        for (done, (name, w)) in self.maps.iter().enumerate() {
            if !progress(done, self.maps.len()) {
                let text = format!("stopped after {done} of {} matrices", self.maps.len());
                return Err(Error::new(Code::Cancelled, text));
            }
            self.write_map(name, w, &mut writer)?;
        }
        progress(self.maps.len(), self.maps.len());
        writer.finish()
    }

    /// A map's numbers, row after row, then its scales.
    fn write_map(&self, name: &str, w: &Matrix, writer: &mut Writer) -> Result<()> {
        let cols = w.cols();
        let (mut row, mut q) = (vec![0.0; cols], vec![0; self.bits.row_bytes(cols)]);
        let mut scales = vec![bf16::ZERO; cols.div_ceil(self.bits.run(cols))];
        let mut all: Vec<u8> = room_for(2 * w.rows() * scales.len(), name)?;
        for i in 0..w.rows() {
            w.read_row(i, 0, &mut row);
            quantize_row(self.bits, &mut q, &mut scales, &row);
            if scales.iter().any(|scale| !scale.is_finite()) {
                let text = format!("row {i} of {name} has a weight that is NaN or infinite, or too large to be scaled");
                return Err(Error::new(Code::Numeric, text));
            }
            writer.write(&q)?;
            all.extend(scales.iter().flat_map(|scale| scale.to_le_bytes()));
        }
        writer.write(&all)
    }
}
