//! GGUF's tensors to model.safetensors: names, order of rows, types.
//!
//! llama.cpp rotates rows 2i and 2i + 1 of a head together, Hugging Face rows i and i + d/2, so its converter interleaves
//! the rows of q and k within each head; here they go back. Rows pass through one at a time.

use super::blocks::Kind;
use super::parse::{Gguf, Tensor};
use super::{bad, settings};
use crate::files::adapter::Site;
use crate::files::safetensors::{NewTensor, Writer, encode};
use crate::files::{Config, room_for};
use crate::{Cancel, Code, Error, Result};
use dialoguellm_kernels::matrix::Dtype;
use std::collections::BTreeSet;
use std::path::Path;

/// What will be written, in order.
pub(super) struct Plan<'a> {
    steps: Vec<Step<'a>>,
}

struct Step<'a> {
    name: String,
    source: Tensor<'a>,
    dtype: Dtype,
    /// Width of a head where its rows are interleaved.
    interleaved: Option<usize>,
}

/// A tensor that a model of this config has.
struct Wanted {
    gguf: String,
    name: String,
    shape: Vec<usize>,
    interleaved: Option<usize>,
}

impl<'a> Plan<'a> {
    /// Checks that the file has exactly the tensors of such a model, in their shapes.
    pub fn new(gguf: &Gguf<'a>, config: &Config, dtype: Dtype) -> Result<Self> {
        let wanted = wanted(config);
        let names: BTreeSet<&str> = wanted.iter().map(|w| w.gguf.as_str()).collect();
        let other = gguf.tensors.keys().find(|name| !names.contains(**name) && **name != settings::ROPE_FREQS);
        if let Some(name) = other {
            return Err(Error::unsupported(format!("holds tensor {name}, which a LLaMA of its metadata has not")));
        }
        let mut steps = wanted.into_iter().map(|w| step(gguf, w, dtype)).collect::<Result<Vec<_>>>()?;
        // Readers map the file: 4-byte values first keeps all of them aligned.
        steps.sort_by_key(|s| s.dtype != Dtype::F32);
        Ok(Self { steps })
    }

    pub fn len(&self) -> usize {
        self.steps.len()
    }

    pub fn dequantised(&self) -> usize {
        self.steps.iter().filter(|s| s.source.kind.is_quantised()).count()
    }

    /// transformers' name for the type that most bytes have.
    pub fn dtype_name(&self) -> &'static str {
        let bytes = |d: Dtype| self.steps.iter().filter(|s| s.dtype == d).map(|s| s.values() * d.size()).sum::<usize>();
        let all = [(Dtype::F32, "float32"), (Dtype::F16, "float16"), (Dtype::Bf16, "bfloat16")];
        all.into_iter().max_by_key(|(d, _)| bytes(*d)).map_or("float32", |(_, name)| name)
    }

    pub fn write(&self, path: &Path, progress: &mut dyn FnMut(usize, usize) -> bool, cancel: &Cancel) -> Result<()> {
        let entry = |s: &Step<'_>| -> NewTensor { (s.name.clone(), s.dtype, s.source.shape.clone()) };
        let entries: Vec<NewTensor> = self.steps.iter().map(entry).collect();
        let mut writer = Writer::create(path, &entries, &[("format", "pt")])?.heeding(cancel);
        for (done, step) in self.steps.iter().enumerate() {
            if !progress(done, self.len()) {
                return Err(Error::new(Code::Cancelled, format!("stopped after {done} of {} tensors", self.len())));
            }
            step.write(&mut writer)?;
        }
        progress(self.len(), self.len());
        writer.finish()
    }
}

fn step<'a>(gguf: &Gguf<'a>, wanted: Wanted, quantised: Dtype) -> Result<Step<'a>> {
    let Wanted { gguf: name, shape, .. } = &wanted;
    let source = gguf.tensors.get(name.as_str()).ok_or_else(|| bad(format!("lacks tensor {name}")))?;
    if source.shape != *shape {
        return Err(bad(format!("tensor {name} has shape {:?}, the metadata needs {shape:?}", source.shape)));
    }
    let dtype = match source.kind {
        Kind::F32 => Dtype::F32,
        Kind::F16 => Dtype::F16,
        Kind::BF16 => Dtype::Bf16,
        Kind::Q8_0 | Kind::Q4_0 | Kind::Q4_1 => quantised,
    };
    Ok(Step { name: wanted.name, source: source.clone(), dtype, interleaved: wanted.interleaved })
}

fn wanted(c: &Config) -> Vec<Wanted> {
    let plain = |gguf: &str, name: &str, shape: &[usize]| Wanted {
        gguf: format!("{gguf}.weight"),
        name: format!("{name}.weight"),
        shape: shape.to_vec(),
        interleaved: None,
    };
    let mut all = vec![plain("token_embd", "model.embed_tokens", &[c.vocab_size, c.hidden_size])];
    for layer in 0..c.n_layers {
        let (blk, model) = (format!("blk.{layer}"), format!("model.layers.{layer}"));
        all.push(plain(&format!("{blk}.attn_norm"), &format!("{model}.input_layernorm"), &[c.hidden_size]));
        all.push(plain(&format!("{blk}.ffn_norm"), &format!("{model}.post_attention_layernorm"), &[c.hidden_size]));
        Site::ALL.into_iter().for_each(|site| all.extend(linear(c, layer, site)));
    }
    all.push(plain("output_norm", "model.norm", &[c.hidden_size]));
    if !c.tie_word_embeddings {
        all.push(plain("output", "lm_head", &[c.vocab_size, c.hidden_size]));
    }
    all
}

fn linear(c: &Config, layer: usize, site: Site) -> impl Iterator<Item = Wanted> {
    let (rows, cols) = site.shape(c);
    let interleaved = matches!(site, Site::Q | Site::K).then_some(c.head_dim);
    let (gguf, has_bias) = match site {
        Site::Q => ("attn_q", c.attention_bias),
        Site::K => ("attn_k", c.attention_bias),
        Site::V => ("attn_v", c.attention_bias),
        Site::O => ("attn_output", c.attention_bias),
        Site::Gate => ("ffn_gate", c.mlp_bias),
        Site::Up => ("ffn_up", c.mlp_bias),
        Site::Down => ("ffn_down", c.mlp_bias),
    };
    let half = move |part: &str, shape: Vec<usize>| Wanted {
        gguf: format!("blk.{layer}.{gguf}.{part}"),
        name: format!("{}.{part}", site.path(layer)),
        shape,
        interleaved,
    };
    let weight = half("weight", vec![rows, cols]);
    std::iter::once(weight).chain(has_bias.then(|| half("bias", vec![rows])))
}

impl Step<'_> {
    fn values(&self) -> usize {
        self.source.shape.iter().product() // no overflow: the file holds as many
    }

    /// Rows and columns; a bias of interleaved rows is one column.
    fn rows(&self) -> (usize, usize) {
        match self.source.shape.as_slice() {
            [n] if self.interleaved.is_some() => (*n, 1),
            [n] => (1, *n),
            shape => (shape[0], shape[1..].iter().product()),
        }
    }

    fn write(&self, writer: &mut Writer) -> Result<()> {
        let (rows, cols) = self.rows();
        let bytes = self.source.kind.row_bytes(cols);
        let (mut values, mut out) = (room_for(cols, &self.name)?, room_for(cols * self.dtype.size(), &self.name)?);
        values.resize(cols, 0.0);
        for row in 0..rows {
            let from = self.interleaved.map_or(row, |d| interleaved_row(row, d));
            self.source.kind.read_row(&self.source.bytes[from * bytes..][..bytes], &mut values);
            out.clear();
            encode(&values, self.dtype, &mut out).map_err(|x| self.not_finite(row, x))?;
            writer.write(&out)?;
        }
        Ok(())
    }

    fn not_finite(&self, row: usize, x: f32) -> Error {
        let text =
            format!("row {row} of {} holds {x}, which {:?} cannot hold as a finite number", self.name, self.dtype);
        Error::new(Code::Numeric, text)
    }
}

/// Where llama.cpp has Hugging Face's row: within a head of `d` rows, row s d/2 + i lies at 2i + s.
fn interleaved_row(row: usize, d: usize) -> usize {
    let (head, within) = (row / d, row % d);
    let (s, i) = (within / (d / 2), within % (d / 2));
    head * d + 2 * i + s
}
