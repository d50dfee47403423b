//! LoRA's trainable pairs: W x + s B (A x), with A `[rank, inputs]` and B `[outputs, rank]` in one flat vector.
//!
//! Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1; scale alpha / rank, or alpha / sqrt(rank) with rsLoRA
//! (arXiv 2312.03732). Names, matching and initial values as PEFT's `tuners/lora/layer.py`.

use crate::Result;
use crate::device::PairAt;
use crate::files::adapter::{self, LoraConfig, Pair, PairSpec, Site};
use crate::files::config::Config;
use dialoguellm_kernels::dropout;
use std::path::Path;
use std::sync::Arc;

/// One pair's place in the flat vector.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Which linear map it adapts, and how.
    pub spec: PairSpec,
    /// Where A and B lie.
    pub at: PairAt,
}

/// A set of LoRA pairs for one model.
#[derive(Clone, Debug)]
pub struct Adapter {
    config: LoraConfig,
    model: Config,
    slots: Vec<Slot>,
    /// Shared with passes that are under way.
    params: Arc<Vec<f32>>,
}

impl Adapter {
    /// A new adapter: A uniform in +-1 / sqrt(inputs) (PEFT's kaiming-uniform with a = sqrt 5), B zero, so that it
    /// changes nothing yet. Errors: INVALID_ARGUMENT when no linear map of `model` is targeted.
    pub fn new(config: LoraConfig, model: &Config, seed: u64) -> Result<Self> {
        let specs = config.pairs(model)?;
        if specs.is_empty() {
            return Err(crate::Error::invalid("the adapter's targets match no linear map of the model"));
        }
        let (slots, len) = place(&specs, model);
        let mut params = vec![0.0; len];
        for (i, slot) in slots.iter().enumerate() {
            let bound = 1.0 / (slot.at.inputs as f32).sqrt();
            let key = dropout::key(seed, 0, i as u64, 0, 0);
            for (channel, value) in (0..).zip(&mut params[slot.at.a..][..slot.at.rank * slot.at.inputs]) {
                *value = bound * dropout::uniform(key, channel);
            }
        }
        Ok(Self { config, model: model.clone(), slots, params: Arc::new(params) })
    }

    /// Reads a PEFT folder. Errors: as [`adapter::read`].
    pub fn read(dir: &Path, model: &Config) -> Result<Self> {
        let (config, pairs) = adapter::read(dir, model)?;
        let specs: Vec<_> = pairs.iter().map(|pair| pair.spec).collect();
        let (slots, len) = place(&specs, model);
        let mut params = Vec::with_capacity(len);
        for pair in pairs {
            params.extend(pair.a);
            params.extend(pair.b);
        }
        Ok(Self { config, model: model.clone(), slots, params: Arc::new(params) })
    }

    /// Writes a PEFT folder's files into `dir`. Errors: IO.
    pub fn write(&self, dir: &Path) -> Result<()> {
        adapter::write(dir, &self.config, &self.pairs(), &self.model)
    }

    fn pairs(&self) -> Vec<Pair> {
        let pair = |slot: &Slot| {
            let (a, b) = (slot.at.rank * slot.at.inputs, slot.at.outputs * slot.at.rank);
            let (a, b) = (self.params[slot.at.a..][..a].to_vec(), self.params[slot.at.b..][..b].to_vec());
            Pair { spec: slot.spec, a, b }
        };
        self.slots.iter().map(pair).collect()
    }

    /// Rank, alpha, targets.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }
    /// Every pair's place, by layer, then by site.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }
    /// The lowest layer that has a pair, counted from 0.
    pub fn lowest_layer(&self) -> Option<usize> {
        self.slots.iter().map(|slot| slot.spec.layer).min()
    }
    /// All values: for every slot, A then B.
    pub fn params(&self) -> &[f32] {
        &self.params
    }
    /// All values: for every slot, A then B.
    pub fn params_mut(&mut self) -> &mut [f32] {
        Arc::make_mut(&mut self.params).as_mut_slice()
    }
    /// Takes other values of the same layout; none at all where a trainer has them.
    pub(crate) fn set_params(&mut self, params: Arc<Vec<f32>>) {
        self.params = params;
    }
    /// The same, to be kept by a pass. Changed values are another vector: a device may know by the address what it has.
    pub(crate) fn shared_params(&self) -> &Arc<Vec<f32>> {
        &self.params
    }
    /// The pair beside `site` of `layer`.
    pub fn slot(&self, layer: usize, site: Site) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.spec.layer == layer && slot.spec.site == site)
    }
}

fn place(specs: &[PairSpec], model: &Config) -> (Vec<Slot>, usize) {
    let mut len = 0;
    let mut slot = |spec: &PairSpec| {
        let (outputs, inputs) = spec.site.shape(model);
        let (a, b) = (len, len + spec.rank * inputs);
        len = b + outputs * spec.rank;
        Slot { spec: *spec, at: PairAt { a, b, rank: spec.rank, inputs, outputs } }
    };
    (specs.iter().map(&mut slot).collect(), len)
}
