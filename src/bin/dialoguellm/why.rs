//! `why`: which earlier turns and words made the emotion of a turn.

use crate::args::{AskArgs, ModelArgs, Style, cancelled_by_ctrl_c};
use crate::lines::Lines;
use crate::out;
use clap::{Args, ValueEnum};
use dialoguellm::emotion::{Bulk, Classifier, Influence, Integral, Method, Why};
use dialoguellm::files::Turn;
use dialoguellm::files::dialogues::Dialogue;
use dialoguellm::{Error, Result};
use serde_json::json;

/// Tell which earlier turns and words made the emotion of a turn.
///
/// Reads dialogues as lines, as `classify` does, and explains the last turn of each. What a part did is given as the change
/// of ln of the label's probability: above 0 it speaks for the label, below 0 against it.
#[derive(Args)]
pub struct WhyArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    ask: AskArgs,
    #[command(flatten)]
    lines: Lines,
    /// Explain this turn instead of the last, counted from 0; what comes after it is not looked at
    #[arg(long, value_name = "N")]
    turn: Option<usize>,
    /// Explain this label instead of the likeliest
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
    /// How to find out
    #[arg(long, value_enum, default_value = "turns")]
    method: MethodName,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum MethodName {
    /// Ask again without each earlier turn, which estimates nothing
    Turns,
    /// The same, and without each word
    Words,
    /// Integrated gradients, which share the whole out among all words
    Gradients,
}

impl MethodName {
    pub fn method(self) -> Method {
        match self {
            MethodName::Turns => Method::LeaveOutTurns,
            MethodName::Words => Method::LeaveOutWords,
            MethodName::Gradients => Method::IntegratedGradients,
        }
    }
}

impl WhyArgs {
    pub fn run(&self, style: Style) -> Result<()> {
        let cancel = cancelled_by_ctrl_c()?;
        let mut reader = self.lines.open()?;
        let classifier = self.ask.classifier(&self.model, self.model.open()?, None)?;
        let label = self.label.as_ref().map(|name| classifier.labels().index(name)).transpose()?;
        let bulk = Bulk { threads: self.model.threads(), cancel, ..Bulk::default() };
        while let Some(batch) = reader.batch()? {
            for item in batch {
                let item = item?;
                let at_line = |error: Error| error.at(format!("line {}", item.line));
                let turns = self.shown(&item.dialogue).map_err(at_line)?;
                let why = classifier.why(turns, label, self.method.method(), &bulk).map_err(at_line)?;
                let id = &item.dialogue.id;
                match style.json {
                    true => {
                        let mut value = why.to_json(classifier.labels().names(), turns);
                        value["id"] = json!(id);
                        out::json(&value)?;
                    }
                    false => out::text(&for_people(&classifier, id, turns, &why))?,
                }
            }
        }
        Ok(())
    }

    /// The turns up to the one that is explained.
    fn shown<'a>(&self, dialogue: &'a Dialogue) -> Result<&'a [Turn]> {
        let turns = dialogue.turns.len();
        let end = self.turn.map_or(turns, |turn| turn.saturating_add(1));
        dialogue.turns.get(..end).ok_or_else(|| {
            Error::invalid(format!("--turn {} of dialogue {}, which has {turns} turns, from 0", end - 1, dialogue.id))
        })
    }
}

/// The longest bar.
const BAR: usize = 12;

fn for_people(classifier: &Classifier, id: &str, turns: &[Turn], why: &Why) -> String {
    let (name, last) = (&classifier.labels().names()[why.label], turns.len() - 1);
    let mut text = format!("{id}, turn {last}: {name} {:.3}\n", why.probabilities[why.label]);
    let largest = why.turns.iter().chain(&why.words).map(|influence| influence.change.abs()).fold(0.0, f32::max);
    let line = |influence: &Influence, what: String| {
        let bar = (influence.change.abs() / largest.max(f32::MIN_POSITIVE) * BAR as f32).round() as usize;
        let without = influence.without.map_or(String::new(), |p| format!("  {p:.3} without"));
        let sign = if influence.change < 0.0 { '-' } else { '+' };
        format!("  {:+7.3} {:BAR$}{without}  {what}\n", influence.change, sign.to_string().repeat(bar))
    };
    for influence in &why.turns {
        let Turn { speaker, .. } = &turns[influence.turn];
        text += &line(influence, format!("{} {speaker}: {}", influence.turn, influence.said(turns)));
    }
    for influence in &why.words {
        text += &line(influence, format!("{} {}", influence.turn, influence.said(turns)));
    }
    if let Some(Integral { base, gap, points }) = why.integral {
        let p = base.exp();
        text +=
            &format!("  {base:+.3}: ln p without any word (p {p:.3}); not accounted for {gap:+.4}, {points} points\n");
    }
    text
}
