//! `study`: one recipe with what is varied in it, run after run, and a table of all of them with means over seeds.
//!
//! Every run is `train`, and `eval` where another split than dev is measured, in processes of their own, in a folder of its
//! own, so a study that was stopped or killed goes on where it was: runs that are done stay, and one that was training is
//! resumed, to the same bits.

use crate::args::{ModelArgs, Style, cancelled_by_ctrl_c};
use crate::openings;
use crate::out;
use crate::report::page;
use crate::report::plots::spread_plot;
use clap::Args;
use dialoguellm::emotion::{Labels, Recipe};
use dialoguellm::files::dialogues::{Source, Split};
use dialoguellm::{Cancel, Code, Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Run a recipe with one thing and another varied, over several seeds, and tabulate what comes of it.
///
/// The recipe has a table more than those of `train`: [study] with seeds = [0, 1, 2], split = "dev" or "test" (what is
/// measured), and what is varied. [study.vary] gives fields lists of values, of which every combination is run:
/// window = [0, 1, "all"]. [[study.variant]] gives runs one by one: name, set = { field = value }, and train = false for
/// the model as it is. OUT holds a folder for each run, table.json, table.md and study.html; the same command goes on
/// with what is not done.
#[derive(Args)]
pub struct Study {
    /// A recipe with a table [study]
    #[arg(value_name = "RECIPE")]
    recipe: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// KIND:PATH, such as meld:DIR or jsonl:DIR (README.md lists the kinds)
    #[arg(long, value_name = "SPEC")]
    data: String,
    /// The folder for runs and results
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Open the test split (split = "test"), and add a line to FILE for every run
    #[arg(long = "final", value_name = "FILE")]
    log: Option<PathBuf>,
    /// Any field of the recipe, such as train.max_steps=20, in every run
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    settings: Vec<String>,
}

/// The table `[study]`.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Plan {
    seeds: Vec<u64>,
    split: String,
    vary: toml::Table,
    variant: Vec<Variant>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { seeds: vec![0], split: "dev".into(), vary: toml::Table::new(), variant: Vec::new() }
    }
}

/// A row of the results.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    name: String,
    #[serde(default)]
    set: toml::Table,
    #[serde(default = "yes")]
    train: bool,
}

fn yes() -> bool {
    true
}

/// The folder in OUT for what runs with the same prompts and `frozen_once` share.
const FROZEN: &str = "frozen";

/// What `train` says of a run, in its folder.
const SUMMARY: &str = "train.json";

/// What a row shows of every run: its head, and where report.json or train.json has it.
const FIGURES: [(&str, &str, f64); 6] = [
    ("accuracy %", "accuracy", 100.0),
    ("weighted F1 %", "weighted_f1", 100.0),
    ("macro F1 %", "macro_f1", 100.0),
    ("NLL", "nll", 1.0),
    ("ECE, equal mass %", "ece_equal_mass", 100.0),
    ("training s", "training_seconds", 1.0),
];

impl Study {
    pub fn run(&self, style: Style) -> Result<()> {
        let text = std::fs::read_to_string(&self.recipe).map_err(|error| Error::io("read", &self.recipe, &error))?;
        let (plan, base) = parse(&text).map_err(|error| error.at(self.recipe.display()))?;
        let split: Split = plan.split.parse()?;
        openings::check(&self.data.parse()?, split, self.log.as_deref())?;
        let variants = plan.variants().map_err(|error| error.at(self.recipe.display()))?;
        // what is wrong in one variant is found out before the first one runs
        for variant in &variants {
            Recipe::with(&base, &self.settings(variant, 0))
                .map_err(|error| error.at(format!("{}, variant {}", self.recipe.display(), variant.name)))?;
        }
        self.begin(&text)?;
        out::file(&self.out.join("recipe.toml"), &base)?;
        let cancel = cancelled_by_ctrl_c()?;
        let mut rows: Vec<(String, Vec<Value>)> = Vec::new();
        for variant in &variants {
            let seeds = if variant.train { &plan.seeds[..] } else { &plan.seeds[..1] };
            rows.push((variant.name.clone(), Vec::new()));
            for seed in seeds {
                let run = self.out.join("runs").join(folder_name(&variant.name)).join(format!("seed-{seed}"));
                let result = self.one(variant, *seed, &run, &base, split, style, &cancel)?;
                if let Some((_, results)) = rows.last_mut() {
                    results.push(result);
                }
                self.write(&rows, split)?;
            }
        }
        let frozen = self.out.join(FROZEN);
        if frozen.exists() {
            std::fs::remove_dir_all(&frozen).map_err(|error| Error::io("remove", &frozen, &error))?;
        }
        match style.json {
            true => out::json(&as_json(&rows)),
            false => out::text(&markdown(&rows)),
        }
    }

    /// OUT is new, or of the same study.
    fn begin(&self, text: &str) -> Result<()> {
        std::fs::create_dir_all(&self.out).map_err(|error| Error::io("make", &self.out, &error))?;
        let asked = json!({"recipe": text, "model": self.model.model, "data": self.data, "set": self.settings});
        let path = self.out.join("study.json");
        match std::fs::read_to_string(&path) {
            Ok(before) if serde_json::from_str(&before).is_ok_and(|before: Value| before == asked) => Ok(()),
            Ok(_) => Err(Error::invalid(format!(
                "{} holds another study (study.json: recipe, model, data or --set differ); name a new folder",
                self.out.display()
            ))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => out::file(&path, &format!("{asked}\n")),
            Err(error) => Err(Error::io("read", &path, &error)),
        }
    }

    /// The settings of a run; of two for a field the last one counts.
    fn settings(&self, variant: &Variant, seed: u64) -> Vec<String> {
        let own: Vec<String> = variant.set.iter().map(|(field, value)| format!("{field}={value}")).collect();
        [&[format!("train.seed={seed}")], &own[..], &self.settings].concat()
    }

    /// The figures of a run, which is made unless it is there.
    fn one(
        &self,
        variant: &Variant,
        seed: u64,
        run: &Path,
        base: &str,
        split: Split,
        style: Style,
        cancel: &Cancel,
    ) -> Result<Value> {
        let (report, summary) = (run.join("report").join("report.json"), run.join(SUMMARY));
        std::fs::create_dir_all(run).map_err(|error| Error::io("make", run, &error))?;
        if !(report.exists() && (summary.exists() || !variant.train)) {
            if !style.quiet {
                eprintln!("{}, seed {seed}", variant.name);
            }
            let settings = self.settings(variant, seed);
            let ask = match variant.train {
                true => self.train(run, &settings, split, style, cancel)?,
                false => self.untrained(run, &Recipe::with(base, &settings)?)?,
            };
            if !report.exists() {
                let fixed = ["--data", &self.data, "--split", split.name()].map(OsString::from);
                let mut to = vec![OsString::from("--report"), run.join("report").into()];
                to.extend(self.log.iter().flat_map(|log| ["--final".into(), log.clone().into()]));
                self.child("eval", &[&fixed[..], &ask, &to].concat(), style, cancel)?;
            }
        }
        let mut result = read_json(&report)?;
        result["seed"] = json!(seed);
        if variant.train {
            result["training_seconds"] = read_json(&summary)?["seconds"].clone();
        }
        Ok(result)
    }

    /// Trains, or goes on, and writes the report where dev is measured, which training scores anyway; the arguments that
    /// `eval` needs.
    fn train(
        &self,
        run: &Path,
        settings: &[String],
        split: Split,
        style: Style,
        cancel: &Cancel,
    ) -> Result<Vec<OsString>> {
        let adapter = run.join("adapter");
        let ask = vec!["--adapter".into(), adapter.clone().into()];
        let summary = run.join(SUMMARY);
        if summary.exists() {
            return Ok(ask);
        }
        let mut all: Vec<OsString> =
            vec!["--data".into(), self.data.clone().into(), "--out".into(), adapter.clone().into()];
        all.extend(["--recipe".into(), self.out.join("recipe.toml").into()]);
        all.extend(settings.iter().flat_map(|setting| ["--set".into(), setting.into()]));
        all.extend(["--frozen".into(), self.out.join(FROZEN).into()]);
        if split == Split::Dev {
            all.extend(["--report".into(), run.join("report").into()]);
        }
        match (adapter.join("state.json").exists(), adapter.exists()) {
            (true, _) => all.push("--resume".into()),
            // done, but killed before its figures were written: done again, as its time is not known
            (false, true) => {
                std::fs::remove_dir_all(&adapter).map_err(|error| Error::io("remove", &adapter, &error))?
            }
            (false, false) => {}
        }
        let said = self.child("train", &all, style, cancel)?;
        out::file(&summary, &said)?;
        Ok(ask)
    }

    /// What `eval` needs to ask the model as it is: the recipe's template and labels.
    fn untrained(&self, run: &Path, recipe: &Recipe) -> Result<Vec<OsString>> {
        let (mut template, labels) = (recipe.template(None)?, recipe.own_labels()?);
        if recipe.emotion.shots + recipe.emotion.retrieved > 0 {
            let train = self.data.parse::<Source>()?.dialogues(Split::Train, None, &Cancel::default())?;
            let labels = labels.clone().map_or_else(|| Labels::of(&train), Ok)?;
            template = recipe.shown(&template, &train, &labels).0;
        }
        let file = run.join("template.toml");
        let text = toml::to_string(&template);
        out::file(&file, &text.map_err(|error| Error::internal(format!("a template as TOML: {error}")))?)?;
        let mut all: Vec<OsString> = vec!["--template".into(), file.into()];
        if let Some(labels) = labels {
            all.extend(["--labels".into(), labels.names().join(",").into()]);
            all.extend(["--words".into(), labels.words().join(",").into()]);
        }
        Ok(all)
    }

    /// What a command of this program says, run in a process of its own.
    fn child(&self, name: &str, arguments: &[OsString], style: Style, cancel: &Cancel) -> Result<String> {
        let refused = |error: std::io::Error| Error::internal(format!("cannot start this program again: {error}"));
        let mut command = Command::new(std::env::current_exe().map_err(refused)?);
        command.arg(name).args(self.model.arguments()).args(arguments).arg("--json");
        if style.quiet {
            command.arg("--quiet");
        }
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().map_err(refused)?;
        cancel.check()?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => {
                let known = [
                    Code::InvalidArgument,
                    Code::NotFound,
                    Code::Io,
                    Code::BadFile,
                    Code::Unsupported,
                    Code::OutOfMemory,
                    Code::ContextFull,
                    Code::Cancelled,
                    Code::DeviceLost,
                    Code::Numeric,
                ];
                let code = known.into_iter().find(|code| Some(*code as i32) == output.status.code());
                let code = code.unwrap_or(Code::Internal);
                Err(Error::new(code, format!("`{name}` of a run failed, as it says above ({})", output.status)))
            }
        }
    }

    /// Table and page of what is done so far.
    fn write(&self, rows: &[(String, Vec<Value>)], split: Split) -> Result<()> {
        out::file(&self.out.join("table.json"), &format!("{}\n", as_json(rows)))?;
        out::file(&self.out.join("table.md"), &markdown(rows))?;
        let runs: Vec<String> = rows
            .iter()
            .flat_map(|(name, results)| {
                results.iter().map(move |result| format!("runs/{}/seed-{}", folder_name(name), result["seed"]))
            })
            .collect();
        let points: Vec<(String, f64, f64)> = rows
            .iter()
            .map(|(name, results)| {
                let (mean, deviation) = spread(results, "weighted_f1");
                (name.clone(), 100.0 * mean, 100.0 * deviation.unwrap_or(0.0))
            })
            .collect();
        let cells = |(name, results): &(String, Vec<Value>)| {
            let cells: Vec<String> = std::iter::once(results.len().to_string())
                .chain(FIGURES.iter().map(|(_, field, scale)| shown(results, field, *scale)))
                .collect();
            json!({"name": name, "cells": cells})
        };
        let columns: Vec<&str> = std::iter::once("seeds").chain(FIGURES.iter().map(|(head, ..)| *head)).collect();
        let html = page(
            include_str!("report/study.html"),
            json!({
                "title": format!("{} on {} ({})", self.recipe.display(), self.data, split.name()),
                "about": format!("{}; mean and deviation over seeds", self.model.model.display()),
                "columns": columns, "rows": rows.iter().map(cells).collect::<Vec<_>>(), "runs": runs,
                "plot": spread_plot("weighted F1 %", &points)?,
            }),
        )?;
        out::file(&self.out.join("study.html"), &html)
    }
}

impl Plan {
    /// The variants one by one, or every combination of what is varied.
    fn variants(&self) -> Result<Vec<Variant>> {
        let wrong = |text: &str| Err(Error::invalid(format!("[study]: {text}")));
        if self.seeds.is_empty() {
            return wrong("seeds is empty, must hold one or more");
        }
        let mut all = vec![Variant { name: String::new(), set: toml::Table::new(), train: true }];
        for (field, values) in &self.vary {
            let Some(values) = values.as_array().filter(|values| !values.is_empty()) else {
                return wrong(&format!("vary.{field} is no list of values"));
            };
            let mut next = Vec::new();
            for before in &all {
                for value in values {
                    let mut variant = before.clone();
                    let name = format!("{field}={}", value.to_string().trim_matches('"'));
                    variant.name = [&variant.name[..], &name].join(if variant.name.is_empty() { "" } else { ", " });
                    variant.set.insert(field.clone(), value.clone());
                    next.push(variant);
                }
            }
            all = next;
        }
        if self.vary.is_empty() {
            all.clear();
        }
        all.extend(self.variant.iter().cloned());
        if all.is_empty() {
            all.push(Variant { name: "as it is".into(), set: toml::Table::new(), train: true });
        }
        for (i, variant) in all.iter().enumerate() {
            if all[..i].iter().any(|other| folder_name(&other.name) == folder_name(&variant.name)) {
                return wrong(&format!("two variants are called {}", variant.name));
            }
        }
        Ok(all)
    }
}

/// The study and the recipe without it.
fn parse(text: &str) -> Result<(Plan, String)> {
    let mut table: toml::Table =
        text.parse().map_err(|error: toml::de::Error| Error::invalid(format!("not TOML: {}", error.message())))?;
    let plan = match table.remove("study") {
        Some(plan) => {
            plan.try_into().map_err(|error: toml::de::Error| Error::invalid(format!("[study]: {}", error.message())))?
        }
        None => return Err(Error::invalid("there is no table [study]; `train` takes a recipe without one")),
    };
    let base = toml::to_string(&table).map_err(|error| Error::internal(format!("a recipe as TOML: {error}")))?;
    Ok((plan, base))
}

/// A name that every system takes for a folder.
fn folder_name(name: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() || "=.-_".contains(c) { c } else { '-' };
    name.chars().map(plain).collect()
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, &error))?;
    serde_json::from_str(&text).map_err(|_| Error::bad_file(path, "is not JSON; remove it to make it again"))
}

/// Mean and sample deviation of a figure; no deviation of a single run.
fn spread(results: &[Value], field: &str) -> (f64, Option<f64>) {
    let values: Vec<f64> = results.iter().filter_map(|result| result[field].as_f64()).collect();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (mean, (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()))
}

fn shown(results: &[Value], field: &str, scale: f64) -> String {
    let digits = if scale == 1.0 && field == "nll" { 3 } else { 2 };
    match spread(results, field) {
        (mean, _) if mean.is_nan() => "-".to_owned(),
        (mean, None) => format!("{:.digits$}", scale * mean),
        (mean, Some(deviation)) => format!("{:.digits$} ± {:.digits$}", scale * mean, scale * deviation),
    }
}

fn as_json(rows: &[(String, Vec<Value>)]) -> Value {
    let row = |(name, results): &(String, Vec<Value>)| {
        let mut row = json!({"variant": name, "seeds": results.len()});
        for (_, field, _) in FIGURES {
            let (mean, deviation) = spread(results, field);
            row[field] = json!({"mean": mean, "deviation": deviation});
        }
        row
    };
    json!({"variants": rows.iter().map(row).collect::<Vec<_>>()})
}

fn markdown(rows: &[(String, Vec<Value>)]) -> String {
    let heads: Vec<&str> = FIGURES.iter().map(|(head, ..)| *head).collect();
    let mut text = format!("| variant | seeds | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(heads.len() + 1));
    for (name, results) in rows {
        let cells: Vec<String> = FIGURES.iter().map(|(_, field, scale)| shown(results, field, *scale)).collect();
        text += &format!("| {name} | {} | {} |\n", results.len(), cells.join(" | "));
    }
    text
}
