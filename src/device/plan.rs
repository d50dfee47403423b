//! Who sees whom: attention's view of a forest, as runs of rows.

use dialoguellm_kernels::attention::{Block, KeyBlock};
use std::ops::Range;

/// Consecutive queries of one span.
#[derive(Clone, Debug)]
pub struct QueryRun {
    /// Their indices among the queries.
    pub queries: Range<usize>,
    /// The span's first key row.
    pub own: u32,
    /// The span's ancestors, in [`Plan::ancestors`].
    pub ancestors: Range<usize>,
}

/// Consecutive keys of one span and the queries that see them, for backward.
#[derive(Clone, Debug)]
pub struct KeyRun {
    /// Key rows.
    pub keys: Range<u32>,
    /// Queries of the same span: they see keys up to their own row.
    pub causal: Range<u32>,
    /// Queries of descendants: they see all.
    pub whole: Range<u32>,
}

/// The attention of one pass: every query's visible keys, and every key's queries. Runs are short enough to be one
/// thread's task, and cut without regard to the number of threads.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Key rows there are: cached ones first.
    pub keys: usize,
    /// Each query's own key row, rising.
    pub rows: Vec<u32>,
    /// Key rows seen whole, pointed into by the runs.
    pub ancestors: Vec<Range<u32>>,
    /// All queries, in order.
    pub query_runs: Vec<QueryRun>,
    /// All keys that are not cached, in order.
    pub key_runs: Vec<KeyRun>,
}

impl Plan {
    /// A query run as the kernel takes it.
    pub fn block(&self, run: &QueryRun) -> Block<'_> {
        Block { ancestors: &self.ancestors[run.ancestors.clone()], own: run.own, rows: &self.rows[run.queries.clone()] }
    }
    /// A key run as the kernel takes it.
    pub fn key_block(&self, run: &KeyRun) -> KeyBlock<'_> {
        KeyBlock { keys: run.keys.clone(), causal: run.causal.clone(), whole: run.whole.clone(), rows: &self.rows }
    }
}
