//! What one pass carries through the layers: the device, the adapter, the randomness, and who sees whom.

use super::engine::Noise;
use super::lora::Slot;
use super::{Adapter, Forest};
use crate::Cancel;
use crate::device::{Device, KeyRun, Operand, Plan, QueryRun};
use dialoguellm_kernels::dropout;
use std::ops::Range;

/// Borrowed by every layer of a pass.
pub struct Context<'a, D: Device> {
    /// Who computes.
    pub device: &'a D,
    /// LoRA pairs, if any.
    pub adapter: Option<&'a Adapter>,
    /// Their values, seen by the device.
    pub params: Option<D::Params>,
    /// A training step's randomness.
    pub noise: Option<Noise>,
    /// Asked once a layer.
    pub cancel: &'a Cancel,
}

impl<D: Device> Context<'_, D> {
    /// The pair's A times `scale`, `[rank, inputs]`.
    pub fn a(&self, slot: &Slot, scale: f32) -> Operand<'_, D> {
        self.operand(slot.at.a, slot.at.rank, slot.at.inputs, scale)
    }
    /// The pair's B times `scale`, `[outputs, rank]`.
    pub fn b(&self, slot: &Slot, scale: f32) -> Operand<'_, D> {
        self.operand(slot.at.b, slot.at.outputs, slot.at.rank, scale)
    }
    fn operand(&self, at: usize, rows: usize, cols: usize, scale: f32) -> Operand<'_, D> {
        let params = self.params.as_ref().expect("slots come from an adapter, whose values are seen");
        Operand::Lora { params, at, rows, cols, scale }
    }
    /// The probability of dropping a LoRA input, if any.
    pub fn noise_dropout(&self) -> Option<f32> {
        self.noise.map(|noise| noise.dropout).filter(|&p| p > 0.0)
    }
    /// The probability of dropping a LoRA input; 0 for none.
    pub fn dropout(&self) -> f32 {
        self.noise_dropout().unwrap_or(0.0)
    }
    /// The mask key of every row for `module`, where anything is dropped.
    pub fn keys(&self, module: u64, rows: &Rows) -> Option<Vec<u64>> {
        let noise = self.noise.filter(|noise| noise.dropout > 0.0)?;
        Some(rows.keys(&noise, module))
    }
}

/// Which sample and position each row of a tensor belongs to.
#[derive(Clone)]
pub struct Rows(Vec<(u64, u32)>);

impl Rows {
    /// All rows of a forest.
    pub fn of(forest: &Forest) -> Self {
        let rows = forest
            .spans()
            .iter()
            .flat_map(|span| (span.start..span.start + span.rows.len()).map(|position| (span.sample, position as u32)));
        Self(rows.collect())
    }
    /// Chosen ones.
    pub fn select(&self, rows: &[u32]) -> Self {
        Self(rows.iter().map(|&row| self.0[row as usize]).collect())
    }
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Keys of the counter-based generator: the same token gets the same mask however the forest is packed.
    pub fn keys(&self, noise: &Noise, module: u64) -> Vec<u64> {
        let key =
            |&(sample, position): &(u64, u32)| dropout::key(noise.seed, noise.step, module, sample, position as u64);
        self.0.iter().map(key).collect()
    }
}

/// Queries per task: enough to fill a tile, few enough that a short forest still feeds every thread.
const QUERIES: usize = 32;
/// Keys per task of backward.
const KEYS: usize = 64;

/// The attention plan of a forest whose queries are all rows, or `select`ed ones, which rise.
pub fn plan(forest: &Forest, select: Option<&[u32]>) -> Plan {
    let all: Vec<u32>;
    let selected = match select {
        Some(rows) => rows,
        None => {
            all = (0..forest.len() as u32).collect();
            &all
        }
    };
    let cached = forest.cached() as u32;
    let mut plan = Plan {
        keys: forest.cached() + forest.len(),
        rows: selected.iter().map(|row| cached + row).collect(),
        ..Plan::default()
    };
    let queries_in = |rows: Range<usize>| {
        let at = |row: usize| selected.partition_point(|&selected| (selected as usize) < row);
        at(rows.start)..at(rows.end)
    };
    for (i, span) in forest.spans().iter().enumerate() {
        let first = plan.ancestors.len();
        plan.ancestors.extend(forest.ancestors(i));
        let (own, ancestors) = (cached + span.rows.start as u32, first..plan.ancestors.len());
        for queries in cut(queries_in(span.rows.clone()), QUERIES) {
            plan.query_runs.push(QueryRun { queries, own, ancestors: ancestors.clone() });
        }
        let whole = queries_in(span.rows.end..span.subtree_end);
        for keys in cut(span.rows.clone(), KEYS) {
            let causal = queries_in(keys.start..span.rows.end);
            plan.key_runs.push(KeyRun {
                keys: forest.key_rows(&keys),
                causal: causal.start as u32..causal.end as u32,
                whole: whole.start as u32..whole.end as u32,
            });
        }
    }
    plan
}

fn cut(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    (range.start..range.end).step_by(size).map(move |at| at..range.end.min(at + size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Builder;
    use proptest::prelude::*;

    /// Visibility straight from the definition: a row's path to its root.
    fn sees(forest: &Forest, query: usize, key: usize) -> bool {
        let span_of = |row: usize| forest.spans().iter().position(|span| span.rows.contains(&row)).unwrap();
        let (mut span, key_span) = (Some(span_of(query)), span_of(key));
        if span == Some(key_span) {
            return key <= query;
        }
        while span.is_some_and(|span| span != key_span) {
            span = forest.spans()[span.unwrap()].parent;
        }
        span.is_some()
    }

    proptest! {
        #[test]
        fn queries_see_their_paths_and_keys_are_seen_by_the_same(
            sequences in prop::collection::vec(prop::collection::vec(0u32..3, 1..90), 1..8),
            every in 1usize..5,
        ) {
            let mut builder = Builder::new(0);
            for ids in &sequences {
                builder.insert(0, ids);
            }
            let (forest, _) = builder.build();
            let selected: Vec<u32> = (0..forest.len() as u32).step_by(every).collect();
            let plan = plan(&forest, Some(&selected));
            let mut seen = vec![vec![false; forest.len()]; selected.len()];
            for run in &plan.query_runs {
                let block = plan.block(run);
                for (query, &row) in run.queries.clone().zip(block.rows) {
                    let keys = block.ancestors.iter().cloned().flatten().chain(block.own..row + 1);
                    keys.for_each(|key| seen[query][key as usize] = true);
                }
            }
            for (query, &row) in selected.iter().enumerate() {
                let expected: Vec<bool> = (0..forest.len()).map(|key| sees(&forest, row as usize, key)).collect();
                prop_assert_eq!(&seen[query], &expected);
            }
            let mut seen_by = vec![vec![false; forest.len()]; selected.len()];
            for run in &plan.key_runs {
                for key in run.keys.clone() {
                    run.causal.clone().filter(|&q| key <= selected[q as usize]).for_each(|q| seen_by[q as usize][key as usize] = true);
                    run.whole.clone().for_each(|q| seen_by[q as usize][key as usize] = true);
                }
            }
            prop_assert_eq!(seen, seen_by);
        }
    }
}
