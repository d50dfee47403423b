//! A conversation as it happens: turn by turn, with what was said in the KV cache.
//!
//! What is asked depends on the turns held and on nothing else; the cache only saves work. So after a rollback, a
//! restart, a dropped turn or a failed call the probabilities are those of a fresh conversation with the same turns.

use super::classifier::{Classifier, check_finite};
use super::prompts::Question;
use crate::conversation::{Conversation, Leaf, Options};
use crate::files::dialogues::{Dialogue, Turn};
use crate::{Code, Error, Result};
use serde_json::{Value, json};
use std::sync::Arc;

/// The format of a saved conversation.
const FORMAT: u64 = 1;

/// A conversation that is listened to. Used by one thread at a time.
pub struct Live {
    classifier: Arc<Classifier>,
    conversation: Conversation,
    turns: Vec<Turn>,
    dropped: usize,
}

/// What listening to a turn took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Tokens computed: those of the turn, or all that remain where the oldest turns had to go.
    pub computed: usize,
    /// Oldest turns dropped because the context was full.
    pub dropped: usize,
}

/// Where the question about the last turn begins.
struct Asked {
    question: Question,
    trunk: usize,
}

impl Live {
    /// A conversation in which nothing was said.
    pub fn new(classifier: Arc<Classifier>, options: Options) -> Self {
        let conversation = Conversation::new(classifier.model().clone(), classifier.adapter().cloned(), options);
        Self { classifier, conversation, turns: Vec::new(), dropped: 0 }
    }

    /// The turns held, oldest first.
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }
    /// Turns dropped so far.
    pub fn dropped(&self) -> usize {
        self.dropped
    }
    /// Tokens in the cache.
    pub fn tokens(&self) -> usize {
        self.conversation.len()
    }
    /// What reads it.
    pub fn classifier(&self) -> &Arc<Classifier> {
        &self.classifier
    }

    /// Listens to a turn: computes its tokens. A full context drops oldest turns until a quarter of it is free, so that
    /// not every further turn has to.
    ///
    /// # Errors
    /// CONTEXT_FULL for a turn that does not fit alone; CANCELLED; what the engine refuses. The turns are then as before.
    pub fn push(&mut self, turn: Turn) -> Result<Heard> {
        self.turns.push(turn);
        let heard = self.sync();
        if heard.is_err() {
            self.turns.pop();
        }
        heard
    }

    /// Listens to a turn that can be seen: where the template shows what is seen and the turn does not say it, `describe`
    /// is asked, and its answer is kept in the turn. So it is asked once a turn at most, and not after a restore.
    ///
    /// # Errors
    /// What `describe` says, the turns then as before; as [`Live::push`].
    pub fn push_seen(
        &mut self,
        mut turn: Turn,
        describe: impl FnOnce(&Turn) -> Result<Option<String>>,
    ) -> Result<Heard> {
        if turn.visual.as_ref().is_none_or(String::is_empty) && self.classifier.card().template.shows_visual() {
            turn.visual = describe(&turn)?;
        }
        self.push(turn)
    }

    /// The probabilities of the last turn's labels: costs the question.
    ///
    /// # Errors
    /// INVALID_ARGUMENT where nothing was said; CANCELLED; NUMERIC; what the engine refuses.
    pub fn ask(&mut self) -> Result<Vec<f32>> {
        if self.turns.is_empty() {
            return Err(Error::invalid("nothing was said yet: there is no turn to ask about"));
        }
        // after a rollback or a failed call the cache may hold something else
        self.sync()?;
        let Asked { question, trunk } = self.asked(&self.turns)?;
        let from = question.prompt.len() - trunk;
        let leaves: Vec<Vec<u32>> =
            question.answers.iter().map(|answer| [&question.prompt[trunk..], answer].concat()).collect();
        let leaves: Vec<Leaf> = leaves.iter().map(|ids| Leaf { ids, from }).collect();
        let scores: Vec<f32> =
            self.conversation.scores_after(&leaves)?.iter().map(|score| score.total as f32).collect();
        check_finite(&scores)?;
        Ok(self.classifier.probabilities(&scores))
    }

    /// Listens to a turn and asks about it.
    ///
    /// # Errors
    /// As [`Live::push`] and [`Live::ask`]; after an error in asking the turn is kept.
    pub fn add_turn(&mut self, speaker: &str, text: &str) -> Result<(Vec<f32>, Heard)> {
        let heard = self.push(Turn { speaker: speaker.into(), text: text.into(), ..Turn::default() })?;
        Ok((self.ask()?, heard))
    }

    /// Takes back the last `turns`; nothing is computed. Errors: INVALID_ARGUMENT for more than are held.
    pub fn rollback(&mut self, turns: usize) -> Result<()> {
        let Some(keep) = self.turns.len().checked_sub(turns) else {
            let (held, dropped) = (self.turns.len(), self.dropped);
            let text =
                format!("{turns} turns cannot be taken back: {held} are held, {dropped} older ones were dropped");
            return Err(Error::invalid(text));
        };
        self.turns.truncate(keep);
        Ok(())
    }

    /// The turns as JSON text, for [`Live::restore`].
    pub fn save(&self) -> String {
        let dialogue = Dialogue { id: "live".into(), turns: self.turns.clone() };
        let base = &self.classifier.card().base;
        json!({"format": FORMAT, "base": base, "dropped": self.dropped, "dialogue": dialogue}).to_string()
    }

    /// The conversation that was saved; its tokens are computed again, which the second value says.
    ///
    /// # Errors
    /// BAD_FILE for text that [`Live::save`] did not write or of another base model; UNSUPPORTED for a newer format; as
    /// [`Live::push`].
    pub fn restore(classifier: Arc<Classifier>, options: Options, saved: &str) -> Result<(Self, Heard)> {
        let (turns, dropped) = parse(saved, &classifier.card().base).map_err(|error| error.at("saved conversation"))?;
        let mut live = Self { turns, dropped, ..Self::new(classifier, options) };
        let heard = if live.turns.is_empty() { Heard::default() } else { live.sync()? };
        Ok((live, heard))
    }

    /// Makes the cache hold what is said before the question about the last turn, dropping turns if that is too much.
    fn sync(&mut self) -> Result<Heard> {
        let dropped = self.surplus()?;
        let Asked { question, trunk } = self.asked(&self.turns[dropped..])?;
        let computed = self.conversation.rebuild(&question.prompt[..trunk])?;
        self.turns.drain(..dropped);
        self.dropped += dropped;
        Ok(Heard { computed, dropped })
    }

    /// Oldest turns that have to go.
    fn surplus(&self) -> Result<usize> {
        let limit = self.limit();
        let shown = |turns: &[Turn], longest| {
            let question = self.question(turns, longest)?;
            Ok::<_, Error>((question.skipped > 0).then(|| self.shown(turns.len() - 1, &question)))
        };
        let mut dropped = 0;
        // fewer turns may show other speaker numbers and so need other tokens: look again
        while let Some(fits) = shown(&self.turns[dropped..], limit)? {
            let keep = match shown(&self.turns[dropped..], limit - limit / 4) {
                Ok(roomy) => roomy.unwrap_or(fits),
                Err(error) if error.code() == Code::ContextFull => fits,
                Err(error) => return Err(error),
            };
            dropped = self.turns.len() - keep;
        }
        Ok(dropped)
    }

    /// Turns that `question` shows, its target included.
    fn shown(&self, target: usize, question: &Question) -> usize {
        1 + self.classifier.prompter().history(target) - question.skipped
    }

    fn limit(&self) -> usize {
        let conversation = self.conversation.len() + self.conversation.room();
        self.classifier.prompter().longest_asked().min(conversation)
    }

    fn question(&self, turns: &[Turn], longest: usize) -> Result<Question> {
        let prompter = self.classifier.prompter();
        let tokenizer = self.classifier.model().tokenizer();
        prompter.question_within(tokenizer, &prompter.script(turns), turns.len() - 1, longest)
    }

    fn asked(&self, turns: &[Turn]) -> Result<Asked> {
        let (prompter, tokenizer) = (self.classifier.prompter(), self.classifier.model().tokenizer());
        let (script, target) = (prompter.script(turns), turns.len() - 1);
        let question = prompter.question_within(tokenizer, &script, target, self.limit())?;
        let trunk = prompter.trunk(tokenizer, &script, target, &question)?;
        Ok(Asked { question, trunk })
    }
}

/// The turns of a saved conversation and how many older ones were dropped.
fn parse(saved: &str, base: &str) -> Result<(Vec<Turn>, usize)> {
    let bad = |text: &str| Error::new(Code::BadFile, text);
    let value: Value = serde_json::from_str(saved).map_err(|_| bad("it is not JSON"))?;
    match value["format"].as_u64() {
        Some(FORMAT) => {}
        Some(format @ FORMAT..) => {
            return Err(Error::unsupported(format!("format {format} is newer than {FORMAT}; update this library")));
        }
        _ => return Err(bad("`format` is missing or not a number from 1 on")),
    }
    let saved_base = value["base"].as_str().unwrap_or_default();
    if saved_base != base {
        return Err(bad(&format!("it is of base model {saved_base}, this is {base}")));
    }
    let dropped = value["dropped"].as_u64().ok_or_else(|| bad("`dropped` is not a number"))?;
    // a conversation in which nothing was said has no turns, which a file of dialogues may not
    if value["dialogue"]["turns"].as_array().is_some_and(Vec::is_empty) {
        return Ok((Vec::new(), dropped as usize));
    }
    Ok((Dialogue::from_json(&value["dialogue"], "live")?.turns, dropped as usize))
}

#[cfg(test)]
mod tests;
