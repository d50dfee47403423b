//! What is trained on: token sequences, which of their positions carry loss, and which belong together.
//!
//! Checked once, when a trainer is made, so that the maths behind it has no error of its own. Sequences are named by
//! numbers only: their content may be anyone's conversation.

use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::ops::Range;

/// One candidate answer of a multiple-choice question.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Which question of the group.
    pub question: u32,
    /// Whether it is the right one.
    pub gold: bool,
    /// What is added to its score while learning.
    pub bias: f32,
}

/// One linear prompt with its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// The whole sequence, tokenised as one text.
    pub ids: Vec<u32>,
    /// The positions of `ids` that carry loss. Position 0 never does: nothing predicts it. Empty where cutting for
    /// length left nothing of the answer; such a prompt is not computed.
    pub answer: Range<usize>,
    /// What its loss is multiplied by: a class weight, a sample weight, or their product. 0 leaves it out.
    pub weight: f32,
    /// Its place in a question, for [`Loss::Choice`](super::Loss::Choice).
    pub choice: Option<Choice>,
}

/// Prompts that are always computed in the same pass: one prompt, all candidates of a question, or a whole dialogue.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// A number of its own, on which dropout masks depend.
    pub sample: u64,
    /// The first epoch that trains on it, counted from 0: some group has 0, and none as many as there are groups.
    pub stage: u32,
    /// At least one.
    pub prompts: Vec<Prompt>,
}

/// Checks every prompt against the model: `vocabulary` tokens, `context` positions.
///
/// # Errors
/// InvalidArgument naming the group, its sample and the prompt.
pub fn check(groups: &[Group], vocabulary: usize, context: usize) -> Result<()> {
    if groups.is_empty() {
        return Err(Error::invalid("there is nothing to train on: no group of prompts was given"));
    }
    let stages = groups.iter().map(|group| group.stage as usize);
    if let Some(first @ 1..) = stages.clone().min() {
        let text = format!("the first group is trained on in epoch {first}, counted from 0: epoch 0 is empty");
        return Err(Error::invalid(text));
    }
    if let Some(last) = stages.max().filter(|&last| last >= groups.len()) {
        let text =
            format!("a group waits for epoch {last}, counted from 0; {} groups need no more epochs", groups.len());
        return Err(Error::invalid(text));
    }
    for (g, group) in groups.iter().enumerate() {
        if group.prompts.is_empty() {
            return Err(Error::invalid(format!("group {g} (sample {}) has no prompt", group.sample)));
        }
        for (p, prompt) in group.prompts.iter().enumerate() {
            let place = || format!("group {g} (sample {}), prompt {p}", group.sample);
            check_prompt(prompt, vocabulary, context).map_err(|e| e.at(place()))?;
        }
    }
    Ok(())
}

fn check_prompt(prompt: &Prompt, vocabulary: usize, context: usize) -> Result<()> {
    let (n, answer) = (prompt.ids.len(), &prompt.answer);
    if n == 0 {
        return Err(Error::invalid("it has no token"));
    }
    if n > context {
        return Err(Error::invalid(format!("it has {n} tokens, the model's context holds {context}: shorten it")));
    }
    if let Some(at) = prompt.ids.iter().position(|&id| id as usize >= vocabulary) {
        let id = prompt.ids[at];
        return Err(Error::invalid(format!("token {at} is {id}, the model's vocabulary ends before {vocabulary}")));
    }
    if answer.start == 0 || answer.start > answer.end || answer.end > n {
        return Err(Error::invalid(format!(
            "its answer is positions {}..{} of {n} tokens; it must begin at 1 or later and end within them",
            answer.start, answer.end
        )));
    }
    if !(prompt.weight.is_finite() && prompt.weight >= 0.0) {
        return Err(Error::invalid(format!("its weight is {}, must be a number of 0 or more", prompt.weight)));
    }
    if let Some(bias) = prompt.choice.map(|choice| choice.bias).filter(|bias| !bias.is_finite()) {
        return Err(Error::invalid(format!("its bias is {bias}, must be a finite number")));
    }
    Ok(())
}

/// SHA-256 over everything in `groups`, in order: two runs with the same digest train on the same data.
pub fn digest(groups: &[Group]) -> String {
    let mut hash = Sha256::new();
    hash.update((groups.len() as u64).to_le_bytes());
    for group in groups {
        hash.update(group.sample.to_le_bytes());
        // a stage of 0 leaves the digest of checkpoints that know none
        hash.update((group.prompts.len() as u64 + (u64::from(group.stage) << 32)).to_le_bytes());
        group.prompts.iter().for_each(|prompt| digest_prompt(&mut hash, prompt));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lengths go before what they count, so that no two lists of groups give the same bytes.
fn digest_prompt(hash: &mut Sha256, prompt: &Prompt) {
    hash.update((prompt.ids.len() as u64).to_le_bytes());
    prompt.ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    hash.update((prompt.answer.start as u64).to_le_bytes());
    hash.update((prompt.answer.end as u64).to_le_bytes());
    hash.update(prompt.weight.to_bits().to_le_bytes());
    // a bias of 0 leaves the digest of checkpoints that know none
    let bias = prompt.choice.map(|choice| choice.bias).filter(|&bias| bias != 0.0);
    let flags =
        |c: Choice| 1 + 2 * u64::from(c.question) + (u64::from(c.gold) << 40) + (u64::from(bias.is_some()) << 41);
    hash.update(prompt.choice.map_or(0, flags).to_le_bytes());
    bias.into_iter().for_each(|bias| hash.update(bias.to_bits().to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt() -> Prompt {
        Prompt { ids: vec![1, 2, 3], answer: 2..3, weight: 1.0, choice: None }
    }

    fn group(stage: u32) -> Group {
        Group { sample: 0, stage, prompts: vec![prompt()] }
    }

    fn refusal(change: impl FnOnce(&mut Prompt)) -> String {
        let mut bad = prompt();
        change(&mut bad);
        let groups = [Group { sample: 7, stage: 0, prompts: vec![prompt(), bad] }];
        check(&groups, 10, 4).unwrap_err().to_string()
    }

    #[test]
    fn a_good_group_passes() {
        assert_eq!(check(&[group(0)], 4, 3), Ok(()));
    }

    #[test]
    fn every_refusal_names_the_place_and_both_values() {
        let place = "group 0 (sample 7), prompt 1: ";
        assert_eq!(refusal(|p| p.ids.clear()), format!("{place}it has no token"));
        assert_eq!(
            refusal(|p| p.ids = vec![1; 5]),
            format!("{place}it has 5 tokens, the model's context holds 4: shorten it")
        );
        assert_eq!(refusal(|p| p.ids[1] = 10), format!("{place}token 1 is 10, the model's vocabulary ends before 10"));
        assert!(refusal(|p| p.answer = 0..2).contains("positions 0..2 of 3 tokens"));
        assert!(refusal(|p| p.answer = 2..4).contains("positions 2..4 of 3 tokens"));
        assert!(refusal(|p| p.weight = f32::NAN).contains("its weight is NaN"));
        assert!(refusal(|p| p.weight = -1.0).contains("its weight is -1"));
        let bias = f32::INFINITY;
        assert!(refusal(|p| p.choice = Some(Choice { question: 0, gold: true, bias })).contains("its bias is inf"));
    }

    #[test]
    fn nothing_to_train_on_is_refused() {
        assert!(check(&[], 10, 4).is_err());
        assert!(check(&[Group { prompts: vec![], ..group(0) }], 10, 4).is_err());
        let says = |groups: &[Group]| check(groups, 10, 4).unwrap_err().to_string();
        assert!(says(&[group(3), group(2)]).contains("the first group is trained on in epoch 2"));
        assert!(says(&[group(0), group(2)]).contains("a group waits for epoch 2, counted from 0; 2 groups"));
        assert_eq!(check(&[group(0), group(1)], 10, 4), Ok(()));
    }

    #[test]
    fn the_digest_sees_every_field() {
        let groups = |change: &dyn Fn(&mut Group)| {
            let mut group = Group { sample: 1, ..group(0) };
            change(&mut group);
            digest(&[group])
        };
        let changes: [&dyn Fn(&mut Group); 10] = [
            &|_| {},
            &|g| g.sample = 2,
            &|g| g.stage = 1,
            &|g| g.prompts.push(prompt()),
            &|g| g.prompts[0].ids[2] = 4,
            &|g| g.prompts[0].answer = 1..3,
            &|g| g.prompts[0].weight = 2.0,
            &|g| g.prompts[0].choice = Some(Choice { question: 0, gold: false, bias: 0.0 }),
            &|g| g.prompts[0].choice = Some(Choice { question: 0, gold: true, bias: 0.0 }),
            &|g| g.prompts[0].choice = Some(Choice { question: 0, gold: true, bias: 1.0 }),
        ];
        let digests: std::collections::BTreeSet<String> = changes.iter().map(|change| groups(change)).collect();
        assert_eq!(digests.len(), changes.len());
        assert_eq!(groups(&|_| {}), groups(&|_| {}));
    }
}
