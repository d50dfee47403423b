//! A linear map with its optional LoRA pair: y = W x + b + s B (A drop(x)).
//!
//! A frozen weight has no gradient slot: nothing here could update it. With s folded into the operands,
//!   us = drop(x) (s A)^T      y = x W^T + us B^T + b
//!   du = dy (s B)             dA = du^T drop(x)      dB = dy^T us      dx = dy W + drop'(du A)

use super::lora::Slot;
use super::pass::{Context, Rows};
use super::weights::Weights;
use crate::Result;
use crate::device::{Device, Operand, Out, Product, Sum, Tensor, Term};
use crate::files::adapter::Site;
use crate::files::config::Config;

/// One of a layer's seven linear maps.
pub struct Linear<D: Device> {
    weight: D::Weight,
    bias: Option<D::Vector>,
    layer: usize,
    site: Site,
    outputs: usize,
}

/// What backward needs of the pair beside a map: `us` `[T, R]`.
pub type SavedLora<D> = Option<<D as Device>::Act>;

/// A map's share of dx: dy, and du `[T, R]` of its pair.
pub struct Pull<'a, D: Device> {
    map: &'a Linear<D>,
    dy: &'a D::Act,
    du: Option<D::Act>,
}

impl<D: Device> Linear<D> {
    /// Takes the weight (and bias, where the config has one) of `site` in `layer`.
    pub fn open(device: &D, from: &Weights, config: &Config, layer: usize, site: Site) -> Result<Self> {
        let (outputs, inputs) = site.shape(config);
        let name = site.path(layer);
        let weight = from.linear(device, &format!("{name}.weight"), [outputs, inputs])?;
        let attention = matches!(site, Site::Q | Site::K | Site::V | Site::O);
        let biased = if attention { config.attention_bias } else { config.mlp_bias };
        let bias = biased.then(|| device.vector(from.tensors, &format!("{name}.bias"), outputs)).transpose()?;
        Ok(Self { weight, bias, layer, site, outputs })
    }

    /// Output width.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    fn slot<'a>(&self, ctx: &Context<'a, D>) -> Option<&'a Slot> {
        ctx.adapter.and_then(|adapter| adapter.slot(self.layer, self.site))
    }

    /// Writes (or adds) the map of `x` to `out`.
    pub fn forward(&self, ctx: &Context<D>, x: &D::Act, rows: &Rows, out: Out<D>) -> SavedLora<D> {
        let [us] = forward(ctx, x, rows, [(self, out)]);
        us
    }

    fn dropped(&self, ctx: &Context<D>, x: &D::Act, rows: &Rows) -> Option<D::Act> {
        let keys = self.keys(ctx, rows)?;
        Some(ctx.device.dropout(x, &keys, ctx.dropout()))
    }

    fn keys(&self, ctx: &Context<D>, rows: &Rows) -> Option<Vec<u64>> {
        ctx.keys(1 + (self.layer * Site::ALL.len() + self.site as usize) as u64, rows)
    }

    /// Adds dA and dB; the returned pull gives dx through [`pull_back`].
    pub fn backward<'a>(
        &'a self,
        ctx: &Context<D>,
        dy: &'a D::Act,
        x: &D::Act,
        us: SavedLora<D>,
        rows: &Rows,
        gradient: &mut D::Real,
    ) -> Pull<'a, D> {
        let pull = self.pull(ctx, dy);
        pull.learn(ctx, x, us, rows, gradient);
        pull
    }

    /// What dx needs, without x.
    pub fn pull<'a>(&'a self, ctx: &Context<D>, dy: &'a D::Act) -> Pull<'a, D> {
        let du = self.slot(ctx).map(|slot| {
            let mut du = ctx.device.act(dy.rows(), slot.spec.rank);
            let term = Term { x: dy, w: ctx.b(slot, slot.spec.scale as f32), sum: Sum::OverRows };
            ctx.device.matmul(Out::Act(&mut du), &[term], None);
            du
        });
        Pull { map: self, dy, du }
    }
}

/// Maps of one input, each to its own output: those of A in one step, then all others.
pub fn forward<D: Device, const N: usize>(
    ctx: &Context<D>,
    x: &D::Act,
    rows: &Rows,
    maps: [(&Linear<D>, Out<D>); N],
) -> [SavedLora<D>; N] {
    // us = drop(x) (s A)^T, `[T, R]`
    let slots = maps.each_ref().map(|(map, _)| map.slot(ctx));
    let dropped = maps.each_ref().map(|(map, _)| map.slot(ctx).and_then(|_| map.dropped(ctx, x, rows)));
    let mut all_us = slots.map(|slot| slot.map(|slot| ctx.device.act(x.rows(), slot.spec.rank)));
    let mut products = Vec::new();
    for ((slot, us), dropped) in slots.iter().zip(&mut all_us).zip(&dropped) {
        if let (Some(slot), Some(us)) = (slot, us) {
            let (x, w) = (dropped.as_ref().unwrap_or(x), ctx.a(slot, slot.spec.scale as f32));
            products.push(Product { out: Out::Act(us), terms: vec![Term { x, w, sum: Sum::OverCols }], bias: None });
        }
    }
    ctx.device.matmuls(products);
    let mut products = Vec::new();
    for (((map, out), slot), us) in maps.into_iter().zip(slots).zip(&all_us) {
        let mut terms = vec![Term { x, w: Operand::Frozen(&map.weight), sum: Sum::OverCols }];
        if let (Some(slot), Some(us)) = (slot, us) {
            terms.push(Term { x: us, w: ctx.b(slot, 1.0), sum: Sum::OverCols });
        }
        products.push(Product { out, terms, bias: map.bias.as_ref() });
    }
    ctx.device.matmuls(products);
    all_us
}

/// dx of maps that share an input: sum of dy W + drop'(du A), summed in one product where nothing was dropped.
pub fn pull_back<D: Device>(ctx: &Context<D>, pulls: &[Pull<D>], rows: &Rows, inputs: usize) -> D::Real {
    let terms: Vec<_> = pulls.iter().flat_map(|pull| pull.terms(ctx)).collect();
    let mut dx = ctx.device.real(rows.len(), inputs);
    ctx.device.matmul(Out::Real(&mut dx), &terms, None);
    for pull in pulls {
        pull.add_dropped(ctx, rows, &mut dx);
    }
    dx
}

/// [`pull_back`] rounded once to the operand type.
pub fn pull_back_rounded<D: Device>(ctx: &Context<D>, pull: &Pull<D>, rows: &Rows, inputs: usize) -> D::Act {
    if ctx.noise_dropout().is_some() {
        return ctx.device.round(&pull_back(ctx, std::slice::from_ref(pull), rows, inputs));
    }
    let mut dx = ctx.device.act(rows.len(), inputs);
    ctx.device.matmul(Out::Act(&mut dx), &pull.terms(ctx), None);
    dx
}

impl<D: Device> Pull<'_, D> {
    /// Adds dA and dB, where there is a pair.
    pub fn learn(&self, ctx: &Context<D>, x: &D::Act, us: SavedLora<D>, rows: &Rows, gradient: &mut D::Real) {
        let (Some(slot), Some(us), Some(du)) = (self.map.slot(ctx), us, &self.du) else { return };
        let dropped = self.map.dropped(ctx, x, rows);
        ctx.device.lora_gradient(gradient, slot.at, (dropped.as_ref().unwrap_or(x), &us), (self.dy, du));
    }

    /// dy W, and du A where no dropout lies between A and the input.
    fn terms<'a>(&'a self, ctx: &'a Context<D>) -> Vec<Term<'a, D>> {
        let mut terms = vec![Term { x: self.dy, w: Operand::Frozen(&self.map.weight), sum: Sum::OverRows }];
        if let (Some(du), Some(slot), None) = (&self.du, self.map.slot(ctx), ctx.noise_dropout()) {
            terms.push(Term { x: du, w: ctx.a(slot, 1.0), sum: Sum::OverRows });
        }
        terms
    }

    /// dx += drop'(du A), where an input was dropped.
    fn add_dropped(&self, ctx: &Context<D>, rows: &Rows, dx: &mut D::Real) {
        let (Some(du), Some(slot), Some(keys)) = (&self.du, self.map.slot(ctx), self.map.keys(ctx, rows)) else {
            return;
        };
        let mut through = ctx.device.real(dx.rows(), dx.cols());
        let term = Term { x: du, w: ctx.a(slot, 1.0), sum: Sum::OverRows };
        ctx.device.matmul(Out::Real(&mut through), &[term], None);
        ctx.device.dropout_add(dx, &through, &keys, ctx.dropout());
    }
}
