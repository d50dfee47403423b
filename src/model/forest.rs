//! The token forest: what every pass of the model runs on.
//!
//! A forest is a set of token runs (*spans*), each continuing a parent span, or nothing, or the rows of a KV cache.
//! A token sees its ancestors and the earlier tokens of its own span; siblings share positions. Prompts with a common
//! beginning become one forest in which that beginning is computed once, forward and backward, and packed without
//! padding. Related: RadixAttention (SGLang), Hydragen, Prefix Grouper (arXiv 2506.05433).

use std::collections::HashMap;
use std::ops::Range;

/// A run of tokens of one forest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The span it continues; always an earlier one. A root continues nothing, or the cache.
    pub parent: Option<usize>,
    /// Its rows in the forest.
    pub rows: Range<usize>,
    /// Row after the last row of its last descendant: spans lie in preorder, so a subtree is one run of rows.
    pub subtree_end: usize,
    /// Position of its first token.
    pub start: usize,
    /// Whose tokens these are, for the keys of dropout; spans of different samples are never shared.
    pub sample: u64,
}

/// Token spans in preorder, the child with most tokens first, so that a dialogue's trunk is one run of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forest {
    tokens: Vec<u32>,
    spans: Vec<Span>,
    cached: usize,
}

impl Forest {
    /// One span: `tokens` after `cached` rows of a cache.
    pub fn chain(tokens: &[u32], cached: usize) -> Self {
        let span = Span { parent: None, rows: 0..tokens.len(), subtree_end: tokens.len(), start: cached, sample: 0 };
        let spans = if tokens.is_empty() { Vec::new() } else { vec![span] };
        Self { tokens: tokens.to_vec(), spans, cached }
    }

    /// The tokens of all rows.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
    /// The spans, parents before children.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }
    /// Rows of the KV cache that every root continues.
    pub fn cached(&self) -> usize {
        self.cached
    }
    /// Rows: tokens to compute.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }
    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
    /// One more than the largest position.
    pub fn depth(&self) -> usize {
        self.spans.iter().map(|span| span.start + span.rows.len()).max().unwrap_or(self.cached)
    }
    /// The position of every row.
    pub fn positions(&self) -> Vec<usize> {
        self.spans.iter().flat_map(|span| span.start..span.start + span.rows.len()).collect()
    }
    /// The key rows that every token of span `i` sees before its own span: `0..cached` is the cache, forest row `r` is
    /// key row `cached + r`. In path order, adjoining runs merged.
    pub fn ancestors(&self, i: usize) -> Vec<Range<u32>> {
        let mut path = Vec::new();
        let mut at = self.spans[i].parent;
        while let Some(span) = at {
            path.push(self.key_rows(&self.spans[span].rows));
            at = self.spans[span].parent;
        }
        path.push(0..self.cached as u32);
        path.reverse();
        path.retain(|run| !run.is_empty());
        path.dedup_by(|next, run| {
            next.start == run.end && {
                run.end = next.end;
                true
            }
        });
        path
    }
    /// Forest rows as key rows: after the cache.
    pub fn key_rows(&self, rows: &Range<usize>) -> Range<u32> {
        (self.cached + rows.start) as u32..(self.cached + rows.end) as u32
    }
}

/// Collects token sequences and shares their common beginnings.
#[derive(Default)]
pub struct Builder {
    nodes: Vec<Node>,
    /// (parent node or NONE, sample, token) -> node
    edges: HashMap<(usize, u64, u32), usize>,
    /// the node of every token of every sequence
    paths: Vec<Vec<u32>>,
    cached: usize,
}

struct Node {
    token: u32,
    sample: u64,
    parent: usize,
    children: Vec<usize>,
    /// nodes in its subtree, itself included
    size: usize,
}

const NONE: usize = usize::MAX;

impl Builder {
    /// A forest whose roots continue `cached` rows of a cache.
    pub fn new(cached: usize) -> Self {
        Self { cached, ..Self::default() }
    }

    /// Adds a sequence and returns its index. Sequences of the same `sample` share their common beginnings; give all
    /// the same number to share across samples, which is exact wherever no dropout is drawn.
    pub fn insert(&mut self, sample: u64, ids: &[u32]) -> usize {
        let mut at = NONE;
        let mut path = Vec::with_capacity(ids.len());
        for &token in ids {
            at = self.child(at, sample, token);
            path.push(at as u32);
        }
        self.paths.push(path);
        self.paths.len() - 1
    }

    fn child(&mut self, parent: usize, sample: u64, token: u32) -> usize {
        let new = self.nodes.len();
        let node = *self.edges.entry((parent, sample, token)).or_insert(new);
        if node == new {
            self.nodes.push(Node { token, sample, parent, children: Vec::new(), size: 1 });
            if parent != NONE {
                self.nodes[parent].children.push(new);
            }
        }
        node
    }

    /// Tokens so far: what the forest will cost.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }
    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The forest, and for every sequence the row of each of its tokens.
    pub fn build(mut self) -> (Forest, Vec<Vec<u32>>) {
        self.count_subtrees();
        let mut forest = Forest { cached: self.cached, ..Forest::default() };
        let mut row_of = vec![0u32; self.nodes.len()];
        let roots = (0..self.nodes.len()).filter(|&n| self.nodes[n].parent == NONE);
        // (node that begins a span, the span's parent); a stack, so the first to visit is pushed last
        let mut stack: Vec<(usize, Option<usize>)> = roots.map(|n| (n, None)).collect();
        stack.reverse();
        while let Some((node, parent)) = stack.pop() {
            let last = self.emit(&mut forest, &mut row_of, node, parent);
            let span = forest.spans.len() - 1;
            let mut children = self.nodes[last].children.clone();
            // a stable sort: equal sizes stay in the order of insertion
            children.sort_by_key(|&child| std::cmp::Reverse(self.nodes[child].size));
            stack.extend(children.into_iter().rev().map(|child| (child, Some(span))));
        }
        let rows = self.paths.iter().map(|path| path.iter().map(|&node| row_of[node as usize]).collect()).collect();
        (forest, rows)
    }

    fn count_subtrees(&mut self) {
        // children come after their parents, so one walk from the end adds every subtree once
        for node in (0..self.nodes.len()).rev() {
            let (parent, size) = (self.nodes[node].parent, self.nodes[node].size);
            if parent != NONE {
                self.nodes[parent].size += size;
            }
        }
    }

    /// Appends the unbranched run that begins at `node` as a span; returns its last node.
    fn emit(&self, forest: &mut Forest, row_of: &mut [u32], node: usize, parent: Option<usize>) -> usize {
        let first = forest.tokens.len();
        let mut last = node;
        loop {
            row_of[last] = forest.tokens.len() as u32;
            forest.tokens.push(self.nodes[last].token);
            match self.nodes[last].children[..] {
                [only] => last = only,
                _ => break,
            }
        }
        let start = match parent {
            Some(parent) => forest.spans[parent].start + forest.spans[parent].rows.len(),
            None => self.cached,
        };
        let rows = first..forest.tokens.len();
        let subtree_end = first + self.nodes[node].size;
        forest.spans.push(Span { parent, rows, subtree_end, start, sample: self.nodes[node].sample });
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forest(sequences: &[&[u32]]) -> (Forest, Vec<Vec<u32>>) {
        let mut builder = Builder::new(0);
        for ids in sequences {
            builder.insert(0, ids);
        }
        builder.build()
    }

    #[test]
    fn a_common_beginning_is_one_span() {
        let (forest, rows) = forest(&[&[1, 2, 3], &[1, 2, 4, 5]]);
        assert_eq!(forest.len(), 5);
        assert_eq!(forest.spans().len(), 3);
        assert_eq!(forest.tokens(), [1, 2, 4, 5, 3]); // the longer child first
        assert_eq!(rows, [vec![0, 1, 4], vec![0, 1, 2, 3]]);
        assert_eq!(forest.positions(), [0, 1, 2, 3, 2]);
    }

    #[test]
    fn every_path_spells_its_sequence() {
        let sequences: [&[u32]; 5] = [&[7, 7, 7], &[7, 7], &[7, 8, 9], &[1], &[7, 8, 9]];
        let (forest, rows) = forest(&sequences);
        for (ids, rows) in sequences.iter().zip(&rows) {
            let spelled: Vec<u32> = rows.iter().map(|&row| forest.tokens()[row as usize]).collect();
            assert_eq!(spelled, *ids);
        }
    }

    #[test]
    fn a_trunk_with_leaves_is_one_run_of_rows() {
        let (forest, rows) = forest(&[&[1, 2, 90], &[1, 2, 3, 4, 90], &[1, 2, 3, 4, 5, 6, 7, 90]]);
        assert_eq!(rows[2], [0, 1, 2, 3, 4, 5, 6, 7]);
        let leaf = forest.spans().iter().position(|span| span.rows.contains(&(rows[1][4] as usize))).unwrap();
        assert_eq!(forest.ancestors(leaf), vec![0..4]);
    }

    #[test]
    fn samples_share_nothing_with_each_other() {
        let mut builder = Builder::new(0);
        builder.insert(1, &[5, 6]);
        builder.insert(2, &[5, 6]);
        assert_eq!(builder.build().0.len(), 4);
    }

    #[test]
    fn a_subtree_is_one_run_of_rows() {
        let (forest, _) = forest(&[&[1, 2, 3], &[1, 2, 4], &[1, 5], &[6]]);
        for (i, span) in forest.spans().iter().enumerate() {
            for (j, other) in forest.spans().iter().enumerate() {
                let mut up = Some(j);
                while up.is_some_and(|up| up != i) {
                    up = forest.spans()[up.unwrap()].parent;
                }
                let inside = span.rows.start <= other.rows.start && other.rows.end <= span.subtree_end;
                assert_eq!(inside, up == Some(i));
            }
        }
    }

    #[test]
    fn roots_continue_the_cache() {
        let forest = Forest::chain(&[3, 4], 10);
        assert_eq!(forest.positions(), [10, 11]);
        assert_eq!(forest.ancestors(0), vec![0..10]);
        assert_eq!(forest.depth(), 12);
    }
}
