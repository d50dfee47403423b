//! `chat`: a conversation typed turn by turn, with the emotion of every turn at once.

use crate::args::{AskArgs, ModelArgs, Style};
use crate::eval::prediction;
use crate::out;
use clap::Args;
use dialoguellm::conversation::Options;
use dialoguellm::emotion::live::Heard;
use dialoguellm::emotion::metrics::likeliest;
use dialoguellm::emotion::{Classifier, Live};
use dialoguellm::files::dialogues::log_line;
use dialoguellm::{Code, Error, Result};
use std::io::{BufRead, IsTerminal, Read};
use std::path::Path;
use std::sync::Arc;

/// Type turns as `Name: text` and see the emotion of each.
#[derive(Args)]
pub struct Chat {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    ask: AskArgs,
    /// Tokens of context to use at most; 0 for the model's
    #[arg(long, value_name = "N", default_value_t = 0)]
    context: usize,
}

const HELP: &str = "\
Name: text     a turn
/undo [N]      take back the last turn, or the last N
/save FILE     write the conversation to a file
/load FILE     read one and go on with it
/quit          end";
/// The longest line that is read.
const LINE_LIMIT: u64 = 1 << 20;

impl Chat {
    pub fn run(&self, style: Style) -> Result<()> {
        let classifier = Arc::new(self.ask.classifier(&self.model, self.model.open()?, None)?);
        let live = Live::new(classifier.clone(), self.options());
        let typed = std::io::stdin().is_terminal();
        let mut talk = Talk { chat: self, live, json: style.json, drawn: std::io::stdout().is_terminal(), typed };
        if typed && !style.quiet {
            eprintln!("{}: {}\n{HELP}\n", classifier.card().template.name, classifier.labels().names().join(", "));
        }
        talk.all()
    }

    fn options(&self) -> Options {
        Options { context: self.context, ..Options::default() }
    }
}

struct Talk<'a> {
    chat: &'a Chat,
    live: Live,
    json: bool,
    /// Whether results are looked at as they come.
    drawn: bool,
    /// Whether a person types: then an error is said, and the conversation goes on.
    typed: bool,
}

impl Talk<'_> {
    fn all(&mut self) -> Result<()> {
        loop {
            if self.typed {
                eprint!("> ");
            }
            let Some(line) = read_line()? else { return Ok(()) };
            let answered = line.and_then(|line| match line.trim() {
                "" => Ok(true),
                "/quit" => Ok(false),
                line => self.answer(line).map(|()| true),
            });
            match answered {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if self.typed => eprintln!("{error}"),
                Err(error) => return Err(error),
            }
        }
    }

    fn answer(&mut self, line: &str) -> Result<()> {
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match command {
            "/help" => self.say(HELP),
            "/undo" => self.undo(rest.trim()),
            "/save" => self.save(file(rest)?),
            "/load" => self.load(file(rest)?),
            _ if line.starts_with('/') => {
                Err(Error::invalid(format!("there is no {command}; /help lists what there is")))
            }
            _ => self.turn(line),
        }
    }

    fn turn(&mut self, line: &str) -> Result<()> {
        let turn = log_line(line).ok_or_else(|| Error::invalid("write `Name: text`, or /help"))?;
        let (probabilities, heard) = self.live.add_turn(&turn.speaker, &turn.text)?;
        self.notice(heard)?;
        let number = self.live.dropped() + self.live.turns().len() - 1;
        if self.json {
            let mut value = prediction(self.live.classifier(), "live", number, &probabilities);
            value["speaker"] = turn.speaker.into();
            return out::json(&value);
        }
        if !self.typed {
            out::line(line)?; // what was not typed is not on the screen yet
        }
        out::text(&chart(self.live.classifier(), &probabilities, self.drawn))
    }

    fn undo(&mut self, turns: &str) -> Result<()> {
        let turns = match turns {
            "" => 1,
            turns => turns.parse().map_err(|_| Error::invalid(format!("/undo {turns}: not a number of turns")))?,
        };
        self.live.rollback(turns)?;
        self.say(&format!("turns left: {}", self.live.turns().len()))
    }

    fn save(&mut self, path: &Path) -> Result<()> {
        out::file(path, &(self.live.save() + "\n"))?;
        self.say(&format!("written to {}; turns: {}", path.display(), self.live.turns().len()))
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, &error))?;
        let restored = Live::restore(self.live.classifier().clone(), self.chat.options(), text.trim());
        let (live, heard) = restored.map_err(|error| error.at(path.display()))?;
        self.live = live;
        self.notice(heard)?;
        let (turns, computed) = (self.live.turns().len(), heard.computed);
        self.say(&format!("read from {}; turns: {turns}, tokens computed: {computed}", path.display()))
    }

    fn notice(&self, heard: Heard) -> Result<()> {
        if heard.dropped == 0 {
            return Ok(());
        }
        let Heard { dropped, computed } = heard;
        self.say(&format!("(the context is full; oldest turns dropped: {dropped}, tokens computed again: {computed})"))
    }

    /// Something beside the results.
    fn say(&self, text: &str) -> Result<()> {
        if self.json {
            eprintln!("{text}");
            return Ok(());
        }
        out::line(text)
    }
}

fn file(name: &str) -> Result<&Path> {
    match name.trim() {
        "" => Err(Error::invalid("name a file")),
        name => Ok(Path::new(name)),
    }
}

/// The next line; an inner error concerns that line only.
fn read_line() -> Result<Option<Result<String>>> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(LINE_LIMIT).read_until(b'\n', &mut bytes);
    let n = read.map_err(|error| Error::io("read", Path::new("standard input"), &error))?;
    let not_utf8 = |_| Error::new(Code::BadFile, "the line is not UTF-8");
    Ok((n > 0).then(|| String::from_utf8(bytes).map_err(not_utf8)))
}

/// Columns of a whole bar.
const WIDTH: f32 = 32.0;

/// A bar a label; in plain text the labels in one line, the likeliest first.
fn chart(classifier: &Classifier, probabilities: &[f32], drawn: bool) -> String {
    let names = classifier.labels().names();
    let best = likeliest(probabilities);
    if !drawn {
        let mut order: Vec<usize> = (0..names.len()).collect();
        order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
        let parts: Vec<String> = order.iter().map(|&i| format!("{} {:.2}", names[i], probabilities[i])).collect();
        return format!("  {}\n", parts.join("  "));
    }
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let bold = std::env::var_os("NO_COLOR").is_none();
    let line = |(i, name): (usize, &String)| {
        let text = format!("  {name:width$} {:5.1} % {}", 100.0 * probabilities[i], bar(probabilities[i]));
        let text = text.trim_end();
        if i == best && bold { format!("\x1b[1m{text}\x1b[0m\n") } else { format!("{text}\n") }
    };
    names.iter().enumerate().map(line).collect()
}

/// Whole blocks and a last one in eighths.
fn bar(probability: f32) -> String {
    const PARTS: [&str; 8] = ["", "\u{258f}", "\u{258e}", "\u{258d}", "\u{258c}", "\u{258b}", "\u{258a}", "\u{2589}"];
    let eighths = (probability.clamp(0.0, 1.0) * WIDTH * 8.0).round() as usize;
    "\u{2588}".repeat(eighths / 8) + PARTS[eighths % 8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_probability_to_an_eighth() {
        assert_eq!(bar(0.0), "");
        assert_eq!(bar(1.0).chars().count(), 32);
        assert_eq!(bar(0.5 + 1.0 / 256.0), "\u{2588}".repeat(16) + "\u{258f}");
        assert_eq!(bar(f32::NAN), "");
    }
}
