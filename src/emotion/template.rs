//! Templates as data: how a turn and what was said before it become a prompt.
//!
//! A template is two texts in minijinja's language, the context and the question; the prompt is one after the other.
//! Dropping old turns renders the context with fewer of them, so the question is never cut. Some templates are built in;
//! others are TOML files. Knows no tokens and no model.

use super::labels::Labels;
use super::similar::Similar;
use crate::files::dialogues::{Turn, speaker_numbers};
use crate::{Code, Error, Result};
use minijinja::value::Value;
use minijinja::{Environment, UndefinedBehavior, context};
use serde::{Deserialize, Serialize};

/// How many turns before or after the one in question a prompt shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Window {
    /// At most so many.
    Last(usize),
    /// All there are.
    All(All),
}

impl Window {
    /// Turns shown of so many.
    fn of(self, turns: usize) -> usize {
        match self {
            Window::Last(most) => most.min(turns),
            Window::All(All::All) => turns,
        }
    }
}

/// The word `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum All {
    /// `all`
    All,
}

/// What is computed, and weighed by the optimiser, together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grouping {
    /// Every turn on its own, as other programs train.
    Turn,
    /// All turns of a dialogue, so that what their prompts share is computed once.
    Dialogue,
}

/// What is cut where a prompt is longer than `max_tokens` or than the model's context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Truncation {
    /// Whole turns of the context, the oldest first; never the question or the answer.
    #[default]
    OldestContext,
    /// The end of a training sequence, answer included, as the paper's code does. Prompts that are only asked are not
    /// cut at `max_tokens`; at the model's context they lose their oldest turns.
    Right,
}

/// Whether the model's first token begins a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bos {
    /// If the tokenizer adds it by itself.
    #[default]
    Tokenizer,
    /// Yes.
    Always,
    /// No.
    Never,
}

/// Whether the model's end token ends a training sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Eos {
    /// Yes; room is made for it.
    Always,
    /// If the sequence is shorter than `max_tokens` (or than the model's context), as the paper's code does.
    IfFits,
    /// No.
    #[default]
    Never,
}

/// A turn with its label, shown before the conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demonstration {
    /// Who speaks.
    #[serde(default)]
    pub speaker: String,
    /// What is said.
    pub text: String,
    /// The label's name.
    pub label: String,
}

/// A template. Its texts see
/// - `labels`: the label words in order; `instruction`: the instruction, its own labels filled in
/// - `history`: previous turns, oldest first; `target`: the turn in question; `future`: later turns, where `ahead` shows
///   any; each has `speaker`, `number` (of the speaker, from 1, by first appearance), `text` and `visual` (or none)
/// - `demonstrations`: each has `speaker`, `text`, `label` (the word); those that were retrieved come last, the most similar
///   one at the end
///
/// A line that holds only a block (`{% if .. %}`) leaves nothing behind. Line ends inside a turn become spaces, so that a
/// turn cannot pretend to be several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// Its name.
    pub name: String,
    /// What the model is told to do; sees `labels` only.
    pub instruction: String,
    /// Everything before the question.
    pub context: String,
    /// The question; never cut.
    pub question: String,
    /// What follows the question; sees `label`, the word.
    pub answer: String,
    /// Previous turns shown: a number, or `all`.
    pub window: Window,
    /// Later turns shown, where the dialogue is over: a number, or `all`. A conversation that goes on has none. Default 0.
    #[serde(default = "none", skip_serializing_if = "is_none")]
    pub ahead: Window,
    /// Prompts that belong together in training.
    pub group: Grouping,
    /// What is cut from a prompt that is too long.
    #[serde(default)]
    pub truncation: Truncation,
    /// Whether a first token is added.
    #[serde(default)]
    pub bos: Bos,
    /// Whether an end token is added in training.
    #[serde(default)]
    pub eos: Eos,
    /// The longest prompt with its answer, in tokens; the model's context where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Labelled turns shown before the conversation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub demonstrations: Vec<Demonstration>,
    /// So many of `retrieval` are shown after these: those whose words are most like the turn's in question.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retrieved: usize,
    /// The labelled turns that are chosen from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retrieval: Vec<Demonstration>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn none() -> Window {
    Window::Last(0)
}

fn is_none(ahead: &Window) -> bool {
    *ahead == none()
}

const BUILT_IN: [(&str, &str); 6] = [
    ("dialoguellm", include_str!("templates/dialoguellm.toml")),
    ("dialogue", include_str!("templates/dialogue.toml")),
    ("instructerc", include_str!("templates/instructerc.toml")),
    ("instructerc-impact", include_str!("templates/instructerc-impact.toml")),
    ("instructerc-speaker", include_str!("templates/instructerc-speaker.toml")),
    ("debate-erc", include_str!("templates/debate-erc.toml")),
];

impl Template {
    /// A built-in template: `dialogue` (a conversation as one trunk), `dialoguellm` (the paper's code), `instructerc` with its
    /// tasks `instructerc-impact` and `instructerc-speaker`, or `debate-erc`. Errors: NOT_FOUND.
    pub fn built_in(name: &str) -> Result<Self> {
        Self::from_toml_table(built_in_table(name)?)
    }

    /// A template from TOML text. `base = "dialogue"` takes everything that is not said from that built-in template.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for what is missing, misspelt or of the wrong type; NOT_FOUND for an unknown base.
    pub fn from_toml(text: &str) -> Result<Self> {
        let table =
            text.parse().map_err(|error: toml::de::Error| Error::invalid(format!("template: {}", error.message())))?;
        Self::from_toml_table(table)
    }

    /// Whether it shows turns that come after the one in question.
    pub fn looks_ahead(&self) -> bool {
        !is_none(&self.ahead)
    }

    /// Whether it may show what is seen: its context or question speaks of `visual`.
    pub fn shows_visual(&self) -> bool {
        [&self.context, &self.question].into_iter().any(|text| text.contains("visual"))
    }

    /// As [`Template::from_toml`], from a parsed table, such as the `[template]` of a recipe.
    pub fn from_toml_table(mut table: toml::Table) -> Result<Self> {
        if let Some(base) = table.remove("base") {
            let name = base.as_str().ok_or_else(|| Error::invalid("template: `base` is not a text"))?;
            let mut whole = built_in_table(name)?;
            whole.extend(table);
            table = whole;
        }
        table.try_into().map_err(|error: toml::de::Error| Error::invalid(format!("template: {}", error.message())))
    }
}

fn built_in_table(name: &str) -> Result<toml::Table> {
    let names = || BUILT_IN.map(|(name, _)| name).join(", ");
    let found = BUILT_IN.iter().find(|(known, _)| *known == name);
    let (_, text) = found.ok_or_else(|| Error::not_found(format!("no template `{name}`; built in are {}", names())))?;
    text.parse().map_err(|_| Error::internal(format!("the built-in template {name} does not parse")))
}

/// The two parts of a prompt; the prompt is one directly after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Instruction, demonstrations, turns.
    pub context: String,
    /// The question.
    pub question: String,
}

/// A template made ready for a label set.
pub struct Renderer {
    environment: Environment<'static>,
    window: Window,
    ahead: Window,
    instruction: String,
    labels: Vec<Value>,
    demonstrations: Vec<Value>,
    retriever: Option<Retriever>,
    answers: Vec<String>,
}

/// The turns of a dialogue as a template's texts see them.
pub struct Script {
    turns: Vec<Value>,
    /// Of a dialogue to learn from: what is retrieved for a turn is not itself, and is of this label where there is one.
    learned: Option<Vec<Option<usize>>>,
}

/// Demonstrations that are chosen for every turn.
struct Retriever {
    shown: usize,
    similar: Similar,
    from: Vec<Retrievable>,
}

/// One that may be chosen.
struct Retrievable {
    speaker: String,
    text: String,
    label: usize,
    value: Value,
}

impl Renderer {
    /// Parses the texts and renders what is the same in every prompt.
    ///
    /// # Errors
    /// INVALID_ARGUMENT naming the text and line that minijinja refuses, or two labels with the same answer; NOT_FOUND
    /// for a demonstration's label.
    pub fn new(template: &Template, labels: &Labels) -> Result<Self> {
        let environment = environment(template)?;
        let words: Vec<Value> = labels.words().iter().map(Value::from).collect();
        let instruction = render(&environment, "instruction", context! { labels => words })?;
        let answers: Vec<String> = labels
            .words()
            .iter()
            .map(|word| render(&environment, "answer", context! { label => word }))
            .collect::<Result<_>>()?;
        if let Some(twice) = (1..answers.len()).find(|&i| answers[..i].contains(&answers[i])) {
            let name = &labels.names()[twice];
            return Err(Error::invalid(format!("template: the answer of label `{name}` is that of another label too")));
        }
        let any = template.retrieved > 0 || !template.demonstrations.is_empty();
        if any && !shows_demonstrations(&environment)? {
            let text =
                format!("template {}: there are demonstrations, and neither context nor question", template.name);
            return Err(Error::invalid(text + " shows `demonstrations`"));
        }
        let shown = template.demonstrations.iter().map(|shown| demonstration(shown, labels).map(|(_, value)| value));
        let demonstrations = shown.collect::<Result<_>>()?;
        let retriever = (template.retrieved > 0).then(|| Retriever::new(template, labels)).transpose()?;
        Ok(Self {
            environment,
            window: template.window,
            ahead: template.ahead,
            instruction,
            labels: words,
            demonstrations,
            retriever,
            answers,
        })
    }

    /// The text that follows the question, for every label.
    pub fn answers(&self) -> &[String] {
        &self.answers
    }

    /// A dialogue made ready, once for all its turns.
    pub fn script(&self, turns: &[Turn]) -> Script {
        let value = |(turn, speaker_number): (&Turn, usize)| {
            let Turn { speaker, text, visual, .. } = turn;
            let (number, visual) = (1 + speaker_number, visual.as_deref().map(one_line));
            context! { speaker => one_line(speaker), number, text => one_line(text), visual }
        };
        Script { turns: turns.iter().zip(speaker_numbers(turns)).map(value).collect(), learned: None }
    }

    /// Previous turns that the window shows of turn `target`.
    pub fn history(&self, target: usize) -> usize {
        self.window.of(target)
    }

    /// Whether later turns are shown.
    pub fn looks_ahead(&self) -> bool {
        !is_none(&self.ahead)
    }

    /// The prompt that asks about turn `target`, without the oldest `skip` turns of its window.
    ///
    /// # Errors
    /// INVALID_ARGUMENT where minijinja refuses; INTERNAL for a turn that is not there.
    pub fn prompt(&self, script: &Script, target: usize, skip: usize) -> Result<Parts> {
        let turns = &script.turns;
        let shown = self.history(target).saturating_sub(skip);
        let (Some(turn), Some(history)) = (turns.get(target), turns.get(target - shown..target)) else {
            return Err(Error::internal(format!("turn {target} of {} was asked", turns.len())));
        };
        let later = &turns[target + 1..];
        let learned = script.learned.as_ref().map(|only| only.get(target).copied().flatten());
        let retrieved = self.retriever.iter().flat_map(|retriever| retriever.retrieve(turn, learned));
        let demonstrations: Vec<Value> = self.demonstrations.iter().cloned().chain(retrieved).collect();
        let variables = context! {
            instruction => self.instruction,
            labels => self.labels,
            demonstrations,
            history => history,
            target => turn,
            future => &later[..self.ahead.of(later.len())],
        };
        let context = render(&self.environment, "context", variables.clone())?;
        Ok(Parts { context, question: render(&self.environment, "question", variables)? })
    }
}

fn shows_demonstrations(environment: &Environment) -> Result<bool> {
    let shows = |name: &str| {
        let part = environment.get_template(name).map_err(|error| Error::internal(format!("template: {error}")))?;
        Ok::<_, Error>(part.undeclared_variables(false).contains("demonstrations"))
    };
    Ok(shows("context")? || shows("question")?)
}

/// A demonstration's label, and the demonstration as the texts see it.
fn demonstration(shown: &Demonstration, labels: &Labels) -> Result<(usize, Value)> {
    let Demonstration { speaker, text, label } = shown;
    let index = labels.index(label).map_err(|error| error.at("template: demonstrations"))?;
    Ok((index, context! { speaker => one_line(speaker), text => one_line(text), label => labels.words()[index] }))
}

impl Script {
    /// The same of a dialogue to learn from: for no turn itself is retrieved, and where `only` has a label nothing of another.
    #[must_use]
    pub fn learned(self, only: Vec<Option<usize>>) -> Self {
        Self { learned: Some(only), ..self }
    }
}

impl Retriever {
    fn new(template: &Template, labels: &Labels) -> Result<Self> {
        let Template { name, retrieved, retrieval, .. } = template;
        if retrieval.is_empty() {
            let text = format!("template {name}: {retrieved} demonstrations are to be retrieved, `retrieval` has none");
            return Err(Error::invalid(text));
        }
        let retrievable = |shown: &Demonstration| {
            let (label, value) = demonstration(shown, labels)?;
            Ok(Retrievable { speaker: one_line(&shown.speaker), text: one_line(&shown.text), label, value })
        };
        let from: Vec<Retrievable> = retrieval.iter().map(retrievable).collect::<Result<_>>()?;
        let similar = Similar::new(from.iter().map(|shown| shown.text.as_str()));
        Ok(Self { shown: *retrieved, similar, from })
    }

    /// Those for a turn, the most similar last; of one that is learned from, those of the label it is restricted to, if it is. The
    /// turn itself, or another with the same words of the same speaker, would give away what is to be learned.
    fn retrieve(&self, turn: &Value, learned: Option<Option<usize>>) -> Vec<Value> {
        let said =
            |name| turn.get_attr(name).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
        let (speaker, text) = (said("speaker"), said("text"));
        let itself = |shown: &Retrievable| shown.speaker == speaker && shown.text == text;
        let may = |number: usize| {
            let shown = &self.from[number];
            learned.is_none_or(|only| only.is_none_or(|label| shown.label == label) && !itself(shown))
        };
        self.similar
            .to(&text, self.shown, may)
            .into_iter()
            .rev()
            .map(|number| self.from[number].value.clone())
            .collect()
    }
}

/// Line ends become spaces.
fn one_line(text: &str) -> String {
    text.replace("\r\n", " ").replace(['\r', '\n'], " ")
}

fn environment(template: &Template) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_keep_trailing_newline(true);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let texts = [
        ("instruction", &template.instruction),
        ("context", &template.context),
        ("question", &template.question),
        ("answer", &template.answer),
    ];
    for (name, text) in texts {
        environment.add_template_owned(name, text.clone()).map_err(|error| refused(name, &error))?;
    }
    Ok(environment)
}

fn render(environment: &Environment, name: &str, variables: Value) -> Result<String> {
    let text = environment.get_template(name).and_then(|template| template.render(variables));
    text.map_err(|error| refused(name, &error))
}

/// minijinja's refusal by kind and line; its details may quote a turn.
fn refused(name: &str, error: &minijinja::Error) -> Error {
    let line = error.line().unwrap_or(1);
    Error::new(Code::InvalidArgument, format!("template: `{name}`, line {line}: {}", error.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::dialogues::SPEAKER_LABELS;

    fn turn(speaker: &str, text: &str) -> Turn {
        Turn { speaker: speaker.into(), text: text.into(), ..Turn::default() }
    }

    fn prompt(template: &Template, labels: &Labels, turns: &[Turn], target: usize, skip: usize) -> String {
        let renderer = Renderer::new(template, labels).unwrap();
        let parts = renderer.prompt(&renderer.script(turns), target, skip).unwrap();
        parts.context + &parts.question
    }

    fn paper(turns: &[Turn], target: usize) -> String {
        prompt(&Template::built_in("dialoguellm").unwrap(), &Labels::meld_as_in_the_paper(), turns, target, 0)
    }

    const INSTRUCTION: &str = "Given the Video Description and Context, detect the emotion of the input, and assign an accuracy \
         label from ['happiness', 'anger', 'fear', 'sadness', 'disgust', 'surprise', 'neutral'].";
    const FIRST: &str = "Please perform Classification task. Given the sentence, assign the correct label. Return label only without any \
         other text.\n            ### Instruction:\n            ";

    #[test]
    fn the_papers_prompt_with_a_context_is_the_codes_byte_for_byte() {
        let want = format!(
            "{FIRST}{INSTRUCTION}\n\n            ### Context:\n            You  did {{{{ it }}}}?\n\n            ### Input:\n            \
             Yes & \"no\"\n\n            ### Response:\n            "
        );
        let turns = [turn("A", "old"), turn("B", "You  did {{ it }}?"), turn("A", "Yes & \"no\"")];
        assert_eq!(paper(&turns, 2), want);
    }

    #[test]
    fn the_papers_prompt_of_a_first_turn_has_no_context_block() {
        let want = format!(
            "{FIRST}{INSTRUCTION}\n\n            ### Input:\n            Hm\n\n            ### Response:\n            "
        );
        assert_eq!(paper(&[turn("A", "Hm")], 0), want);
    }

    #[test]
    fn the_papers_prompt_with_all_fields_empty_has_465_characters() {
        // with a context block: counted on the released code's f-string
        let with_context = paper(&[turn("A", "c"), turn("A", "i")], 1);
        assert_eq!(with_context.chars().count(), 465 + 2);
    }

    #[test]
    fn the_papers_prompt_of_an_empty_input_is_the_alpaca_form() {
        let want = format!(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n        \
             ### Instruction:\n        {INSTRUCTION}\n\n        ### Response:\n        "
        );
        assert_eq!(paper(&[turn("A", "x"), turn("A", "")], 1), want);
    }

    #[test]
    fn the_papers_prompt_shows_demonstrations_and_a_visual_description_between_instruction_and_context() {
        let mut template = Template::built_in("dialoguellm").unwrap();
        let demonstration =
            |text: &str, label: &str| Demonstration { speaker: String::new(), text: text.into(), label: label.into() };
        template.demonstrations = vec![demonstration("Oh!", "surprise"), demonstration("Yay", "joy")];
        let target = Turn { visual: Some("a nod".into()), ..turn("A", "Hm") };
        let want = format!(
            "{FIRST}{INSTRUCTION}\n\n            ### Video Description:\n            a nod\n\n            ### Sample:[\n            \
             Instruction:Oh!\n            Input:surprise\n            Instruction:Yay\n            Input:happiness\n            ]\n\n            \
             ### Input:\n            Hm\n\n            ### Response:\n            "
        );
        assert_eq!(prompt(&template, &Labels::meld_as_in_the_paper(), &[target], 0, 0), want);
    }

    #[test]
    fn later_turns_are_shown_as_far_as_ahead_says_and_not_where_there_are_none() {
        let shown = |ahead: &str, target| {
            let text = format!(
                "base = \"dialogue\"\nahead = {ahead}\ncontext = \"{{% for turn in history + [target] + future %}}{{{{ turn.text }}}} {{% endfor %}}\"\n\
                 question = \"{{{{ target.text }}}}?\""
            );
            prompt(&Template::from_toml(&text).unwrap(), &Labels::meld(), &seven(), target, 0)
        };
        assert_eq!(shown("\"all\"", 2), "t0 t1 t2 t3 t4 t5 t6 t2?");
        assert_eq!(shown("2", 2), "t0 t1 t2 t3 t4 t2?");
        assert_eq!(shown("2", 5), "t0 t1 t2 t3 t4 t5 t6 t5?");
        assert_eq!(shown("0", 2), "t0 t1 t2 t2?");
        assert_eq!(shown("\"all\"", 6), "t0 t1 t2 t3 t4 t5 t6 t6?");
    }

    #[test]
    fn a_template_that_would_not_show_its_demonstrations_is_refused() {
        let mut template = Template::built_in("debate-erc").unwrap();
        template.demonstrations = vec![Demonstration { speaker: "A".into(), text: "Oh!".into(), label: "joy".into() }];
        let error = Renderer::new(&template, &Labels::meld()).err().unwrap();
        assert!(error.text().contains("debate-erc") && error.text().contains("shows `demonstrations`"), "{error:?}");
    }

    fn dialogue(window: &str) -> Template {
        Template::from_toml(&format!("base = \"dialogue\"\nwindow = {window}")).unwrap()
    }

    fn seven() -> Vec<Turn> {
        (0..7).map(|i| turn(["Ann", "Bo"][i % 2], &format!("t{i}"))).collect()
    }

    const HEAD: &str =
        "Classify the emotion of the last utterance as neutral, joy, surprise, anger, sadness, disgust or fear.\n";

    #[test]
    fn the_dialogue_prompt_with_a_window_of_five_is_as_specified() {
        let want = format!("{HEAD}Bo: t1\nAnn: t2\nBo: t3\nAnn: t4\nBo: t5\nAnn: t6\nEmotion of Ann:");
        assert_eq!(prompt(&dialogue("5"), &Labels::meld(), &seven(), 6, 0), want);
        let want = format!("{HEAD}Ann: t0\nEmotion of Ann:");
        assert_eq!(prompt(&dialogue("5"), &Labels::meld(), &seven(), 0, 0), want);
    }

    #[test]
    fn a_question_may_repeat_the_utterance() {
        let question = r#"Emotion of {{ target.speaker }} in "{{ target.text | split | join(' ') }}":"#;
        let template = Template { question: question.into(), ..dialogue("1") };
        let want = format!("{HEAD}Ann: t0\nBo: t1\nEmotion of Bo in \"t1\":");
        assert_eq!(prompt(&template, &Labels::meld(), &seven(), 1, 0), want);
    }

    #[test]
    fn runs_of_white_space_are_one_space_in_the_dialogue_prompt() {
        let turns = [turn("Ann", " No.  No!\nNo "), turn("Bo", "a \t b")];
        let want = format!("{HEAD}Ann: No. No! No\nBo: a b\nEmotion of Bo:");
        assert_eq!(prompt(&dialogue("5"), &Labels::meld(), &turns, 1, 0), want);
    }

    #[test]
    fn with_the_whole_history_a_context_begins_the_next_one() {
        let renderer = Renderer::new(&dialogue("\"all\""), &Labels::meld()).unwrap();
        let turns = renderer.script(&seven());
        let contexts: Vec<String> = (0..7).map(|t| renderer.prompt(&turns, t, 0).unwrap().context).collect();
        assert!(contexts.windows(2).all(|pair| pair[1].starts_with(&pair[0])));
    }

    #[test]
    fn skipping_drops_the_oldest_turns_and_never_the_target() {
        let want = format!("{HEAD}Bo: t5\nAnn: t6\nEmotion of Ann:");
        assert_eq!(prompt(&dialogue("5"), &Labels::meld(), &seven(), 6, 4), want);
        let want = format!("{HEAD}Ann: t6\nEmotion of Ann:");
        assert_eq!(prompt(&dialogue("5"), &Labels::meld(), &seven(), 6, 99), want);
    }

    #[test]
    fn the_dialogue_prompt_shows_visual_descriptions_where_there_are_any() {
        let turns = [Turn { visual: Some("waves".into()), ..turn("Ann", "a") }, turn("Bo", "b")];
        let want = format!("{HEAD}Ann: a [waves]\nBo: b\nEmotion of Bo:");
        assert_eq!(prompt(&dialogue("1"), &Labels::meld(), &turns, 1, 0), want);
    }

    /// InstructERC's label words for MELD, in its order.
    fn instructerc_labels() -> Labels {
        let names = ["neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"];
        let words = ["neutral", "surprise", "fear", "sad", "joyful", "disgust", "angry"];
        Labels::with_words(names.map(String::from).to_vec(), words.map(String::from).to_vec()).unwrap()
    }

    const EXPERT: &str = "Now you are expert of sentiment and emotional analysis. The following conversation noted between '### ###' \
                          involves several speakers. ### ";
    const WORDS: &str = "neutral, surprise, fear, sad, joyful, disgust, angry";

    /// Checked by hand against strings of the released code.
    #[test]
    fn instructercs_three_prompts_are_its_codes_byte_for_byte() {
        let turns = [turn("Ann", "Is it  you?"), turn("Bo", "It's \"me\"."), turn("Ann", "No!")];
        let of =
            |name: &str, target| prompt(&Template::built_in(name).unwrap(), &instructerc_labels(), &turns, target, 0);
        let main = format!(
            "{EXPERT}\t Speaker_0:\"Is it  you?\"\t Speaker_1:\"It's \"me\".\"\t Speaker_0:\"No!\" ### Please select the emotional label of \
             < Speaker_0:\"No!\"> from <{WORDS}>:"
        );
        assert_eq!(of("instructerc", 2), main);
        let first = format!(
            "{EXPERT}\t Speaker_0:\"Is it  you?\" ### Please select the emotional label of < Speaker_0:\"Is it  you?\"> from <{WORDS}>:"
        );
        assert_eq!(of("instructerc", 0), first);
        let impact = format!(
            "{EXPERT}\t Speaker_0:\"Is it  you?\"\t Speaker_1:\"It's \"me\".\"###Based on the above historical utterances, next utterance \
             is spoken by <0>, please predict the emotion states of <0> from <{WORDS}>:"
        );
        assert_eq!(of("instructerc-impact", 2), impact);
        assert_eq!(of("instructerc-impact", 0), first);
        let template = Template::built_in("instructerc-speaker").unwrap();
        let labels = Labels::new(SPEAKER_LABELS.map(String::from).to_vec()).unwrap();
        let speaker = "Now you are expert of sentiment and emotional analysis. Please select the Speaker label of the utterance \
                       <Speaker: No!> from <Speaker_0, Speaker_1, Speaker_2, Speaker_3, Speaker_4, Speaker_5, Speaker_6, Speaker_7, \
                       Speaker_8>:";
        assert_eq!(prompt(&template, &labels, &turns, 2, 0), speaker);
    }

    /// Checked by hand against the released template and its rendering of a dialogue.
    #[test]
    fn debate_ercs_prompt_is_its_codes_byte_for_byte_and_drops_the_oldest_lines_past_800_characters() {
        let template = Template::built_in("debate-erc").unwrap();
        let of = |turns: &[Turn], target| prompt(&template, &Labels::meld(), turns, target, 0);
        let around = |lines: &str, speaker: &str, text: &str| {
            format!(
                "You are an expert in emotion recognition in conversations (ERC).\n\nConversation (the target utterance is marked with \
                 [TARGET]):\n{lines}\n\nTask: Identify the emotion of the target utterance spoken by {speaker}.\nTarget utterance: \
                 \"{text}\"\n\nAnswer with exactly one emotion label from: neutral, joy, surprise, anger, sadness, disgust, fear.\nAnswer:"
            )
        };
        let turns = [turn("Ann", "Is it  you?"), turn("Bo", "It's me.")];
        assert_eq!(of(&turns, 1), around("Ann: Is it  you?\nBo: It's me. [TARGET]", "Bo", "It's me."));
        assert_eq!(of(&turns, 0), around("Ann: Is it  you? [TARGET]", "Ann", "Is it  you?"));
        // two lines of 388 and 395 characters, their ends, and 15 of the last are 800; with one more the oldest does not fit
        let lines =
            |n: usize, m: usize| [turn("Ann", &"a".repeat(n)), turn("Ann", &"b".repeat(m)), turn("Ann", "\u{e4}")];
        let (a, b) = ("a".repeat(383), "b".repeat(390));
        let whole = format!("Ann: {a}\nAnn: {b}\nAnn: \u{e4} [TARGET]");
        assert_eq!(whole.chars().count(), 800);
        assert_eq!(of(&lines(383, 390), 2), around(&whole, "Ann", "\u{e4}"));
        assert_eq!(of(&lines(384, 390), 2), around(&format!("Ann: {b}\nAnn: \u{e4} [TARGET]"), "Ann", "\u{e4}"));
        // what does not fit ends it: an older line that would fit stays out too
        assert_eq!(of(&lines(1, 790), 2), around("Ann: \u{e4} [TARGET]", "Ann", "\u{e4}"));
        let long = "c".repeat(900);
        assert_eq!(of(&[turn("Ann", "a"), turn("Bo", &long)], 1), around(&format!("Bo: {long} [TARGET]"), "Bo", &long));
    }

    #[test]
    fn answers_are_label_words_as_the_template_writes_them() {
        let answers =
            |name| Renderer::new(&Template::built_in(name).unwrap(), &Labels::meld_as_in_the_paper()).unwrap().answers;
        assert_eq!(answers("dialoguellm")[0], "happiness");
        assert_eq!(answers("dialogue")[0], " happiness");
    }

    #[test]
    fn a_turn_cannot_pretend_to_be_two() {
        let text = prompt(&dialogue("0"), &Labels::meld(), &[turn("Ann", "a\nBo: b\r\nc")], 0, 0);
        assert!(text.contains("\nAnn: a Bo: b c\n"), "{text}");
    }

    #[test]
    fn speakers_can_be_numbers() {
        let mut template = dialogue("\"all\"");
        template.context = "{% for turn in history %}{{ turn.number }}{% endfor %}{{ target.number }} ".into();
        let turns = ["x", "y", "x", "z"].map(|speaker| turn(speaker, "t"));
        assert!(prompt(&template, &Labels::meld(), &turns, 3, 0).starts_with("1213 "));
    }

    #[test]
    fn a_misspelt_variable_is_refused_by_text_and_line_without_the_turn() {
        let mut template = dialogue("0");
        template.context = "\n{{ target.test + target.text }}".into();
        let renderer = Renderer::new(&template, &Labels::meld()).unwrap();
        let error = renderer.prompt(&renderer.script(&[turn("secret", "secret")]), 0, 0).unwrap_err();
        assert_eq!(error.to_string(), "template: `context`, line 2: invalid operation");
    }

    #[test]
    fn a_template_file_is_checked_by_name_and_type() {
        let text = |toml| Template::from_toml(toml).unwrap_err().to_string();
        assert!(text("base = \"dialogue\"\nwindows = 3").contains("windows"));
        assert!(text("base = \"dialog\"").contains("built in are dialoguellm, dialogue, instructerc"));
        assert!(text("name = \"x\"").contains("instruction"));
    }

    #[test]
    fn a_template_survives_json() {
        let template = Template::built_in("dialoguellm").unwrap();
        let text = serde_json::to_string(&template).unwrap();
        assert_eq!(serde_json::from_str::<Template>(&text).unwrap(), template);
    }
}
