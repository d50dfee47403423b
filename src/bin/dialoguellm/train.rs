//! `train`: a recipe and data to an adapter, with checkpoints that can be resumed.

use crate::args::{ModelArgs, Style, cancelled_by_ctrl_c};
use crate::measure::{Measured, ReportArgs};
use crate::out::{self, bytes, duration, thousands};
use crate::progress::Progress;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use dialoguellm::emotion::recipe::{FIELDS, Recipe};
use dialoguellm::emotion::run::{self, BestScores, Data, DevScore, Run, Setup, Start, Summary};
use dialoguellm::emotion::{Bulk, Card, Classifier, Labels};
use dialoguellm::files::dialogues::{Dialogue, Source, Split};
use dialoguellm::model::Model;
use dialoguellm::train::StepReport;
use dialoguellm::{Cancel, Code, Error, Result};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Train a LoRA adapter.
///
/// While it runs, OUT is a checkpoint and at the same time an adapter that can be used; metrics go to
/// OUT.metrics.jsonl. At the end OUT holds the adapter with the best dev score, its calibration, the whole recipe and
/// the metrics. Ctrl-C saves a checkpoint; a second one ends the process at once.
#[derive(Args)]
pub struct Train {
    #[command(flatten)]
    model: ModelArgs,
    /// KIND:PATH, such as meld:DIR or jsonl:FILE (README.md lists the kinds); the train split is learned from
    #[arg(long, value_name = "SPEC")]
    data: String,
    /// What the epoch is chosen by and the calibration fitted on; by default the data's own dev split, if it has one
    #[arg(long, value_name = "SPEC")]
    dev: Option<String>,
    /// A TOML file with the tables [lora], [train], [emotion] and [eval]
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// The adapter folder to be made
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on with the run whose checkpoint is at OUT
    #[arg(long)]
    resume: bool,
    /// Begin with this adapter instead of a new one
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    init_adapter: Option<PathBuf>,
    /// Where what `frozen_once` computes is kept, for other runs on the same prompts; else it goes with the run
    #[arg(long, value_name = "DIR")]
    frozen: Option<PathBuf>,
    /// Where metrics go while the run lasts
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    #[command(flatten)]
    report: ReportArgs,
    /// Any field of the recipe, such as train.epochs=2
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    settings: Vec<String>,
    #[command(flatten)]
    fields: Fields,
}

/// A flag for every field of a recipe, made from the library's list of them.
struct Fields(Vec<String>);

/// Apart from other arguments' ids.
fn id(field: &str) -> String {
    format!("recipe.{field}")
}

impl Args for Fields {
    fn augment_args(command: Command) -> Command {
        let all = FIELDS.iter().flat_map(|(table, fields)| fields.iter().map(move |field| (*table, *field)));
        command.args(all.map(|(table, field)| {
            Arg::new(id(field))
                .long(field.replace('_', "-"))
                .value_name("VALUE")
                .action(ArgAction::Set)
                .help(format!("[{table}] {field}"))
                .help_heading("Fields of the recipe")
        }))
    }
    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Fields {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        let fields = FIELDS.iter().flat_map(|(_, fields)| fields.iter());
        let given = |field: &&str| Some(format!("{field}={}", matches.get_one::<String>(&id(field))?));
        Ok(Self(fields.filter_map(given).collect()))
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Train {
    pub fn run(&self, style: Style) -> Result<()> {
        self.check_out()?;
        let mut recipe = self.recipe()?;
        let source: Source = self.data.parse()?;
        if self.known(&recipe)?.is_none() {
            // a set's own labels, also those that no turn of its train split has
            recipe.emotion.labels = source.labels().map(|names| names.iter().map(|&name| name.to_owned()).collect());
        }
        let (train, dev) = self.data(&source, &recipe)?;
        let shown = self.shown(dev.as_ref())?;
        let (tokens, frozen_once) = (recipe.eval.score_tokens, recipe.train.frozen_once);
        let setup = Setup {
            recipe,
            train,
            dev,
            start: self.start(),
            threads: self.model.threads(),
            base: Some(self.model.model.display().to_string()),
        };
        let model = self.model.open()?;
        let mut run = Run::new(model.clone(), setup)?;
        if let Some(card) = run.card() {
            self.report.check(&card.template)?;
        }
        let metrics = self.metrics_path()?;
        let cancel = cancelled_by_ctrl_c()?;
        if !self.resume {
            // a folder that cannot be written is found out now and not after an epoch
            run.save(&self.out)?;
        }
        run.log_to(&metrics)?;
        self.announce(&run, style);
        let frozen = if frozen_once { self.freeze(&mut run, style, &cancel) } else { Ok(()) };
        if let Err(error) = frozen.and_then(|()| drive(&mut run, &self.out, style, &cancel)) {
            return Err(self.stopped(run, error));
        }
        let best = run.best_scores().cloned();
        let summary = run.finish(&self.out, Some(&metrics), &Cancel::default())?;
        if self.metrics.is_none() {
            let _ = std::fs::remove_file(&metrics); // a copy is in OUT
        }
        self.tell(&summary, style)?;
        shown.map_or(Ok(()), |dialogues| self.write_report(model, dialogues, best, tokens, style))
    }

    /// The dialogues that a report is about, where one is asked for.
    fn shown(&self, dev: Option<&Data>) -> Result<Option<Vec<Dialogue>>> {
        match dev {
            _ if !self.report.is_asked() => Ok(None),
            Some(Data::Dialogues(dialogues)) => Ok(Some(dialogues.clone())),
            Some(Data::Pairs(_)) => Err(Error::invalid("--report shows dialogues, and these data are pairs")),
            None => Err(Error::invalid("--report shows dev data, and there are none: name some with --dev")),
        }
    }

    /// Measures the adapter that came of it on the dev data, unless that was done on the way, and shows that.
    fn write_report(
        &self,
        model: Arc<Model>,
        dialogues: Vec<Dialogue>,
        best: Option<BestScores>,
        tokens: usize,
        style: Style,
    ) -> Result<()> {
        let classifier = Classifier::open(model, &self.out)?;
        let bulk = Bulk { threads: self.model.threads(), budget: tokens, ..Bulk::default() };
        let measured = match best {
            Some(BestScores { scored, seconds }) => Measured::of(&classifier, dialogues, scored, seconds)?,
            None => Measured::new(&classifier, dialogues, &bulk, style)?,
        };
        let data = self.dev.as_ref().unwrap_or(&self.data);
        let title = format!("{} with {} on {data} (dev)", self.model.model.display(), self.out.display());
        self.report.write(title, &classifier, &measured, Some(&self.out), &measured.figures(), &bulk, style)
    }

    /// OUT may be new, or the checkpoint to go on with.
    fn check_out(&self) -> Result<()> {
        let (out, shown) = (&self.out, self.out.display());
        let is_run = out.join("state.json").exists();
        let is_empty = std::fs::read_dir(out).map_or(true, |mut entries| entries.next().is_none());
        match (self.resume, is_run) {
            (true, true) => Ok(()),
            (true, false) => Err(Error::not_found(format!(
                "{shown} holds no checkpoint to resume (no state.json); leave --resume out"
            ))),
            (false, true) => Err(Error::invalid(format!(
                "{shown} holds a run that was stopped; add --resume to go on with it, or name a new folder"
            ))),
            (false, false) if is_empty => Ok(()),
            (false, false) => {
                Err(Error::invalid(format!("{shown} is not empty and would be replaced; name a new folder")))
            }
        }
    }

    fn recipe(&self) -> Result<Recipe> {
        let (text, place) = match &self.recipe {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, &error))?;
                (text, path.display().to_string())
            }
            None => (String::new(), "settings".into()),
        };
        let settings = [&self.settings[..], &self.fields.0].concat();
        Recipe::with(&text, &settings).map_err(|error| error.at(place))
    }

    fn start(&self) -> Start<'_> {
        match &self.init_adapter {
            Some(dir) => Start::From(dir),
            None if self.resume => Start::Resume(&self.out),
            None => Start::New,
        }
    }

    fn data(&self, source: &Source, recipe: &Recipe) -> Result<(Data, Option<Data>)> {
        let known = self.known(recipe)?;
        let train = read(source, Split::Train, known.as_deref())?;
        let known = match (&known, &train) {
            (None, Data::Dialogues(dialogues)) => {
                let labels = Labels::of(dialogues).map_err(|error| error.at(&self.data))?;
                Some(labels.names().to_vec())
            }
            _ => known,
        };
        let dev = match &self.dev {
            Some(spec) => Some(read(&spec.parse()?, Split::Dev, known.as_deref())?),
            None if source.splits().contains(&Split::Dev) => Some(read(source, Split::Dev, known.as_deref())?),
            None => None,
        };
        Ok((train, dev))
    }

    /// The labels that the data may have, where recipe or adapter name them.
    fn known(&self, recipe: &Recipe) -> Result<Option<Vec<String>>> {
        if let Some(labels) = recipe.own_labels()? {
            return Ok(Some(labels.names().to_vec()));
        }
        let earlier = if self.resume { Some(&self.out) } else { self.init_adapter.as_ref() };
        Ok(earlier.and_then(|dir| Card::read(dir).ok()).map(|card| card.labels.names().to_vec()))
    }

    fn metrics_path(&self) -> Result<PathBuf> {
        if let Some(path) = &self.metrics {
            return Ok(path.clone());
        }
        let name = self.out.file_name().ok_or_else(|| {
            Error::invalid(format!("--out {} has no name that a folder could get", self.out.display()))
        })?;
        Ok(self.out.with_file_name(format!("{}.{}", name.to_string_lossy(), run::METRICS)))
    }

    fn announce(&self, run: &Run, style: Style) {
        if style.quiet {
            return;
        }
        let taught = run.taught();
        let (steps, made) = (run.trainer().steps(), run.trainer().steps_made());
        let params = run.trainer().parameters();
        eprintln!(
            "{} prompts, {} tokens without sharing; {} parameters; {steps} steps{}",
            thousands(taught.turns as u64),
            thousands(taught.linear_tokens as u64),
            thousands(params as u64),
            if made > 0 { format!(", of which {made} are made") } else { String::new() },
        );
        let note = |n: usize, what: &str| {
            if n > 0 {
                eprintln!("{} {what}", thousands(n as u64));
            }
        };
        note(taught.shortened, "prompts were too long and lost their oldest turns");
        note(taught.lost, "prompts were cut so that nothing of their answer is left; they teach nothing");
    }

    /// Computes what the layers below the lowest one that learns make of the prompts.
    fn freeze(&self, run: &mut Run, style: Style, cancel: &Cancel) -> Result<()> {
        let groups = run.trainer().groups_taken() as u64;
        let mut progress = Progress::new(style, "frozen layers", 0, groups);
        let result = run.freeze(self.frozen.as_deref(), cancel, &mut |done| progress.at(done as u64, ""));
        progress.end();
        result
    }

    /// What is said of a run that did not end; one that was asked to stop is saved first.
    fn stopped(&self, mut run: Run, error: Error) -> Error {
        if error.code() != Code::Cancelled {
            return error;
        }
        let (step, steps) = (run.trainer().steps_made(), run.trainer().steps());
        match run.save(&self.out) {
            Ok(()) => {
                let out = self.out.display();
                let text = format!("stopped after step {step} of {steps}; the run is saved in {out}, --resume goes on");
                Error::new(Code::Cancelled, text)
            }
            Err(error) => error.at(format!("stopped after step {step} of {steps}, and not saved")),
        }
    }

    fn tell(&self, summary: &Summary, style: Style) -> Result<()> {
        let peak = peak_rss();
        if style.json {
            let mut value = json!(summary);
            value["peak_rss_bytes"] = json!(peak);
            value["out"] = json!(self.out);
            return out::json(&value);
        }
        let Summary { epochs, steps, skipped, seconds, tokens, linear_tokens, .. } = *summary;
        out::line(format_args!(
            "epochs {epochs}, steps {}, time {}{}",
            thousands(steps),
            duration(seconds),
            if skipped > 0 { format!(", steps skipped as not finite {skipped}") } else { String::new() }
        ))?;
        out::line(format_args!(
            "tokens computed {} of {} without sharing ({:.2} times fewer)",
            thousands(tokens),
            thousands(linear_tokens),
            linear_tokens as f64 / tokens.max(1) as f64
        ))?;
        if let Some(peak) = peak {
            out::line(format_args!("peak memory {}", bytes(peak)))?;
        }
        if let (Some(score), Some(epoch)) = (summary.best_score, summary.best_epoch) {
            let temperature = match summary.temperature {
                1.0 => String::new(),
                temperature => format!("; temperature {temperature:.3}"),
            };
            out::line(format_args!("best dev score {score:.4} after epoch {epoch}{temperature}"))?;
        }
        out::line(format_args!("adapter written to {}", self.out.display()))
    }
}

fn read(source: &Source, split: Split, known: Option<&[String]>) -> Result<Data> {
    match source.is_pairs() {
        true => Ok(Data::Pairs(source.pairs(&Cancel::default())?)),
        false => Ok(Data::Dialogues(source.dialogues(split, known, &Cancel::default())?)),
    }
}

/// Steps, dev scores and checkpoints until the run is over.
fn drive(run: &mut Run, out: &Path, style: Style, cancel: &Cancel) -> Result<()> {
    let (first, total) = (run.trainer().steps_made(), run.trainer().steps());
    let mut progress = Progress::new(style, "step", first, total);
    let mut pace = Pace::default();
    let result = loop {
        if run.is_done() {
            break Ok(());
        }
        if let Err(error) = advance(run, out, cancel, &mut progress, &mut pace) {
            break Err(error);
        }
    };
    progress.end();
    result
}

fn advance(run: &mut Run, out: &Path, cancel: &Cancel, progress: &mut Progress, pace: &mut Pace) -> Result<()> {
    if run.dev_is_due() {
        let step = run.trainer().steps_made();
        let score = run.score_dev(cancel, &mut |turns| progress.at(step, &format!("dev: {turns} turns scored")))?;
        progress.say(&dev_line(step, &score));
    } else {
        let report = run.step(cancel)?;
        progress.at(report.step, &pace.after(&report));
    }
    if run.checkpoint_is_due() { run.save(out) } else { Ok(()) }
}

fn dev_line(step: u64, dev: &DevScore) -> String {
    let best = if dev.is_best { ", the best so far" } else { "" };
    match &dev.report {
        Some(report) => format!(
            "step {step}: dev accuracy {:.2} %, weighted F1 {:.2} %, macro F1 {:.2} %, NLL {:.3}{best}",
            100.0 * report.accuracy,
            100.0 * report.weighted_f1,
            100.0 * report.macro_f1,
            report.nll
        ),
        None => format!("step {step}: dev NLL {:.4}{best}", -dev.score),
    }
}

/// Loss and speed, smoothed so that they can be read.
#[derive(Default)]
struct Pace {
    loss: Option<f64>,
    tokens: f64,
    seconds: f64,
}

impl Pace {
    fn after(&mut self, report: &StepReport) -> String {
        if !report.skipped {
            self.loss = Some(self.loss.map_or(report.loss, |loss| 0.9 * loss + 0.1 * report.loss));
        }
        self.tokens = 0.9 * self.tokens + report.tokens as f64;
        self.seconds = 0.9 * self.seconds + report.seconds;
        let loss = self.loss.map_or("not finite".into(), |loss| format!("{loss:.4}"));
        let speed = (self.tokens / self.seconds.max(1e-9)) as u64;
        format!("epoch {}, loss {loss}, {} tokens/s", report.epoch, thousands(speed))
    }
}

/// The most memory that this process has held, where the system says.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}
