//! The whole network: embedding, layers, final norm, head. Touvron et al. 2023 (arXiv 2302.13971), section 2.2;
//! behaviour matched to transformers' `modeling_llama.py`.

use super::block::{Block, Chosen, Depth, KeyValue, Past, Saved, Sequence};
use super::engine::{
    Cache, Continued, Engine, Entering, Learner, Learning, LossGradient, Moments, Noise, Pass, Path, Slopes, Target,
};
use super::learner::Learned;
use super::pass::{Context, Rows, plan};
use super::weights::Weights;
use super::{Adapter, Forest, rope};
use crate::device::{Bits, Device, HeadTarget, Tensor};
use crate::files::adapter::Site;
use crate::files::config::{Config, Scaling};
use crate::files::safetensors::Tensors;
use crate::{Cancel, Code, Error, Result};
use dialoguellm_kernels::Isa;
use dialoguellm_kernels::sample::Draw;
use std::sync::Arc;

/// A LLaMA's frozen weights on one device.
pub struct Llama<D: Device> {
    device: Arc<D>,
    config: Config,
    /// What its weights became.
    bits: Option<Bits>,
    embedding: D::Weight,
    blocks: Vec<Block<D>>,
    norm: D::Vector,
    head: D::Weight,
}

/// What backward has of a layer: everything, or its input.
enum Kept<D: Device> {
    All(Saved<D>),
    Input(D::Real),
}

/// d loss / d log p of every target, given the log p of every target, in f64.
pub type LossGradient64<'a> = dyn FnMut(&[f64]) -> Result<Vec<f64>> + 'a;

impl<D: Device> Llama<D> {
    /// [`Llama::open_from`] with weights as they are stored.
    pub fn open(device: D, config: Config, tensors: &Arc<Tensors>) -> Result<Self> {
        Self::open_from(device, config, &Weights { tensors, bits: None, cancel: &Cancel::default() })
    }

    /// Takes every weight that `config` names. Errors: NOT_FOUND, BAD_FILE naming the tensor and both shapes; OUT_OF_MEMORY;
    /// UNSUPPORTED where weights cannot become whole numbers; CANCELLED; those of [`Device::status`].
    pub fn open_from(device: D, config: Config, from: &Weights) -> Result<Self> {
        let (v, d) = (config.vocab_size, config.hidden_size);
        let (embedding, head, norm, blocks) = device.turn(|| {
            let embedding = from.table(&device, "model.embed_tokens.weight", [v, d])?;
            let head = match config.tie_word_embeddings {
                true => embedding.clone(),
                false => from.table(&device, "lm_head.weight", [v, d])?,
            };
            let norm = device.vector(from.tensors, "model.norm.weight", d)?;
            let block = |layer| Block::open(&device, from, &config, layer);
            Ok((embedding, head, norm, (0..config.n_layers).map(block).collect::<Result<_>>()?))
        })?;
        Ok(Self { device: Arc::new(device), config, bits: from.bits, embedding, blocks, norm, head })
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// What an inference pass carries.
    fn context<'a>(&'a self, pass: &Pass<'a>) -> Context<'a, D> {
        let params = pass.adapter.map(|adapter| self.device.params(adapter.shared_params()));
        Context { device: &self.device, adapter: pass.adapter, params, noise: None, cancel: pass.cancel }
    }

    /// Everything about a forest that the layers share, for logits at `chosen` rows.
    fn sequence(&self, forest: &Forest, chosen: Vec<u32>) -> Result<Sequence<D>> {
        let angles = rope::angles(&self.config, forest)?;
        let rows = Rows::of(forest);
        let chosen = Chosen {
            rows: rows.select(&chosen),
            at: chosen.iter().map(|&row| angles.at[row as usize]).collect(),
            plan: self.device.plan(plan(forest, Some(&chosen))),
            indices: chosen,
        };
        let rope = self.device.rope_table(&angles.cos, &angles.sin, angles.half);
        let plan = self.device.plan(plan(forest, None));
        Ok(Sequence { rows, rope, at: angles.at, plan, chosen, cached: forest.cached() })
    }

    /// Refuses what the kernels must not see.
    fn check(&self, forest: &Forest, cache: Option<&Cache>) -> Result<()> {
        check_tokens(forest.tokens(), self.config.vocab_size)?;
        let held = cache.map_or(0, Cache::len);
        if forest.cached() > held {
            return Err(Error::invalid(format!(
                "a forest continues {} cached tokens, the cache holds {held}",
                forest.cached()
            )));
        }
        let limit = context_length(&self.config);
        if forest.depth() > limit {
            let text = format!("{} tokens do not fit the model's context of {limit}", forest.depth());
            return Err(Error::new(Code::ContextFull, text));
        }
        Ok(())
    }

    fn store<'a>(&self, forest: &Forest, cache: Option<&'a Cache>) -> Result<Option<&'a [KeyValue<D>]>> {
        self.check(forest, cache)?;
        let Some(cache) = cache.filter(|_| forest.cached() > 0) else { return Ok(None) };
        let store = cache.store.downcast_ref::<Vec<KeyValue<D>>>().ok_or_else(foreign)?;
        Ok(Some(store))
    }

    /// `[T, D]` with NEFTune's noise where asked for.
    fn embed(&self, forest: &Forest, noise: Option<Noise>, rows: &Rows) -> D::Real {
        let mut x = self.device.embed(&self.embedding, forest.tokens());
        if let Some(noise) = noise.filter(|noise| noise.neftune > 0.0) {
            let scale = noise.neftune / ((forest.depth() * self.config.hidden_size) as f32).sqrt();
            self.device.add_noise(&mut x, &rows.keys(&noise, 0), &vec![scale; forest.len()]);
        }
        x
    }

    /// The final norm's input for the chosen rows, of the rows that enter layer `first`; `past` knows every layer's cache, `each`
    /// takes what it leaves behind.
    fn hidden<'a>(
        &self,
        ctx: &Context<D>,
        (first, mut x): (usize, D::Real),
        seq: &Sequence<D>,
        mut past: impl FnMut(usize) -> Past<'a, D>,
        mut each: impl FnMut(usize, Saved<D>),
    ) -> Result<D::Real> {
        for (layer, block) in self.blocks.iter().enumerate().skip(first) {
            self.check_in(ctx)?;
            let (y, saved) = block.forward(ctx, x, seq, past(layer), layer + 1 == self.blocks.len());
            each(layer, saved);
            x = y;
        }
        Ok(x)
    }

    /// Once a layer: whether to go on.
    fn check_in(&self, ctx: &Context<D>) -> Result<()> {
        ctx.cancel.check()?;
        self.device.status()
    }

    /// The head's input for chosen rows, all of inference.
    fn infer(&self, pass: &Pass, cache: Option<&Cache>, chosen: Vec<u32>) -> Result<D::Act> {
        let past = self.store(pass.forest, cache)?;
        let ctx = self.context(pass);
        let seq = self.sequence(pass.forest, chosen)?;
        let x = self.embed(pass.forest, None, &seq.rows);
        let past = |layer| past.map_or(Past::Nothing, |past| Past::Read(&past[layer]));
        let x = self.hidden(&ctx, (0, x), &seq, past, |_, _| ())?;
        Ok(self.normed(&x))
    }

    /// The final norm's input for row `chosen`, with the new keys and values behind the cache's rows, where they count only
    /// when the caller says so: a pass that fails leaves the cache as it was.
    fn extended(&self, pass: &Pass, cache: &mut Cache, chosen: u32) -> Result<D::Real> {
        let forest = pass.forest;
        if forest.spans().len() != 1 || forest.cached() != cache.len() {
            return Err(Error::invalid(format!(
                "a cache of {} tokens is extended by one span that continues all of it; this forest has {} spans and continues {}",
                cache.len(),
                forest.spans().len(),
                forest.cached()
            )));
        }
        self.check(forest, Some(cache))?;
        let store = cache.store.downcast_mut::<Vec<KeyValue<D>>>().ok_or_else(foreign)?;
        let ctx = self.context(pass);
        let seq = self.sequence(forest, vec![chosen])?;
        let x = self.embed(forest, None, &seq.rows);
        let mut layers = store.iter_mut();
        let past = |_| Past::Extended(layers.next().expect("a cache has every layer"));
        self.hidden(&ctx, (0, x), &seq, past, |_, _| ())
    }

    fn normed(&self, x: &D::Real) -> D::Act {
        self.device.rmsnorm(x, &self.norm, self.config.rms_norm_eps).0
    }

    /// [`Engine::log_probs`] in f64, in the caller's turn of the device.
    pub fn log_probs64(&self, pass: &Pass, cache: Option<&Cache>, targets: &[Target]) -> Result<Vec<f64>> {
        let (chosen, asked) = self.choose(pass.forest, targets)?;
        if chosen.is_empty() {
            return Ok(Vec::new());
        }
        let h = self.infer(pass, cache, chosen)?;
        let (log_p, _) = self.device.head(&h, &self.head, &asked);
        self.device.status()?;
        finite(log_p)
    }

    /// The rows that targets ask, rising, and the targets in terms of them.
    fn choose(&self, forest: &Forest, targets: &[Target]) -> Result<(Vec<u32>, Vec<HeadTarget>)> {
        let (rows, vocabulary) = (forest.len(), self.config.vocab_size);
        if let Some(t) = targets.iter().find(|t| t.row as usize >= rows || t.token as usize >= vocabulary) {
            return Err(Error::invalid(format!(
                "a target asks row {} for token {}; the forest has {rows} rows, the vocabulary {vocabulary} tokens",
                t.row, t.token
            )));
        }
        let mut chosen: Vec<u32> = targets.iter().map(|target| target.row).collect();
        chosen.sort_unstable();
        chosen.dedup();
        let at = |target: &Target| chosen.partition_point(|&row| row < target.row) as u32;
        let asked = targets.iter().map(|t| HeadTarget { row: at(t), token: t.token, gradient: 0.0 }).collect();
        Ok((chosen, asked))
    }

    /// [`Engine::learn`] in f64, with parameters and gradient `[1, parameters]` of the device's own, in the caller's turn of
    /// the device.
    pub fn gradient64(
        &self,
        pass: &Pass,
        targets: &[Target],
        learning: &Learning,
        loss: &mut LossGradient64,
        (params, gradient): (D::Params, &mut D::Real),
    ) -> Result<Vec<f64>> {
        self.check(pass.forest, None)?;
        self.check_entering(pass, learning)?;
        let (chosen, asked) = self.choose(pass.forest, targets)?;
        if chosen.is_empty() {
            return Ok(Vec::new());
        }
        let (device, noise, params) = (&*self.device, learning.noise, Some(params));
        let ctx = Context { device, adapter: pass.adapter, params, noise, cancel: pass.cancel };
        let seq = self.sequence(pass.forest, chosen)?;
        let from = match learning.entering {
            None => (0, self.embed(pass.forest, learning.noise, &seq.rows)),
            Some(Entering { layer, rows }) => (layer, self.device.write(rows, self.config.hidden_size)),
        };
        let back = Back { lowest: lowest(pass.adapter), activation_bytes: learning.activation_bytes, asked };
        Ok(self.there_and_back(&ctx, from, &seq, back, loss, gradient)?.0)
    }

    /// Refuses rows that do not enter where the pass could begin.
    fn check_entering(&self, pass: &Pass, learning: &Learning) -> Result<()> {
        let Some(Entering { layer, rows }) = learning.entering else { return Ok(()) };
        let (lowest, needed) =
            (pass.adapter.and_then(Adapter::lowest_layer), pass.forest.len() * self.config.hidden_size);
        if lowest.is_none_or(|lowest| layer > lowest) || layer >= self.blocks.len() {
            let lowest = lowest.map_or("none".to_owned(), |lowest| lowest.to_string());
            return Err(Error::invalid(format!("rows enter layer {layer}, the lowest layer that learns is {lowest}")));
        }
        if rows.len() != needed {
            return Err(Error::invalid(format!(
                "{} values enter layer {layer}, the forest needs {needed}",
                rows.len()
            )));
        }
        match learning.noise {
            Some(Noise { neftune, .. }) if neftune > 0.0 => Err(Error::invalid(format!(
                "rows enter layer {layer}, above the embedding that NEFTune's noise is for"
            ))),
            _ => Ok(()),
        }
    }

    /// [`Engine::slopes`] in f64, in the caller's turn of the device.
    pub fn slopes64(
        &self,
        pass: &Pass,
        path: &Path,
        targets: &[Target],
        slope: &mut LossGradient64,
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        self.check(pass.forest, None)?;
        path.check(pass.forest.len(), self.config.vocab_size)?;
        let (chosen, asked) = self.choose(pass.forest, targets)?;
        if chosen.is_empty() {
            return Ok((Vec::new(), vec![0.0; pass.forest.len()]));
        }
        let (ctx, seq) = (self.context(pass), self.sequence(pass.forest, chosen)?);
        let mut x = self.device.embed(&self.embedding, pass.forest.tokens());
        let base = self.device.embed(&self.embedding, path.base);
        let ends = [self.device.read(&x)?, self.device.read(&base)?];
        self.device.blend(&mut x, &base, path.share);
        // the adapter's own gradient comes along; nobody reads it
        let mut gradient = self.device.zeros(1, pass.adapter.map_or(1, |adapter| adapter.params().len()));
        let back = Back { lowest: Some((0, Depth::Input)), activation_bytes: ACTIVATION_BYTES, asked };
        let (log_p, dx) = self.there_and_back(&ctx, (0, x), &seq, back, slope, &mut gradient)?;
        let dx = dx.ok_or_else(|| Error::internal("a backward pass ended above the embedding"))?;
        let (dx, width) = (self.device.read(&dx)?, self.config.hidden_size);
        let row = |(i, dx): (usize, &[f32])| {
            let [own, base] = ends.each_ref().map(|end| &end[i * width..][..width]);
            let along = own.iter().zip(base).map(|(&own, &base)| f64::from(own) - f64::from(base));
            dx.iter().zip(along).map(|(&dx, along)| f64::from(dx) * along).sum()
        };
        Ok((log_p, dx.chunks_exact(width).enumerate().map(row).collect()))
    }

    /// Forward from the rows that enter a layer, and backward as far as `back` says: every target's log p, and d loss / d x
    /// where backward comes so far.
    fn there_and_back(
        &self,
        ctx: &Context<D>,
        from: (usize, D::Real),
        seq: &Sequence<D>,
        back: Back,
        loss: &mut LossGradient64,
        gradient: &mut D::Real,
    ) -> Result<(Vec<f64>, Option<D::Real>)> {
        let Back { lowest, activation_bytes, mut asked } = back;
        let mut kept = Vec::with_capacity(self.blocks.len());
        let mut bytes = 0;
        let x = self.hidden(
            ctx,
            from,
            seq,
            |_| Past::Nothing,
            |layer, saved| {
                if lowest.is_none_or(|(lowest, _)| layer < lowest) {
                    return; // nothing below learns: backward ends above
                }
                bytes += saved.bytes();
                let fits = bytes <= activation_bytes;
                kept.push(if fits { Kept::All(saved) } else { Kept::Input(saved.into_input()) });
            },
        )?;
        let (h, rstd) = self.device.rmsnorm(&x, &self.norm, self.config.rms_norm_eps);
        let (log_p, lse) = self.device.head(&h, &self.head, &asked);
        self.device.status()?;
        let log_p = finite(log_p)?;
        let wanted = loss(&log_p)?;
        asked.iter_mut().zip(wanted).for_each(|(target, wanted)| target.gradient = wanted);

        let Some((lowest, lowest_depth)) = lowest else { return Ok((log_p, None)) };
        let dh = self.device.head_backward(&h, &self.head, &lse, &asked);
        let mut dx = self.device.zeros(x.rows(), x.cols());
        self.device.rmsnorm_backward(&mut dx, &dh, &x, &self.norm, &rstd);
        for (layer, kept) in (lowest..self.blocks.len()).zip(kept).rev() {
            self.check_in(ctx)?;
            let (block, last) = (&self.blocks[layer], layer + 1 == self.blocks.len());
            let saved = match kept {
                Kept::All(saved) => saved,
                Kept::Input(x) => block.forward(ctx, x, seq, Past::Nothing, last).1,
            };
            let depth = if layer == lowest { lowest_depth } else { Depth::Input };
            match block.backward(ctx, dx, saved, seq, last, depth, gradient) {
                Some(below) => dx = below,
                None => return self.device.status().map(|()| (log_p, None)),
            }
        }
        self.device.status()?;
        Ok((log_p, Some(dx)))
    }
}

/// How far a backward pass goes, what it may keep, and what its head is asked.
struct Back {
    lowest: Option<(usize, Depth)>,
    activation_bytes: usize,
    asked: Vec<HeadTarget>,
}

/// Bytes of activations that [`Engine::slopes`] keeps; layers beyond it are computed again.
const ACTIVATION_BYTES: usize = 1 << 30;

impl Path<'_> {
    /// INVALID_ARGUMENT for a path that does not fit a forest of `rows` rows.
    fn check(&self, rows: usize, vocabulary: usize) -> Result<()> {
        let Path { base, share } = self;
        if base.len() != rows || share.len() != rows {
            let (base, share) = (base.len(), share.len());
            return Err(Error::invalid(format!("a path of {base} tokens and {share} shares for {rows} rows")));
        }
        check_tokens(base, vocabulary)?;
        match share.iter().find(|share| !(0.0..=1.0).contains(*share)) {
            None => Ok(()),
            Some(share) => Err(Error::invalid(format!("a share is {share}, must be from 0 to 1"))),
        }
    }
}

/// INVALID_ARGUMENT for a token that the model does not have.
fn check_tokens(ids: &[u32], vocabulary: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocabulary) {
        None => Ok(()),
        Some(id) => Err(Error::invalid(format!("token {id} is not in the model's vocabulary of {vocabulary}"))),
    }
}

fn foreign() -> Error {
    Error::invalid("the cache was made by another engine")
}

/// INVALID_ARGUMENT unless `rows` rise and are rows of the forest.
fn check_rows(forest: &Forest, rows: &[u32]) -> Result<()> {
    if rows.is_sorted_by(|a, b| a < b) && rows.last().is_none_or(|&row| (row as usize) < forest.len()) {
        return Ok(());
    }
    Err(Error::invalid(format!("rows for logits must rise and be below the forest's {}", forest.len())))
}

/// Positions the rotations are made for: max_position_embeddings, stretched by linear scaling; dynamic scaling has no end.
pub fn context_length(config: &Config) -> usize {
    let trained = config.max_position_embeddings;
    match config.rope.scaling {
        Scaling::Linear { factor } => (trained as f64 * factor.max(1.0)) as usize,
        Scaling::Dynamic { .. } => usize::MAX,
        Scaling::None | Scaling::Llama3 { .. } => trained,
    }
}

/// The lowest layer that learns, and how far down into it.
fn lowest(adapter: Option<&Adapter>) -> Option<(usize, Depth)> {
    let (slots, layer) = (adapter?.slots(), adapter?.lowest_layer()?);
    let depth = |site: Site| match site {
        Site::Down => Depth::Down,
        Site::Gate | Site::Up => Depth::GateUp,
        Site::O => Depth::Output,
        Site::Q | Site::K | Site::V => Depth::Qkv,
    };
    let deepest = slots.iter().filter(|slot| slot.spec.layer == layer).map(|slot| depth(slot.spec.site)).max()?;
    Some((layer, deepest))
}

/// NUMERIC unless every value is finite: a NaN weight must not become a label.
fn finite(values: Vec<f64>) -> Result<Vec<f64>> {
    match values.iter().find(|value| !value.is_finite()) {
        None => Ok(values),
        Some(value) => Err(Error::new(
            Code::Numeric,
            format!(
                "the model gave a log-probability of {value}: its weights or the adapter's are not finite, or overflow"
            ),
        )),
    }
}

impl<D: Device> Engine for Llama<D> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn precision(&self) -> &'static str {
        match self.bits {
            None => self.device.precision(),
            Some(Bits::Eight) => "int8",
            Some(Bits::Four) => "int4",
        }
    }

    fn isa(&self) -> Isa {
        self.device.isa()
    }

    fn cache(&self) -> Cache {
        let nothing = || self.device.act(0, self.config.n_kv_heads * self.config.head_dim);
        let layers = self.blocks.iter().map(|_| KeyValue { k: nothing(), v: nothing() });
        Cache { rows: 0, store: Box::new(layers.collect::<Vec<KeyValue<D>>>()) }
    }

    fn log_probs(&self, pass: &Pass, cache: Option<&Cache>, targets: &[Target]) -> Result<Vec<f32>> {
        let log_p = self.device.turn(|| self.log_probs64(pass, cache, targets))?;
        Ok(log_p.into_iter().map(|x| x as f32).collect())
    }

    fn logits(&self, pass: &Pass, cache: Option<&Cache>, rows: &[u32]) -> Result<Vec<f32>> {
        check_rows(pass.forest, rows)?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        self.device.turn(|| {
            let h = self.infer(pass, cache, rows.to_vec())?;
            let logits = self.device.logits(&h, &self.head);
            self.device.status().map(|()| logits)
        })
    }

    fn entering(&self, pass: &Pass, layer: usize) -> Result<Vec<f32>> {
        self.check(pass.forest, None)?;
        let Some(below) = self.blocks.get(..layer) else {
            let layers = self.blocks.len();
            return Err(Error::invalid(format!(
                "what enters layer {layer} was asked for; the model has {layers} layers"
            )));
        };
        self.device.turn(|| {
            let (ctx, seq) = (self.context(pass), self.sequence(pass.forest, Vec::new())?);
            let mut x = self.embed(pass.forest, None, &seq.rows);
            for block in below {
                self.check_in(&ctx)?;
                x = block.forward(&ctx, x, &seq, Past::Nothing, false).0;
            }
            self.device.read(&x)
        })
    }

    fn extend(&self, pass: &Pass, cache: &mut Cache) -> Result<()> {
        // the last layer answers for one row at least, which nobody reads
        self.device.turn(|| self.extended(pass, cache, 0).and_then(|_| self.device.status()))?;
        cache.rows += pass.forest.len();
        Ok(())
    }

    fn draw(&self, pass: &Pass, cache: Continued, draw: &Draw) -> Result<u32> {
        let Some(last) = pass.forest.len().checked_sub(1) else {
            return Err(Error::invalid("a forest without tokens is followed by none"));
        };
        let draw = |h: &D::Act| {
            let token = self.device.draw(h, &self.head, draw);
            self.device.status()?;
            token.ok_or_else(|| Error::new(Code::Numeric, "logits are NaN or infinite: check the model's weights"))
        };
        self.device.turn(|| match cache {
            Continued::Read(cache) => draw(&self.infer(pass, Some(cache), vec![last as u32])?),
            Continued::Extended(cache) => {
                let token = draw(&self.normed(&self.extended(pass, cache, last as u32)?))?;
                cache.rows += pass.forest.len();
                Ok(token)
            }
        })
    }

    fn learner(&self, adapter: &Adapter, moments: Option<&Moments>) -> Result<Box<dyn Learner>> {
        Ok(Box::new(Learned::new(&self.device, adapter, moments)?))
    }

    fn learn(
        &self,
        learner: &mut dyn Learner,
        pass: &Pass,
        targets: &[Target],
        learning: &Learning,
        loss: &mut LossGradient,
    ) -> Result<Vec<f32>> {
        let step = Learned::step(learner, &self.device)?;
        let mut wide = |log_p: &[f64]| Ok(loss(&narrow(log_p))?.into_iter().map(f64::from).collect());
        let log_p = self.device.turn(|| self.gradient64(pass, targets, learning, &mut wide, step))?;
        Ok(narrow(&log_p))
    }

    fn slopes(&self, pass: &Pass, path: &Path, targets: &[Target], slope: &mut LossGradient) -> Result<Slopes> {
        let mut wide = |log_p: &[f64]| Ok(slope(&narrow(log_p))?.into_iter().map(f64::from).collect());
        let (log_p, rows) = self.device.turn(|| self.slopes64(pass, path, targets, &mut wide))?;
        Ok(Slopes { log_probs: narrow(&log_p), rows })
    }
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&x| x as f32).collect()
}
