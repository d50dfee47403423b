//! report.html: an evaluation to look at, in one file that needs no network, and report.json, the same for programs.
//!
//! Colours follow the reader's light or dark setting; what a plot shows is also said in words.

pub mod plots;

use dialoguellm::emotion::metrics::{Report, likeliest};
use dialoguellm::emotion::trust::{Answer, Bin, ece_of, reliability, risk_at, risk_coverage};
use dialoguellm::emotion::{Bulk, Classifier, Influence, Method, Why};
use dialoguellm::files::Dialogue;
use dialoguellm::{Error, Result};
use minijinja::{AutoEscape, Environment};
use plots::{reliability_plot, risk_plot, training_plots};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Bins of the reliability diagram.
const BINS: usize = 15;
/// Mistakes that are listed.
const MISTAKES: usize = 20;
/// Words that are named as what moved an answer most.
const WORDS: usize = 5;
/// Colours of labels (Tol, "muted" and "bright"), told apart by most people with a colour deficiency; they come again
/// past the last.
const COLORS: [&str; 9] =
    ["#9aa3ad", "#e6b94d", "#66b2d6", "#d0564a", "#4a6fb5", "#6f9e58", "#8e5fa8", "#d98fae", "#5fb3a1"];

/// What is shown.
pub struct Content<'a> {
    /// The model, adapter and data, in words.
    pub title: String,
    /// Turns a second and the like, in words.
    pub about: String,
    /// The figures.
    pub report: &'a Report,
    /// Names of the labels.
    pub names: &'a [String],
    /// What was scored.
    pub dialogues: &'a [Dialogue],
    /// Probabilities of every turn of every dialogue.
    pub probabilities: &'a [Vec<Vec<f32>>],
    /// The same before calibration; none where there is no calibration.
    pub uncalibrated: Option<(Report, Vec<Vec<Vec<f32>>>)>,
    /// Lines of the metrics that training left beside the adapter; none where there are none.
    pub metrics: &'a [Value],
    /// Whether what was said is shown.
    pub texts: bool,
    /// Why the answers of some turns are what they are, by dialogue and turn.
    pub why: HashMap<(usize, usize), Why>,
}

/// A turn with its answer.
struct Turn<'a> {
    dialogue: usize,
    number: usize,
    speaker: &'a str,
    text: &'a str,
    gold: Option<&'a str>,
    label: usize,
    p: f32,
    /// Label and probability before calibration.
    uncalibrated: Option<(usize, f32)>,
}

impl Content<'_> {
    /// Every turn.
    fn turns(&self) -> Vec<Turn<'_>> {
        let mut all = Vec::new();
        for (d, (dialogue, probabilities)) in self.dialogues.iter().zip(self.probabilities).enumerate() {
            for (t, (turn, p)) in dialogue.turns.iter().zip(probabilities).enumerate() {
                let label = likeliest(p);
                all.push(Turn {
                    dialogue: d,
                    number: t + 1,
                    speaker: &turn.speaker,
                    text: &turn.text,
                    gold: turn.emotion.as_deref(),
                    label,
                    p: p[label],
                    uncalibrated: self.uncalibrated.as_ref().map(|(_, all)| {
                        let label = likeliest(&all[d][t]);
                        (label, all[d][t][label])
                    }),
                });
            }
        }
        all
    }

    /// Finds out why the answers of the listed mistakes, or of every turn, are what they are. Errors: as [`Classifier::why`].
    pub fn explain(
        &mut self,
        classifier: &Classifier,
        method: Method,
        all: bool,
        bulk: &Bulk,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<()> {
        let turns = self.turns();
        let chosen: Vec<&Turn> = if all { turns.iter().collect() } else { self.most_confident_mistakes(&turns) };
        let mut why = HashMap::new();
        for (done, turn) in chosen.iter().enumerate() {
            progress(done, chosen.len());
            let shown = &self.dialogues[turn.dialogue].turns[..turn.number];
            let found = classifier.why(shown, Some(turn.label), method, bulk);
            let at = || format!("dialogue {}, turn {}", self.dialogues[turn.dialogue].id, turn.number);
            why.insert((turn.dialogue, turn.number), found.map_err(|error| error.at(at()))?);
        }
        self.why = why;
        Ok(())
    }

    fn wrong(&self, turn: &Turn) -> bool {
        turn.gold.is_some_and(|gold| gold != self.names[turn.label])
    }

    /// A label and its probability as an answer, where it can be right or wrong.
    fn answer(&self, turn: &Turn, (label, p): (usize, f32)) -> Option<Answer> {
        Some(Answer { confidence: f64::from(p), right: turn.gold? == self.names[label] })
    }

    /// Reliability, the same before calibration, and risk by coverage.
    fn trust(&self, turns: &[Turn]) -> (Vec<Bin>, Vec<Bin>, Vec<(f64, f64)>) {
        let answers: Vec<Answer> = turns.iter().filter_map(|turn| self.answer(turn, (turn.label, turn.p))).collect();
        let before: Vec<Answer> = turns.iter().filter_map(|turn| self.answer(turn, turn.uncalibrated?)).collect();
        (reliability(&answers, BINS), reliability(&before, BINS), risk_coverage(&answers))
    }

    /// What the page shows, for programs: `figures` with what is added here.
    pub fn json(&self, mut figures: Value) -> Value {
        let (bins, before, points) = self.trust(&self.turns());
        figures["ece_equal_mass"] = json!(ece_of(&bins));
        if let Some((report, _)) = &self.uncalibrated {
            figures["uncalibrated"] = json!({"nll": report.nll, "ece": report.ece, "ece_equal_mass": ece_of(&before)});
        }
        figures["reliability"] = json!(bins);
        let at = |coverage: f64| json!({"coverage": coverage, "risk": risk_at(&points, coverage)});
        figures["selective"] = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0].map(at).to_vec().into();
        figures
    }

    /// The page. Errors: INTERNAL.
    pub fn html(&self) -> Result<String> {
        let turns = self.turns();
        let (bins, before, points) = self.trust(&turns);
        page(
            include_str!("report/report.html"),
            json!({
                "title": self.title,
                "about": self.about,
                "texts": self.texts,
                "figures": self.figures(ece_of(&bins)),
                "labels": self.labels(),
                "confusion": self.confusion(),
                "plots": [reliability_plot(&bins, &before)?, risk_plot(&points)?],
                "training": training_plots(self.metrics)?,
                "mistakes": self.mistakes(&turns),
                "dialogues": self.pages(&turns),
            }),
        )
    }

    fn figures(&self, ece: f64) -> Value {
        let Report { n, accuracy, weighted_f1, macro_f1, nll, .. } = self.report;
        let figure = |name: &str, value: String| json!({"name": name, "value": value});
        json!([
            figure("turns", crate::out::thousands(*n as u64)),
            figure("accuracy", percent(*accuracy)),
            figure("weighted F1", percent(*weighted_f1)),
            figure("macro F1", percent(*macro_f1)),
            figure("NLL", format!("{nll:.3}")),
            figure("ECE, equal mass", percent(ece)),
        ])
    }

    fn labels(&self) -> Vec<Value> {
        let label = |(i, label): (usize, &dialoguellm::emotion::metrics::LabelReport)| {
            json!({
                "name": label.name, "precision": percent(label.precision), "recall": percent(label.recall),
                "f1": percent(label.f1), "share": (100.0 * label.f1).round(), "support": label.support,
                "color": COLORS[i % COLORS.len()],
            })
        };
        self.report.per_label.iter().enumerate().map(label).collect()
    }

    fn confusion(&self) -> Vec<Value> {
        let row = |(truth, counts): (usize, &Vec<usize>)| {
            let all = counts.iter().sum::<usize>().max(1) as f64;
            let cell = |(answer, &n): (usize, &usize)| json!({"n": n, "share": format!("{:.3}", n as f64 / all), "right": answer == truth});
            json!({"name": self.names[truth], "cells": counts.iter().enumerate().map(cell).collect::<Vec<_>>()})
        };
        self.report.confusion.iter().enumerate().map(row).collect()
    }

    fn turn(&self, turn: &Turn) -> Value {
        let shown = |text: &str| if self.texts { text.to_owned() } else { String::new() };
        json!({
            "dialogue": self.dialogues[turn.dialogue].id, "anchor": format!("d{}", turn.dialogue), "number": turn.number,
            "speaker": turn.speaker, "text": shown(turn.text), "gold": turn.gold.unwrap_or("-"),
            "label": self.names[turn.label], "index": turn.label, "p": format!("{:.2}", turn.p), "wrong": self.wrong(turn),
            "why": self.why.get(&(turn.dialogue, turn.number)).map(|why| self.explanation(turn, why)),
        })
    }

    /// What earlier turns did, and words where words may be shown.
    fn explanation(&self, turn: &Turn, why: &Why) -> Value {
        let said = &self.dialogues[turn.dialogue].turns[..turn.number];
        let all = || why.turns.iter().chain(&why.words);
        let largest = all().map(|influence| influence.change.abs()).filter(|c| c.is_finite()).fold(0.0, f32::max);
        let share = |influence: &Influence| influence.change.abs() / largest.max(f32::MIN_POSITIVE);
        let earlier = |influence: &Influence| {
            json!({
                "number": influence.turn + 1, "speaker": said[influence.turn].speaker, "change": signed(influence.change),
                "without": influence.without.map(|p| format!("{p:.2}")), "against": influence.change < 0.0,
                "share": (100.0 * share(influence)).round(),
            })
        };
        let mut value =
            json!({"label": self.names[why.label], "turns": why.turns.iter().map(earlier).collect::<Vec<_>>()});
        if self.texts && !why.words.is_empty() {
            let word = |influence: &Influence| {
                let (text, against) = (influence.said(said), influence.change < 0.0);
                json!({"text": text, "against": against, "share": format!("{:.2}", share(influence))})
            };
            let line = |words: &[Influence]| {
                let turn = words[0].turn;
                json!({"speaker": said[turn].speaker, "words": words.iter().map(word).collect::<Vec<_>>()})
            };
            value["said"] = why.words.chunk_by(|a, b| a.turn == b.turn).map(line).collect();
            let mut strongest: Vec<&Influence> = why.words.iter().collect();
            strongest.sort_by(|a, b| b.change.abs().total_cmp(&a.change.abs()));
            let named = |influence: &&Influence| format!("{} {}", influence.said(said), signed(influence.change));
            value["strongest"] = strongest.iter().take(WORDS).map(named).collect();
        }
        value
    }

    fn most_confident_mistakes<'a>(&self, turns: &'a [Turn<'a>]) -> Vec<&'a Turn<'a>> {
        let mut wrong: Vec<&Turn> = turns.iter().filter(|turn| self.wrong(turn)).collect();
        wrong.sort_by(|a, b| b.p.total_cmp(&a.p));
        wrong.truncate(MISTAKES);
        wrong
    }

    fn mistakes(&self, turns: &[Turn]) -> Vec<Value> {
        self.most_confident_mistakes(turns).into_iter().map(|turn| self.turn(turn)).collect()
    }

    fn pages(&self, turns: &[Turn]) -> Vec<Value> {
        let page = |turns: &[Turn]| {
            let marked = turns.iter().filter(|turn| turn.gold.is_some()).count();
            let wrong = turns.iter().filter(|turn| self.wrong(turn)).count();
            let dialogue = turns[0].dialogue;
            json!({
                "id": self.dialogues[dialogue].id, "anchor": format!("d{dialogue}"), "marked": marked,
                "right": marked - wrong, "turns": turns.iter().map(|turn| self.turn(turn)).collect::<Vec<_>>(),
            })
        };
        turns.chunk_by(|a, b| a.dialogue == b.dialogue).map(page).collect()
    }
}

/// A page of a template, which sees `context` and the style of all pages. Errors: INTERNAL.
pub fn page(template: &str, mut context: Value) -> Result<String> {
    context["style"] = json!(include_str!("report/page.css"));
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let page = environment.render_str(template, context);
    page.map_err(|error| Error::internal(format!("the report's template: {error}")))
}

fn percent(x: f64) -> String {
    format!("{:.2} %", 100.0 * x)
}

/// A change of ln p.
fn signed(change: f32) -> String {
    format!("{:+.2}", (100.0 * change).round() / 100.0 + 0.0) // no -0.00
}
