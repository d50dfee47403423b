//! Where steps lie in epochs, of which the first may be shorter than the rest: groups may wait for a later one.

use super::data::Group;

/// Steps of every epoch.
pub(crate) struct Epochs {
    /// Of the first ones; all later ones are as long as the last of these.
    lengths: Vec<u64>,
}

impl Epochs {
    /// Of groups that are taken `batch` at a time, each from the epoch on that its `stage` says.
    pub fn new(groups: &[Group], batch: usize) -> Self {
        let last = groups.iter().map(|group| group.stage).max().unwrap_or(0);
        let mut new = vec![0usize; last as usize + 1];
        groups.iter().for_each(|group| new[group.stage as usize] += 1);
        let so_far = new.iter().scan(0, |taken, new| {
            *taken += new;
            Some(*taken)
        });
        Self { lengths: so_far.map(|taken: usize| taken.div_ceil(batch) as u64).collect() }
    }

    /// The epoch of step `step` and its number there, all counted from 0.
    pub fn of(&self, step: u64) -> (u64, u64) {
        let (mut epoch, mut rest) = (0, step);
        for &length in &self.lengths[..self.lengths.len() - 1] {
            if rest < length {
                return (epoch, rest);
            }
            (epoch, rest) = (epoch + 1, rest - length);
        }
        let length = self.lengths[self.lengths.len() - 1];
        (epoch + rest / length, rest % length)
    }

    /// Steps of the first `epochs`.
    pub fn steps(&self, epochs: u64) -> u64 {
        let known = usize::try_from(epochs).unwrap_or(usize::MAX).min(self.lengths.len());
        let later = (epochs - known as u64).saturating_mul(self.lengths[self.lengths.len() - 1]);
        self.lengths[..known].iter().sum::<u64>().saturating_add(later)
    }
}

#[cfg(test)]
mod tests {
    use super::super::data::Prompt;
    use super::*;

    fn epochs(stages: &[u32]) -> Epochs {
        let prompt = Prompt { ids: vec![1, 2], answer: 1..2, weight: 1.0, choice: None };
        let group = |&stage: &u32| Group { sample: 0, stage, prompts: vec![prompt.clone()] };
        Epochs::new(&stages.iter().map(group).collect::<Vec<_>>(), 2)
    }

    #[test]
    fn without_stages_all_epochs_are_alike() {
        let epochs = epochs(&[0; 5]);
        assert_eq!([0, 2, 3, 7].map(|step| epochs.of(step)), [(0, 0), (0, 2), (1, 0), (2, 1)]);
        assert_eq!([0, 1, 4].map(|n| epochs.steps(n)), [0, 3, 12]);
        assert_eq!(epochs.steps(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_group_waits_for_its_epoch() {
        // 3 groups, then 4, then 7: 2, 2 and 4 steps
        let epochs = epochs(&[0, 2, 1, 0, 2, 0, 2]);
        assert_eq!(
            [1, 2, 3, 4, 7, 8, 12].map(|step| epochs.of(step)),
            [(0, 1), (1, 0), (1, 1), (2, 0), (2, 3), (3, 0), (4, 0)]
        );
        assert_eq!([1, 2, 3, 4].map(|n| epochs.steps(n)), [2, 4, 8, 12]);
    }
}
