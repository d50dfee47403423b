//! Dialogues to token sequences: the question about a turn with all its answers, and the groups a trainer learns from.
//!
//! Every linear prompt, its answer included, is tokenised whole; what prompts share is found afterwards, in their ids.
//! Knows templates, labels and the tokenizer; no model.

use super::curriculum::stages;
use super::framing::{Ends, Framer, Framing, shared};
use super::labels::{Labels, Terminator};
use super::spread::spread;
use super::template::{Grouping, Parts, Renderer, Script, Template, Truncation};
use crate::files::Tokenizer;
use crate::files::dialogues::{Dialogue, Pair, Turn, label_by_speaker};
use crate::train::{Choice, Group, Loss, Prompt};
use crate::{Code, Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A template and a label set made ready for a model's tokenizer.
pub struct Prompter {
    renderer: Renderer,
    framer: Framer,
    labels: Labels,
    grouping: Grouping,
}

/// A question about a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The ids that the prompt has with every answer.
    pub prompt: Vec<u32>,
    /// For every label, the ids that follow; none begins another.
    pub answers: Vec<Vec<u32>>,
    /// Turns of the window that were left out so that it fits.
    pub skipped: usize,
}

impl Question {
    /// The prompt with the answer of `label`, as the tokenizer gave it.
    pub fn whole(&self, label: usize) -> Vec<u32> {
        [&self.prompt[..], &self.answers[label]].concat()
    }

    /// Tokens of the prompt with its longest answer.
    pub fn longest(&self) -> usize {
        self.prompt.len() + self.answers.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// A word of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The turn, from 0.
    pub turn: usize,
    /// The bytes of its text.
    pub word: Range<usize>,
}

/// What decides the groups beyond the template.
#[derive(Clone, Debug, Default)]
pub struct Lessons {
    /// What a prompt teaches; the choice loss needs every answer as a prompt of its own.
    pub loss: Loss,
    /// What the loss of a turn is multiplied by, for every label; all 1 where it is empty.
    pub class_weights: Vec<f32>,
    /// What the choice loss adds to every label's score while it learns; all 0 where it is empty.
    pub biases: Vec<f32>,
    /// Buckets of rising difficulty that dialogues are learned in, one more an epoch; 0 as 1: all from the start.
    pub curriculum: usize,
    /// Whether what is retrieved for a turn that is learned is of its own label only.
    pub retrieve_own: bool,
    /// Threads that tokenise.
    pub threads: usize,
}

/// A question that is learned beside the main one and never asked, such as InstructERC's (arXiv 2309.11911, sections 3.3
/// and 3.4). Its prompts go with the turn's own, so that what they share is computed once.
pub struct Task {
    /// How it is asked.
    pub prompter: Prompter,
    /// What its answer is.
    pub answer: Answer,
    /// What the loss of its answers is multiplied by, beside the turn's weight and instead of the label's.
    pub weight: f32,
}

/// What a task's answer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The turn's label.
    #[default]
    Emotion,
    /// Who speaks, as [`SPEAKER_LABELS`](crate::files::dialogues::SPEAKER_LABELS) has it; those past the last are not asked.
    Speaker,
}

/// Groups, and what became of the turns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Taught {
    /// What a trainer learns from.
    pub groups: Vec<Group>,
    /// Turns that are asked: those with a label.
    pub turns: usize,
    /// Tokens of all prompts, each computed on its own.
    pub linear_tokens: usize,
    /// Turns whose prompt lost old turns of its window.
    pub shortened: usize,
    /// Turns whose answer was cut off.
    pub lost: usize,
}

/// Previous turns that are looked at first where a window shows more.
const FIRST_LOOK: usize = 64;

impl Prompter {
    /// Makes ready, and decides whether answers need a terminator, unless `labels` already say: they do where the ids of
    /// one begin those of another. It is the end token where the model has one, else a line end.
    ///
    /// # Errors
    /// As [`Renderer::new`] and [`Framer::new`]; UNSUPPORTED where even then one answer begins another.
    pub fn new(template: &Template, labels: Labels, tokenizer: &Tokenizer, ends: Ends) -> Result<Self> {
        let renderer = Renderer::new(template, &labels)?;
        let framer = Framer::new(Framing::from(template), tokenizer, ends)?;
        let mut prompter = Self { renderer, framer, labels, grouping: template.group };
        if prompter.labels.terminator() == Some(Terminator::Eos) && ends.eos.is_none() {
            return Err(Error::not_found("the labels are ended by the end token, but the model names none"));
        }
        if prompter.labels.terminator().is_none() && prompter.probe(tokenizer)?.is_none() {
            let terminator = ends.eos.map_or(Terminator::Newline, |_| Terminator::Eos);
            prompter.labels = prompter.labels.ended_by(Some(terminator));
        }
        match prompter.probe(tokenizer)? {
            Some(_) => Ok(prompter),
            None => Err(ambiguous()),
        }
    }

    /// The answers after a prompt like any other, if none begins another.
    fn probe(&self, tokenizer: &Tokenizer) -> Result<Option<Question>> {
        let turn = Turn { speaker: "A".into(), text: "b".into(), ..Turn::default() };
        self.candidates(tokenizer, &self.renderer.prompt(&self.renderer.script(&[turn]), 0, 0)?, 0)
    }

    /// The labels, with the terminator that was decided on.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// The longest prompt with answer that is asked.
    pub fn longest_asked(&self) -> usize {
        self.framer.longest_asked(self.labels.terminator())
    }

    /// Previous turns that the window shows of turn `target`.
    pub fn history(&self, target: usize) -> usize {
        self.renderer.history(target)
    }

    /// Whether a question shows turns that come after the one it asks about.
    pub fn looks_ahead(&self) -> bool {
        self.renderer.looks_ahead()
    }

    /// A dialogue's turns, made ready once.
    pub fn script(&self, turns: &[Turn]) -> Script {
        self.renderer.script(turns)
    }

    /// The question about turn `target`. Of a window that does not fit the oldest turns are left out, no more than needed.
    ///
    /// # Errors
    /// CONTEXT_FULL where the question alone does not fit; UNSUPPORTED where one answer's ids begin another's.
    pub fn question(&self, tokenizer: &Tokenizer, script: &Script, target: usize) -> Result<Question> {
        self.question_within(tokenizer, script, target, self.longest_asked())
    }

    /// As [`Prompter::question`], in at most `longest` tokens.
    pub fn question_within(
        &self,
        tokenizer: &Tokenizer,
        script: &Script,
        target: usize,
        longest: usize,
    ) -> Result<Question> {
        let ask = |skip| {
            let parts = self.renderer.prompt(script, target, skip)?;
            self.candidates(tokenizer, &parts, skip)?.ok_or_else(ambiguous)
        };
        // a long history is mostly left out: twice as much of it is shown each time, so that what is far is not looked at
        let history = self.renderer.history(target);
        let (mut shown, mut fits) = (history.min(FIRST_LOOK), None);
        let mut beyond = loop {
            let question = ask(history - shown)?;
            if question.longest() > longest {
                break question.skipped;
            }
            if shown == history {
                return Ok(question);
            }
            fits = Some(question);
            shown = history.min(2 * shown);
        };
        let mut fits = match fits {
            Some(fits) => fits,
            None => ask(history)?,
        };
        if fits.longest() > longest {
            return Err(self.framer.too_long(fits.longest(), longest));
        }
        // `fits` fits and `beyond` does not: halve what lies between
        while fits.skipped > beyond + 1 {
            let middle = ask((beyond + fits.skipped) / 2)?;
            if middle.longest() <= longest {
                fits = middle;
            } else {
                beyond = middle.skipped;
            }
        }
        Ok(fits)
    }

    /// The ids of every answer after `parts`; `None` where one begins another.
    fn candidates(&self, tokenizer: &Tokenizer, parts: &Parts, skipped: usize) -> Result<Option<Question>> {
        let prompt = format!("{}{}", parts.context, parts.question);
        let candidate =
            |answer| self.framer.candidate(tokenizer, &format!("{prompt}{answer}"), self.labels.terminator());
        let mut wholes: Vec<Vec<u32>> = self.renderer.answers().iter().map(candidate).collect::<Result<_>>()?;
        let fork = wholes.iter().map(|ids| shared(ids, &wholes[0])).min().unwrap_or(0);
        let answers: Vec<Vec<u32>> = wholes.iter_mut().map(|ids| ids.split_off(fork)).collect();
        let begins = |a: usize, b: usize| a != b && answers[b].starts_with(&answers[a]);
        let unclear = (0..answers.len()).any(|a| (0..answers.len()).any(|b| begins(a, b)));
        if unclear || fork == 0 {
            return Ok(None);
        }
        Ok(Some(Question { prompt: wholes.swap_remove(0), answers, skipped }))
    }

    /// How many ids of `question` belong to the context without the question: what a later turn's prompt will begin
    /// with too, if its window still shows all of it.
    pub fn trunk(&self, tokenizer: &Tokenizer, script: &Script, target: usize, question: &Question) -> Result<usize> {
        let parts = self.renderer.prompt(script, target, question.skipped)?;
        Ok(shared(&self.framer.ids(tokenizer, &parts.context)?, &question.prompt))
    }

    /// For every id of the prompt of a question about turn `target`, the turn and the bytes of the word of its text that it
    /// stands for; `None` for what is the template's.
    ///
    /// # Errors
    /// UNSUPPORTED where the template turns a text into another one, so that its words cannot be found.
    pub fn origins(
        &self,
        tokenizer: &Tokenizer,
        turns: &[Turn],
        target: usize,
        question: &Question,
    ) -> Result<Vec<Option<Origin>>> {
        let render = |turns: &[Turn]| {
            let parts = self.renderer.prompt(&self.renderer.script(turns), target, question.skipped)?;
            Ok::<_, Error>(parts.context + &parts.question)
        };
        let prompt = render(turns)?;
        let marks = marks(turns).ok_or_else(untraceable)?;
        let mut traced: Vec<(Range<usize>, Origin)> = Vec::new();
        for turn in target - (self.renderer.history(target) - question.skipped)..=target {
            let text = &turns[turn].text;
            let said = text.trim();
            if said.is_empty() {
                continue;
            }
            // around the words, not the space beside them, which a template may drop
            let start = said.as_ptr() as usize - text.as_ptr() as usize;
            let (before, after) = (&text[..start], &text[start + said.len()..]);
            let mut marked = turns.to_vec();
            marked[turn].text = format!("{before}{}{said}{}{after}", marks[0], marks[1]);
            let (plain, marked) = between(&render(&marked)?, marks);
            if plain != prompt {
                return Err(untraceable());
            }
            for at in marked {
                let shown = &prompt[at.clone()];
                if !shown.split_whitespace().eq(text.split_whitespace()) {
                    return Err(untraceable());
                }
                let (found, own) = (words(shown), words(text));
                let word = |(found, word): (Range<usize>, Range<usize>)| {
                    (at.start + found.start..at.start + found.end, Origin { turn, word })
                };
                traced.extend(found.into_iter().zip(own).map(word));
            }
        }
        let whole = format!("{prompt}{}", self.renderer.answers()[0]);
        let places = self.framer.places(tokenizer, &whole)?;
        let of = |(_, place): &(u32, Range<usize>)| {
            let word = traced.iter().find(|(word, _)| place.start < word.end && word.start < place.end);
            word.map(|(_, origin)| origin.clone())
        };
        let same = places.iter().map(|(id, _)| id).take(question.prompt.len()).eq(&question.prompt);
        if !same {
            return Err(Error::internal("a prompt has other tokens where their places are asked for"));
        }
        Ok(places.iter().take(question.prompt.len()).map(of).collect())
    }

    /// Groups for a trainer, one a dialogue or one a turn as the template says, of all turns with a label; each has the
    /// prompts of `tasks` for the same turns too.
    ///
    /// # Errors
    /// As [`Prompter::question`], and for a label that is not known, each naming dialogue and turn; INVALID_ARGUMENT for
    /// weights of another number than labels.
    pub fn groups(
        &self,
        tokenizer: &Tokenizer,
        dialogues: &[Dialogue],
        lessons: &Lessons,
        tasks: &[Task],
    ) -> Result<Taught> {
        let weights = lessons.class_weights.len();
        if weights != 0 && weights != self.labels.len() {
            return Err(Error::invalid(format!("{weights} class weights for {} labels", self.labels.len())));
        }
        let of_dialogue = |dialogue: &Dialogue| {
            let mut learned = self.lessons(tokenizer, dialogue, lessons)?;
            for (number, task) in tasks.iter().enumerate() {
                task.beside(&mut learned, tokenizer, dialogue, lessons.loss, number + 1)?;
            }
            Ok(learned)
        };
        let turns = spread(lessons.threads, dialogues, of_dialogue)?;
        let mut taught = Taught::default();
        for (dialogue, stage) in turns.into_iter().zip(stages(dialogues, lessons.curriculum)) {
            taught.add(dialogue, self.grouping, stage);
        }
        Ok(taught)
    }

    /// What the turns with a label teach.
    fn lessons(&self, tokenizer: &Tokenizer, dialogue: &Dialogue, lessons: &Lessons) -> Result<Vec<Lesson>> {
        let at = |target: usize, error: Error| error.at(format!("dialogue {}, turn {}", dialogue.id, target + 1));
        let of_turn = |(target, turn): (usize, &Turn)| {
            let label = turn.emotion.as_ref().map(|emotion| self.labels.index(emotion)).transpose();
            label.map_err(|error| at(target, error))
        };
        let known = dialogue.turns.iter().enumerate().map(of_turn).collect::<Result<Vec<_>>>()?;
        let only = if lessons.retrieve_own { known.clone() } else { vec![None; known.len()] };
        let script = self.script(&dialogue.turns).learned(only);
        let turns = dialogue.turns.iter().zip(known).enumerate();
        let labelled = turns.filter_map(|(target, (turn, label))| Some((target, turn, label?)));
        let lesson = |(target, turn, label): (usize, &Turn, usize)| {
            let weight = turn.weight.unwrap_or(1.0) * lessons.class_weights.get(label).copied().unwrap_or(1.0);
            let lesson = match lessons.loss {
                Loss::Choice => self.choice(tokenizer, &script, target, label, weight, &lessons.biases),
                Loss::Answer | Loss::Sequence => self.answer(tokenizer, &script, target, label, weight),
            };
            lesson.map_err(|error| at(target, error))
        };
        labelled.map(lesson).collect()
    }

    /// One prompt with its own answer.
    fn answer(
        &self,
        tokenizer: &Tokenizer,
        script: &Script,
        target: usize,
        label: usize,
        weight: f32,
    ) -> Result<Lesson> {
        let mut parts = self.renderer.prompt(script, target, 0)?;
        let mut skipped = 0;
        if self.framer.drops_context() && !self.surely_fits(&parts) {
            // whether it fits is decided by the longest answer: a shorter context must not give the label away
            skipped = self.question(tokenizer, script, target)?.skipped;
            parts = self.renderer.prompt(script, target, skipped)?;
        }
        let (prompt, answer) = (parts.context + &parts.question, &self.renderer.answers()[label]);
        let learned = self.framer.learn(tokenizer, &prompt, answer, self.labels.terminator())?;
        let lost = learned.answer.is_empty();
        let prompt = Prompt { ids: learned.ids, answer: learned.answer, weight, choice: None };
        Ok(Lesson { turn: target, prompts: vec![prompt], shortened: skipped > 0, lost })
    }

    /// Whether a prompt fits with any answer by its bytes alone: tokens are no more than bytes, and a first and an end
    /// token and a line end are three more.
    fn surely_fits(&self, parts: &Parts) -> bool {
        let answer = self.renderer.answers().iter().map(String::len).max().unwrap_or(0);
        parts.context.len() + parts.question.len() + answer + 3 <= self.framer.longest()
    }

    /// A prompt for every answer.
    fn choice(
        &self,
        tokenizer: &Tokenizer,
        script: &Script,
        target: usize,
        gold: usize,
        weight: f32,
        biases: &[f32],
    ) -> Result<Lesson> {
        let question = self.question(tokenizer, script, target)?;
        let prompt = |label: usize| {
            let ids = question.whole(label);
            let bias = biases.get(label).copied().unwrap_or(0.0);
            let choice = Some(Choice { question: target as u32, gold: label == gold, bias });
            Prompt { answer: question.prompt.len()..ids.len(), ids, weight, choice }
        };
        let prompts = (0..self.labels.len()).map(prompt).collect();
        Ok(Lesson { turn: target, prompts, shortened: question.skipped > 0, lost: false })
    }
}

/// Every word of a text by its bytes, without the space around it.
pub(super) fn words(text: &str) -> Vec<Range<usize>> {
    let start = |word: &str| word.as_ptr() as usize - text.as_ptr() as usize;
    text.split_whitespace().map(|word| start(word)..start(word) + word.len()).collect()
}

/// Two characters for private use that no turn has.
fn marks(turns: &[Turn]) -> Option<[char; 2]> {
    let mut free = ('\u{e000}'..='\u{f8ff}').filter(|mark| !turns.iter().any(|turn| turn.text.contains(*mark)));
    Some([free.next()?, free.next()?])
}

/// A text without its marks, and what lay between them.
fn between(text: &str, [open, close]: [char; 2]) -> (String, Vec<Range<usize>>) {
    let (mut plain, mut found, mut start) = (String::new(), Vec::new(), 0);
    for c in text.chars() {
        if c == open {
            start = plain.len();
        } else if c == close {
            found.push(start..plain.len());
        } else {
            plain.push(c);
        }
    }
    (plain, found)
}

fn untraceable() -> Error {
    let text = "the template makes other words of its turns' texts, so what the model reads cannot be traced to them; leave \
                turns and words out instead";
    Error::new(Code::Unsupported, text)
}

fn ambiguous() -> Error {
    let text = "after the template's question one label's tokens begin another's, or they share no token before them: the \
                labels cannot be told apart";
    Error::new(Code::Unsupported, text)
}

/// What one turn teaches.
struct Lesson {
    turn: usize,
    prompts: Vec<Prompt>,
    shortened: bool,
    lost: bool,
}

impl Task {
    /// Adds its prompts about the turns of `main` to theirs.
    fn beside(
        &self,
        main: &mut [Lesson],
        tokenizer: &Tokenizer,
        dialogue: &Dialogue,
        loss: Loss,
        number: usize,
    ) -> Result<()> {
        let mut asked = std::borrow::Cow::Borrowed(dialogue);
        if self.answer == Answer::Speaker {
            label_by_speaker(asked.to_mut());
        }
        let lessons =
            Lessons { loss, class_weights: vec![self.weight; self.prompter.labels.len()], ..Lessons::default() };
        // the questions of one group have a number each
        let first = (number * dialogue.turns.len()) as u32;
        for mut lesson in self.prompter.lessons(tokenizer, &asked, &lessons)? {
            lesson.prompts.iter_mut().filter_map(|prompt| prompt.choice.as_mut()).for_each(|c| c.question += first);
            if let Some(main) = main.iter_mut().find(|main| main.turn == lesson.turn) {
                main.prompts.extend(lesson.prompts);
            }
        }
        Ok(())
    }
}

impl Taught {
    fn add(&mut self, dialogue: Vec<Lesson>, grouping: Grouping, stage: u32) {
        self.turns += dialogue.len();
        self.shortened += dialogue.iter().filter(|lesson| lesson.shortened).count();
        self.lost += dialogue.iter().filter(|lesson| lesson.lost).count();
        let turns: Vec<Vec<Prompt>> = dialogue.into_iter().map(|lesson| lesson.prompts).collect();
        match grouping {
            Grouping::Turn => turns.into_iter().for_each(|prompts| self.push(prompts, stage)),
            Grouping::Dialogue => self.push(turns.into_iter().flatten().collect(), stage),
        }
    }

    /// Adds a group with a sample number of its own.
    fn push(&mut self, prompts: Vec<Prompt>, stage: u32) {
        if prompts.is_empty() {
            return;
        }
        self.linear_tokens += prompts.iter().map(|prompt| prompt.ids.len()).sum::<usize>();
        self.groups.push(Group { sample: self.groups.len() as u64, stage, prompts });
    }
}

/// Groups of one prompt each from prompts and completions, taken as they are; loss on the completion's tokens.
///
/// # Errors
/// CONTEXT_FULL, naming the pair, where one is too long and `truncation` is not `right`: there is no context that could
/// be told from the question.
pub fn pair_groups(
    framing: Framing,
    tokenizer: &Tokenizer,
    ends: Ends,
    pairs: &[Pair],
    threads: usize,
) -> Result<Taught> {
    let framer = Framer::new(framing, tokenizer, ends)?;
    let learn = |pair: &Pair| {
        let learned = framer.learn(tokenizer, &pair.prompt, &pair.completion, None)?;
        Ok(Prompt { ids: learned.ids, answer: learned.answer, weight: pair.weight, choice: None })
    };
    let mut taught = Taught::default();
    for (number, prompt) in spread(threads, pairs, learn)?.into_iter().enumerate() {
        let (tokens, longest) = (prompt.ids.len(), framer.longest());
        if framing.truncation != Truncation::Right && tokens > longest {
            let text =
                format!("pair {} has {tokens} tokens, {longest} are allowed; set truncation = right", number + 1);
            return Err(Error::new(Code::ContextFull, text));
        }
        if prompt.ids.is_empty() {
            return Err(Error::invalid(format!("pair {} has no token", number + 1)));
        }
        let lost = prompt.answer.is_empty();
        taught.add(vec![Lesson { turn: 0, prompts: vec![prompt], shortened: false, lost }], Grouping::Turn, 0);
    }
    Ok(taught)
}

#[cfg(test)]
mod tests {
    use super::super::framing::tests::{ends, tokenizer};
    use super::*;

    fn labels(names: &[&str]) -> Labels {
        Labels::new(names.iter().map(|&name| name.into()).collect()).unwrap()
    }

    /// `c1|c2|t?` + `=label`, a token a byte.
    fn template(more: &str) -> Template {
        let text = format!(
            "name = \"x\"\ninstruction = \"\"\ncontext = '{{% for turn in history %}}{{{{ turn.text }}}}|{{% endfor %}}{{{{ target.text }}}}|'\n\
             question = '{{{{ target.text }}}}?'\nanswer = '={{{{ label }}}}'\nwindow = \"all\"\ngroup = \"dialogue\"\nbos = \"never\"\n{more}"
        );
        Template::from_toml(&text).unwrap()
    }

    fn dialogue(turns: &[(&str, &str)]) -> Dialogue {
        let turn = |&(text, emotion): &(&str, &str)| Turn {
            text: text.into(),
            emotion: (!emotion.is_empty()).then(|| emotion.into()),
            ..Turn::default()
        };
        Dialogue { id: "d".into(), turns: turns.iter().map(turn).collect() }
    }

    fn text(ids: &[u32]) -> String {
        String::from_utf8(ids.iter().map(|&id| id as u8).collect()).unwrap()
    }

    fn three() -> Dialogue {
        dialogue(&[("aa", "joy"), ("bb", ""), ("cc", "fear")])
    }

    fn groups(template: &Template, dialogues: &[Dialogue], lessons: &Lessons) -> Result<Taught> {
        let tokenizer = tokenizer(&[], true);
        let prompter = Prompter::new(template, labels(&["joy", "fear"]), &tokenizer, ends(1000))?;
        prompter.groups(&tokenizer, dialogues, lessons, &[])
    }

    #[test]
    fn tasks_are_learned_beside_the_turns_that_are_asked() {
        let tokenizer = tokenizer(&[], true);
        let made = |template: &Template, labels| Prompter::new(template, labels, &tokenizer, ends(1000)).unwrap();
        let mut dialogue = three();
        (dialogue.turns[2].speaker, dialogue.turns[2].weight) = ("B".into(), Some(2.0));
        let emotion =
            made(&Template { question: "{{ target.text }}!".into(), ..template("") }, labels(&["joy", "fear"]));
        let speaker = made(&Template { question: "who".into(), ..template("") }, labels(&["Speaker_0", "Speaker_1"]));
        let tasks = [
            Task { prompter: emotion, answer: Answer::Emotion, weight: 0.5 },
            Task { prompter: speaker, answer: Answer::Speaker, weight: 0.25 },
        ];
        for (group, groups) in [(Grouping::Dialogue, vec![6]), (Grouping::Turn, vec![3, 3])] {
            let lessons = Lessons { class_weights: vec![3.0, 4.0], ..Lessons::default() };
            let main = made(&Template { group, ..template("") }, labels(&["joy", "fear"]));
            let taught = main.groups(&tokenizer, std::slice::from_ref(&dialogue), &lessons, &tasks).unwrap();
            assert_eq!(taught.groups.iter().map(|group| group.prompts.len()).collect::<Vec<_>>(), groups);
            let prompts: Vec<_> = taught.groups.iter().flat_map(|group| &group.prompts).collect();
            let learned: Vec<_> = prompts.iter().map(|prompt| (text(&prompt.ids), prompt.weight)).collect();
            let want = [
                ("aa|aa?=joy", 3.0),
                ("aa|aa!=joy", 0.5),
                ("aa|who=Speaker_0", 0.25),
                ("aa|bb|cc|cc?=fear", 8.0),
                ("aa|bb|cc|cc!=fear", 1.0),
                ("aa|bb|cc|who=Speaker_1", 0.5),
            ];
            assert_eq!(learned, want.map(|(text, weight)| (text.to_owned(), weight)));
            assert_eq!(taught.turns, 2);
        }
        let lessons = Lessons { loss: Loss::Choice, ..Lessons::default() };
        let main = made(&template(""), labels(&["joy", "fear"]));
        let taught = main.groups(&tokenizer, &[dialogue], &lessons, &tasks).unwrap();
        let numbers: Vec<u32> = taught.groups[0].prompts.iter().map(|prompt| prompt.choice.unwrap().question).collect();
        assert_eq!(numbers, [0, 0, 3, 3, 6, 6, 2, 2, 5, 5, 8, 8]);
    }

    #[test]
    fn labelled_turns_are_asked_and_others_are_context() {
        let taught = groups(&template(""), &[three()], &Lessons::default()).unwrap();
        let texts: Vec<String> = taught.groups[0].prompts.iter().map(|prompt| text(&prompt.ids)).collect();
        assert_eq!(texts, ["aa|aa?=joy", "aa|bb|cc|cc?=fear"]);
        let answers: Vec<String> = taught.groups[0].prompts.iter().map(|p| text(&p.ids[p.answer.clone()])).collect();
        assert_eq!(answers, ["=joy", "=fear"]);
        assert_eq!((taught.turns, taught.linear_tokens), (2, 27));
    }

    #[test]
    fn what_is_retrieved_is_like_the_turn_and_in_training_never_itself_and_of_its_label_if_so_asked() {
        let shown = |text: &str, label: &str| format!("[[retrieval]]\ntext = '{text}'\nlabel = '{label}'\n");
        let bank = [("no way", "joy"), ("no dog", "fear"), ("way to go", "joy"), ("a dog", "fear")];
        let bank: String = bank.map(|(text, label)| shown(text, label)).concat();
        let with = |retrieved: usize| {
            let demonstrations = "{% for shown in demonstrations %}{{ shown.text }}={{ shown.label }};{% endfor %}";
            Template { context: demonstrations.into(), ..template(&format!("retrieved = {retrieved}\n{bank}")) }
        };
        let dialogue = dialogue(&[("no way", "joy"), ("no dog", "fear"), ("which way", "")]);
        let learned = |retrieve_own| {
            let lessons = Lessons { retrieve_own, ..Lessons::default() };
            let taught = groups(&with(1), std::slice::from_ref(&dialogue), &lessons).unwrap();
            taught.groups[0].prompts.iter().map(|prompt| text(&prompt.ids)).collect::<Vec<_>>()
        };
        assert_eq!(learned(true), ["way to go=joy;no way?=joy", "a dog=fear;no dog?=fear"]);
        assert_eq!(learned(false), ["no dog=fear;no way?=joy", "no way=joy;no dog?=fear"]);

        let tokenizer = tokenizer(&[], true);
        let asked = |retrieved, target| {
            let prompter = Prompter::new(&with(retrieved), labels(&["joy", "fear"]), &tokenizer, ends(1000)).unwrap();
            let script = prompter.script(&dialogue.turns);
            text(&prompter.question(&tokenizer, &script, target).unwrap().prompt)
        };
        assert_eq!(asked(1, 0), "no way=joy;no way?=", "a label is not known, and nothing is held back");
        assert_eq!(asked(2, 1), "no way=joy;no dog=fear;no dog?=", "the most similar one last, of equals the first");
        assert_eq!(asked(3, 2), "no dog=fear;way to go=joy;no way=joy;which way?=");
        let empty = Template { retrieval: Vec::new(), ..with(1) };
        let error = Prompter::new(&empty, labels(&["joy", "fear"]), &tokenizer, ends(1000)).err().unwrap();
        assert!(error.text().contains("`retrieval` has none"), "{error}");
    }

    #[test]
    fn groups_are_dialogues_or_turns_with_samples_of_their_own() {
        let shape = |group| {
            let mut template = template("");
            template.group = group;
            let taught = groups(&template, &[three(), dialogue(&[("x", "")]), three()], &Lessons::default()).unwrap();
            taught.groups.iter().map(|group| (group.sample, group.prompts.len())).collect::<Vec<_>>()
        };
        assert_eq!(shape(Grouping::Dialogue), [(0, 2), (1, 2)]);
        assert_eq!(shape(Grouping::Turn), [(0, 1), (1, 1), (2, 1), (3, 1)]);
    }

    #[test]
    fn the_choice_loss_gets_every_answer_and_knows_the_right_one() {
        let lessons = Lessons { loss: Loss::Choice, ..Lessons::default() };
        let taught = groups(&template(""), &[three()], &lessons).unwrap();
        let prompts = &taught.groups[0].prompts;
        let texts: Vec<String> = prompts.iter().map(|p| text(&p.ids[p.answer.clone()])).collect();
        assert_eq!(texts, ["joy", "fear", "joy", "fear"]); // from where the answers part: `=` is common
        let choice = |question, gold| Some(Choice { question, gold, bias: 0.0 });
        let choices: Vec<_> = prompts.iter().map(|prompt| prompt.choice).collect();
        assert_eq!(choices, [choice(0, true), choice(0, false), choice(2, false), choice(2, true)]);
    }

    #[test]
    fn weights_of_class_and_turn_are_multiplied() {
        let mut dialogue = three();
        dialogue.turns[2].weight = Some(0.5);
        let lessons = Lessons { class_weights: vec![2.0, 3.0], ..Lessons::default() };
        let taught = groups(&template(""), &[dialogue], &lessons).unwrap();
        assert_eq!(taught.groups[0].prompts.iter().map(|prompt| prompt.weight).collect::<Vec<_>>(), [2.0, 1.5]);
    }

    #[test]
    fn a_curriculum_says_which_epoch_a_dialogue_is_first_learned_in() {
        let (steady, moody) = (dialogue(&[("a", "joy"), ("b", "joy")]), dialogue(&[("a", "joy"), ("b", "fear")]));
        let lessons = Lessons { curriculum: 2, ..Lessons::default() };
        for (group, stages) in [(Grouping::Dialogue, vec![1, 0]), (Grouping::Turn, vec![1, 1, 0, 0])] {
            let template = Template { group, ..template("") };
            let taught = groups(&template, &[moody.clone(), steady.clone()], &lessons).unwrap();
            assert_eq!(taught.groups.iter().map(|group| group.stage).collect::<Vec<_>>(), stages);
        }
    }

    #[test]
    fn threads_do_not_change_the_groups() {
        let dialogues = [three(), dialogue(&[("x", "joy")]), three(), three()];
        let with = |threads| groups(&template(""), &dialogues, &Lessons { threads, ..Lessons::default() }).unwrap();
        assert_eq!(with(1), with(3));
    }

    #[test]
    fn an_unknown_label_names_dialogue_and_turn() {
        let error =
            groups(&template(""), &[dialogue(&[("a", "joy"), ("b", "glee")])], &Lessons::default()).unwrap_err();
        assert!(error.text().starts_with("dialogue d, turn 2: "), "{error}");
    }

    #[test]
    fn a_prompt_that_is_too_long_loses_its_oldest_turns_and_never_the_question() {
        let dialogue = dialogue(&[("a1", ""), ("b2", ""), ("c3", ""), ("d4", "joy")]);
        let cut = |max: usize| {
            groups(&template(&format!("max_tokens = {max}")), std::slice::from_ref(&dialogue), &Lessons::default())
        };
        let cut_text = |max| text(&cut(max).unwrap().groups[0].prompts[0].ids);
        // with the longest answer `=fear` the whole has 20 tokens
        assert_eq!(cut_text(20), "a1|b2|c3|d4|d4?=joy");
        assert_eq!(cut_text(19), "b2|c3|d4|d4?=joy");
        assert_eq!(cut_text(16), "c3|d4|d4?=joy");
        assert_eq!(cut_text(11), "d4|d4?=joy");
        assert_eq!(cut(10).unwrap_err().code(), Code::ContextFull);
        assert_eq!(cut(19).unwrap().shortened, 1);
    }

    #[test]
    fn the_context_that_is_kept_does_not_depend_on_the_label() {
        let cut = |emotion: &str| {
            let dialogue = dialogue(&[("a1", ""), ("b2", emotion)]);
            let taught = groups(&template("max_tokens = 13"), &[dialogue], &Lessons::default()).unwrap();
            text(&taught.groups[0].prompts[0].ids)
        };
        assert_eq!(cut("joy"), "b2|b2?=joy"); // 13 tokens would fit
        assert_eq!(cut("fear"), "b2|b2?=fear");
    }

    #[test]
    fn a_turn_is_asked_with_the_context_it_is_learned_with() {
        let tokenizer = tokenizer(&[], true);
        let dialogue = dialogue(&[("a1", ""), ("b2", ""), ("c3", "joy")]);
        for eos in ["never", "always", "if-fits"] {
            for max in 12..24 {
                let template = template(&format!("max_tokens = {max}\neos = \"{eos}\""));
                let prompter = Prompter::new(&template, labels(&["joy", "fear"]), &tokenizer, ends(1000)).unwrap();
                let question = prompter.question(&tokenizer, &prompter.script(&dialogue.turns), 2).unwrap();
                let taught =
                    prompter.groups(&tokenizer, std::slice::from_ref(&dialogue), &Lessons::default(), &[]).unwrap();
                let learned = &taught.groups[0].prompts[0].ids;
                assert!(learned.starts_with(&question.whole(0)) && learned.len() <= max, "{eos} {max}");
            }
        }
    }

    #[test]
    fn an_answer_that_right_cutting_removed_is_counted() {
        let template = template("max_tokens = 6\ntruncation = \"right\"");
        let taught = groups(&template, &[dialogue(&[("aa", "joy"), ("bb", "joy")])], &Lessons::default()).unwrap();
        assert_eq!(taught.lost, 2);
        assert!(taught.groups[0].prompts.iter().all(|prompt| prompt.answer.is_empty() && prompt.ids.len() == 6));
    }

    #[test]
    fn an_answer_that_begins_another_gets_a_terminator() {
        let tokenizer = tokenizer(&[], true);
        let decided = |names: &[&str], ends| {
            Prompter::new(&template(""), labels(names), &tokenizer, ends).unwrap().labels().terminator()
        };
        let without = Ends { eos: None, ..ends(1000) };
        assert_eq!(decided(&["joy", "fear"], ends(1000)), None);
        assert_eq!(decided(&["joy", "joyful"], ends(1000)), Some(Terminator::Eos));
        assert_eq!(decided(&["joy", "joyful"], without), Some(Terminator::Newline));
    }

    #[test]
    fn a_recorded_terminator_stays() {
        let tokenizer = tokenizer(&[], true);
        let labels = labels(&["joy", "fear"]).ended_by(Some(Terminator::Newline));
        let prompter = Prompter::new(&template(""), labels, &tokenizer, ends(1000)).unwrap();
        let question = prompter.question(&tokenizer, &prompter.script(&three().turns), 0).unwrap();
        assert_eq!(text(&question.answers[0]), "joy\n");
    }

    #[test]
    fn answers_that_merge_with_the_prompt_part_where_their_ids_do() {
        // `=j` is one token, so the prompt that both answers share ends before the `=`
        let tokenizer = tokenizer(&["= j"], true);
        let prompter = Prompter::new(&template(""), labels(&["joy", "fear"]), &tokenizer, ends(1000)).unwrap();
        let question = prompter.question(&tokenizer, &prompter.script(&three().turns), 0).unwrap();
        assert_eq!(text(&question.prompt), "aa|aa?");
        assert_eq!(question.answers, [vec![256, 111, 121], "=fear".bytes().map(u32::from).collect()]);
    }

    #[test]
    fn the_trunk_ends_where_the_question_begins() {
        let tokenizer = tokenizer(&[], true);
        let prompter = Prompter::new(&template(""), labels(&["joy", "fear"]), &tokenizer, ends(1000)).unwrap();
        let script = prompter.script(&three().turns);
        let question = prompter.question(&tokenizer, &script, 2).unwrap();
        let trunk = prompter.trunk(&tokenizer, &script, 2, &question).unwrap();
        assert_eq!(text(&question.prompt[..trunk]), "aa|bb|cc|");
    }

    #[test]
    fn tokens_are_traced_to_words_past_empty_turns_and_space_that_the_template_drops() {
        let tokenizer = tokenizer(&[], true);
        let turn = |text: &str| Turn { speaker: "A".into(), text: text.into(), ..Turn::default() };
        let traced = |template: &Template, turns: &[Turn]| {
            let prompter = Prompter::new(template, labels(&["joy", "fear"]), &tokenizer, ends(4000)).unwrap();
            let target = turns.len() - 1;
            let question = prompter.question(&tokenizer, &prompter.script(turns), target).unwrap();
            let mut all = prompter.origins(&tokenizer, turns, target, &question).unwrap();
            assert_eq!(all.len(), question.prompt.len());
            all.dedup();
            all.into_iter().flatten().map(|origin| (origin.turn, origin.word)).collect::<Vec<_>>()
        };
        let split = "base = \"dialogue\"\nquestion = \"{{ target.text | split | join(' ') }}: \"";
        let turns = [turn(""), turn(" no  way "), turn(" "), turn(" so \u{e000} ")];
        let once = [(1, 1..3), (1, 5..8), (3, 1..3), (3, 4..7)];
        let twice = [&once[..], &once[2..]].concat();
        assert_eq!(traced(&Template::from_toml(split).unwrap(), &turns), twice);
        let paper = Template { max_tokens: None, ..Template::built_in("dialoguellm").unwrap() };
        assert_eq!(traced(&paper, &turns[..2]), once[..2]);
        assert_eq!(traced(&paper, &turns[..3]), once[..2]);
        // an empty input has a form of its own, without context
        assert_eq!(traced(&paper, &[turns[1].clone(), turn("")]), []);
    }

    #[test]
    fn pairs_carry_loss_on_their_completion() {
        let tokenizer = tokenizer(&[], true);
        let pair =
            |prompt: &str, completion: &str| Pair { prompt: prompt.into(), completion: completion.into(), weight: 1.0 };
        let pairs = [pair("ab", "cd"), pair("", "x")];
        let taught = pair_groups(Framing::default(), &tokenizer, ends(9), &pairs, 1).unwrap();
        let ranges: Vec<_> = taught.groups.iter().map(|group| group.prompts[0].answer.clone()).collect();
        assert_eq!(ranges, [3..5, 1..2]);
        let long = [pair("ab", "cdefghijk")];
        let error = pair_groups(Framing::default(), &tokenizer, ends(9), &long, 1).unwrap_err();
        assert!(error.text().starts_with("pair 1 has 12 tokens, 9 are allowed"), "{error}");
    }
}
