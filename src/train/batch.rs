//! Groups to a forest with targets: one micro-batch.
//!
//! Prompts are inserted up to the last token that predicts something, so a one-token label costs no row at all.
//! Without randomness prompts share their beginnings across the whole micro-batch; with dropout or noise only inside a
//! group, because a mask belongs to a sample. How a step is cut into micro-batches changes its result by rounding only.

use super::data::{Group, Prompt};
use super::loss::{Loss, Objective, Question, Shape, questions};
use crate::model::engine::Target;
use crate::model::{Builder, Forest};
use std::collections::HashMap;
use std::ops::Range;

/// How prompts are laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub loss: Loss,
    /// Of the choice loss.
    pub shape: Shape,
    /// Whether samples may share rows with each other.
    pub shared: bool,
}

/// One micro-batch, ready for the engine.
#[derive(Debug)]
pub(crate) struct Batch {
    pub forest: Forest,
    pub targets: Vec<Target>,
    pub objective: Objective,
    /// For every prompt, the row of each of its tokens.
    pub rows: Vec<Vec<u32>>,
}

impl Layout {
    /// The tokens of a prompt that must be computed: all before its last target.
    pub fn computed(self, prompt: &Prompt) -> &[u32] {
        let positions = self.loss.positions(prompt);
        if positions.is_empty() { &[] } else { &prompt.ids[..positions.end - 1] }
    }

    fn insert(self, builder: &mut Builder, group: &Group) {
        let sample = if self.shared { 0 } else { group.sample };
        group.prompts.iter().for_each(|prompt| {
            builder.insert(sample, self.computed(prompt));
        });
    }

    /// Cuts a step's groups into runs whose forests hold at most `budget` tokens each; a larger group runs alone.
    pub fn cut(self, groups: &[&Group], budget: usize) -> Vec<Range<usize>> {
        let (mut cuts, mut start) = (Vec::new(), 0);
        let mut builder = Builder::new(0);
        for (g, group) in groups.iter().enumerate() {
            self.insert(&mut builder, group);
            if builder.len() > budget && g > start {
                cuts.push(start..g);
                start = g;
                builder = Builder::new(0);
                self.insert(&mut builder, group);
            }
        }
        cuts.push(start..groups.len());
        cuts
    }

    /// The forest and the questions to it.
    pub fn batch(self, groups: &[&Group]) -> Batch {
        let (forest, rows) = self.forest(groups);
        let mut targets = Targets::default();
        let objective = match self.loss {
            Loss::Choice => self.choices(groups, &rows, &mut targets),
            Loss::Answer | Loss::Sequence => self.tokens(groups, &rows, &mut targets),
        };
        Batch { forest, targets: targets.list, objective, rows }
    }

    /// The forest, and for every prompt the row of each of its tokens.
    pub fn forest(self, groups: &[&Group]) -> (Forest, Vec<Vec<u32>>) {
        let mut builder = Builder::new(0);
        groups.iter().for_each(|group| self.insert(&mut builder, group));
        builder.build()
    }

    fn tokens(self, groups: &[&Group], rows: &[Vec<u32>], targets: &mut Targets) -> Objective {
        let mut weights = Vec::new();
        let prompts = groups.iter().flat_map(|group| &group.prompts);
        for (prompt, rows) in prompts.zip(rows) {
            for target in self.targets(prompt, rows) {
                let t = targets.index(target);
                weights.resize(targets.list.len(), 0.0);
                weights[t] += f64::from(prompt.weight);
            }
        }
        Objective::Tokens(weights)
    }

    fn choices(self, groups: &[&Group], rows: &[Vec<u32>], targets: &mut Targets) -> Objective {
        let (mut all, mut first) = (Vec::new(), 0);
        for group in groups {
            for prompts in questions(group).into_values() {
                let mut list = |&p: &usize| -> Vec<usize> {
                    let asked = self.targets(&group.prompts[p], &rows[first + p]);
                    asked.map(|target| targets.index(target)).collect()
                };
                let candidates = prompts.iter().map(&mut list).collect();
                let is_gold = |&p: &usize| group.prompts[p].choice.is_some_and(|c| c.gold);
                let bias = |&p: &usize| group.prompts[p].choice.map_or(0.0, |c| f64::from(c.bias));
                let bias = prompts.iter().map(bias).collect();
                let gold = prompts.iter().position(is_gold).unwrap_or(0); // `Loss::check` saw exactly one
                let weight = f64::from(group.prompts[prompts[gold]].weight);
                all.push(Question { candidates, bias, gold, weight });
            }
            first += group.prompts.len();
        }
        Objective::Choices(all, self.shape)
    }

    /// The target of position i is asked of the row of position i - 1.
    fn targets(self, prompt: &Prompt, rows: &[u32]) -> impl Iterator<Item = Target> {
        self.loss.positions(prompt).map(|i| Target { row: rows[i - 1], token: prompt.ids[i] })
    }
}

/// Targets without repetition, in order of their first use.
#[derive(Default)]
struct Targets {
    list: Vec<Target>,
    known: HashMap<Target, usize>,
}

impl Targets {
    fn index(&mut self, target: Target) -> usize {
        let new = self.list.len();
        let t = *self.known.entry(target).or_insert(new);
        if t == new {
            self.list.push(target);
        }
        t
    }
}

#[cfg(test)]
mod tests {
    use super::super::data::Choice;
    use super::*;

    const SHARED: Layout = Layout { loss: Loss::Answer, shape: Shape { smoothing: 0.0, focal: 0.0 }, shared: true };

    fn prompt(ids: &[u32], answer: Range<usize>) -> Prompt {
        Prompt { ids: ids.to_vec(), answer, weight: 1.0, choice: None }
    }

    fn group(sample: u64, prompts: Vec<Prompt>) -> Group {
        Group { sample, stage: 0, prompts }
    }

    #[test]
    fn a_one_token_label_costs_no_row() {
        let group = group(0, vec![prompt(&[1, 2, 3, 9], 3..4)]);
        let batch = SHARED.batch(&[&group]);
        assert_eq!(batch.forest.tokens(), [1, 2, 3]);
        assert_eq!(batch.targets, [Target { row: 2, token: 9 }]);
    }

    #[test]
    fn a_forks_row_has_one_target_per_label_and_a_shared_target_the_sum_of_weights() {
        let labels = [9, 8, 9].map(|label| prompt(&[1, 2, label], 2..3));
        let batch = SHARED.batch(&[&group(0, labels.to_vec())]);
        assert_eq!(batch.forest.tokens(), [1, 2]);
        assert_eq!(batch.targets, [Target { row: 1, token: 9 }, Target { row: 1, token: 8 }]);
        assert_eq!(batch.objective, Objective::Tokens(vec![2.0, 1.0]));
    }

    #[test]
    fn tokens_after_the_answer_are_not_computed() {
        let batch = SHARED.batch(&[&group(0, vec![prompt(&[1, 2, 3, 4, 5], 1..3)])]);
        assert_eq!(batch.forest.tokens(), [1, 2]);
        assert_eq!(batch.targets, [Target { row: 0, token: 2 }, Target { row: 1, token: 3 }]);
    }

    #[test]
    fn a_prompt_without_targets_costs_nothing() {
        let silent = Prompt { weight: 0.0, ..prompt(&[5, 6, 7], 1..3) };
        let batch = SHARED.batch(&[&group(0, vec![prompt(&[1, 2], 2..2), silent])]);
        assert!(batch.forest.is_empty() && batch.targets.is_empty());
    }

    #[test]
    fn samples_share_rows_only_without_randomness() {
        let groups = [1, 2].map(|sample| group(sample, vec![prompt(&[1, 2, 3], 2..3), prompt(&[1, 2, 4], 2..3)]));
        let groups = [&groups[0], &groups[1]];
        assert_eq!(SHARED.batch(&groups).forest.len(), 2);
        assert_eq!(Layout { shared: false, ..SHARED }.batch(&groups).forest.len(), 4);
    }

    #[test]
    fn candidates_are_lists_of_targets() {
        let candidate =
            |ids: &[u32], gold| Prompt { choice: Some(Choice { question: 0, gold, bias: 0.5 }), ..prompt(ids, 2..4) };
        let group = group(0, vec![candidate(&[1, 2, 3, 4], false), candidate(&[1, 2, 3, 5], true)]);
        let batch = Layout { loss: Loss::Choice, ..SHARED }.batch(&[&group]);
        let question = Question { candidates: vec![vec![0, 1], vec![0, 2]], bias: vec![0.5; 2], gold: 1, weight: 1.0 };
        assert_eq!(batch.objective, Objective::Choices(vec![question], Shape::default()));
        assert_eq!(batch.targets[1..], [Target { row: 2, token: 4 }, Target { row: 2, token: 5 }]);
    }

    #[test]
    fn cuts_keep_the_budget_and_lose_no_group() {
        let groups: Vec<Group> = (0..7u32).map(|g| group(0, vec![prompt(&[1, 10 + g, 20, 30], 3..4)])).collect();
        let groups: Vec<&Group> = groups.iter().collect();
        for budget in 1..20 {
            let cuts = SHARED.cut(&groups, budget);
            let covered: Vec<usize> = cuts.iter().cloned().flatten().collect();
            assert_eq!(covered, (0..7).collect::<Vec<_>>());
            for cut in cuts {
                assert!(cut.len() == 1 || SHARED.batch(&groups[cut]).forest.len() <= budget);
            }
        }
        assert_eq!(SHARED.cut(&groups, 5), [0..2, 2..4, 4..6, 6..7]); // 1 shared token and 2 of its own each
    }
}
