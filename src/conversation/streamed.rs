//! Generated tokens as text, as they come, up to a stop string.

use crate::Result;
use crate::files::{Decoder, Tokenizer};

/// Text that is given out at whole code points, never a part of a stop string.
pub struct Streamed<'t> {
    decoder: Decoder<'t>,
    stopper: Stopper<'t>,
}

impl<'t> Streamed<'t> {
    /// `prompt` is context for the first token, since some tokenizers drop a text's first space. Errors: those of the
    /// tokenizer; INVALID_ARGUMENT for an empty stop string.
    pub fn new(tokenizer: &'t Tokenizer, prompt: &[u32], stops: &'t [String]) -> Result<Self> {
        if stops.iter().any(String::is_empty) {
            return Err(crate::Error::invalid("a stop string is empty, must be one character or more"));
        }
        let mut decoder = tokenizer.decoder(true);
        for &id in &prompt[prompt.len().saturating_sub(4)..] {
            decoder.push(id)?;
        }
        Ok(Self { decoder, stopper: Stopper { stops, held: String::new(), done: false } })
    }

    /// The text that may be given out after `token`. Errors: those of the tokenizer.
    pub fn push(&mut self, token: u32) -> Result<String> {
        Ok(self.stopper.push(&self.decoder.push(token)?))
    }

    /// Whether a stop string has ended the text.
    pub fn is_stopped(&self) -> bool {
        self.stopper.done
    }

    /// The text of tokens that are all there, and whether a stop string ended it. Errors: those of the tokenizer.
    pub fn whole(mut self, tokens: &[u32]) -> Result<(String, bool)> {
        let mut text = String::new();
        for &token in tokens {
            text += &self.push(token)?;
        }
        let (rest, at_stop) = self.finish()?;
        Ok((text + &rest, at_stop))
    }

    /// What was held back for nothing, and whether a stop string has ended the text. Errors: those of the tokenizer.
    pub fn finish(self) -> Result<(String, bool)> {
        let Self { decoder, mut stopper } = self;
        if stopper.done {
            return Ok((String::new(), true));
        }
        let last = stopper.push(&decoder.finish()?) + &stopper.rest();
        Ok((last, stopper.done))
    }
}

/// Holds back what may be the beginning of a stop string.
struct Stopper<'t> {
    stops: &'t [String],
    held: String,
    done: bool,
}

impl Stopper<'_> {
    /// The text that may be given out after `piece`.
    fn push(&mut self, piece: &str) -> String {
        self.held += piece;
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        let cut = match first {
            Some(at) => {
                self.done = true;
                at
            }
            None => self.held.len() - self.stops.iter().map(|stop| begun(&self.held, stop)).max().unwrap_or(0),
        };
        let rest = self.held.split_off(cut);
        std::mem::replace(&mut self.held, rest)
    }

    /// What was held back for nothing.
    fn rest(&mut self) -> String {
        if self.done { String::new() } else { std::mem::take(&mut self.held) }
    }
}

/// Bytes at the end of `text` that `stop` begins with.
fn begun(text: &str, stop: &str) -> usize {
    let longest = stop.len().saturating_sub(1).min(text.len());
    let fits = |n: &usize| {
        text.is_char_boundary(text.len() - n) && stop.as_bytes().starts_with(&text.as_bytes()[text.len() - n..])
    };
    (1..=longest).rev().find(fits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streamed(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.into()).collect();
        let mut stopper = Stopper { stops: &stops, held: String::new(), done: false };
        let mut given: Vec<String> = Vec::new();
        for piece in pieces {
            given.push(stopper.push(piece));
            if stopper.done {
                break;
            }
        }
        given.push(stopper.rest());
        (given, stopper.done)
    }

    #[test]
    fn a_stop_string_over_several_pieces_is_not_given_out() {
        assert_eq!(
            streamed(&["END"], &["a E", "N", "D b"]),
            (vec!["a ".into(), "".into(), "".into(), "".into()], true)
        );
    }

    #[test]
    fn what_only_begins_like_a_stop_string_is_given_out_later() {
        assert_eq!(streamed(&["END"], &["a EN", "x"]), (vec!["a ".into(), "ENx".into(), "".into()], false));
        assert_eq!(streamed(&["END"], &["a EN"]), (vec!["a ".into(), "EN".into()], false));
    }

    #[test]
    fn of_several_stop_strings_the_first_in_the_text_counts() {
        assert_eq!(streamed(&["two", "one"], &["zero one two"]), (vec!["zero ".into(), "".into()], true));
    }

    #[test]
    fn characters_of_several_bytes_are_not_cut() {
        assert_eq!(streamed(&["\u{e9}x"], &["a\u{e9}", "y"]), (vec!["a".into(), "\u{e9}y".into(), "".into()], false));
    }
}
