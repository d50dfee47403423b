//! Arguments that several subcommands share, and what they open.

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use dialoguellm::emotion::template::Window;
use dialoguellm::emotion::{Card, Classifier, Labels, Template, card};
use dialoguellm::files::{Access, hub};
use dialoguellm::model::{Adapter, Model, OpenOptions, Place, Precision};
use dialoguellm::{Cancel, Code, Error, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How results and progress look.
#[derive(Args, Clone, Copy)]
pub struct Style {
    /// Results as JSON, for programs
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress on standard error
    #[arg(long, global = true)]
    pub quiet: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum DeviceName {
    Auto,
    Cpu,
    Cuda,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum PrecisionName {
    F32,
    Bf16,
    /// bf16, of weights that are whole numbers of 8 bits
    Int8,
    /// bf16, of weights that are whole numbers of 4 bits, 8 in embedding and head
    Int4,
}

impl PrecisionName {
    pub fn precision(self) -> Precision {
        match self {
            PrecisionName::F32 => Precision::F32,
            PrecisionName::Bf16 => Precision::Bf16,
            PrecisionName::Int8 => Precision::Int8,
            PrecisionName::Int4 => Precision::Int4,
        }
    }
}

/// A model, and how this machine runs it.
#[derive(Args)]
pub struct ModelArgs {
    /// A model folder, or `org/name` from the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Where to compute: on a CUDA GPU, on the CPU, or `auto`: on the GPU if there is one
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceName,
    /// Threads; 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Operands of matrix products, and with int8 or int4 what weights become; sums are f32 in every case
    #[arg(long, value_enum, default_value = "bf16")]
    pub precision: PrecisionName,
    /// Read the weights into memory instead of mapping the file
    #[arg(long)]
    no_mmap: bool,
}

impl ModelArgs {
    /// The model's folder.
    pub fn folder(&self) -> Result<PathBuf> {
        hub::resolve(&self.model)
    }

    pub fn open(&self) -> Result<Arc<Model>> {
        let dir = self.folder()?;
        let model = Model::open(&dir, &self.options()).map_err(|error| named(error, &dir))?;
        Ok(Arc::new(model))
    }

    fn options(&self) -> OpenOptions {
        let precision = self.precision.precision();
        let device = match self.device {
            DeviceName::Auto => Place::Auto,
            DeviceName::Cpu => Place::Cpu,
            DeviceName::Cuda => Place::Cuda,
        };
        OpenOptions { device, precision, threads: self.threads, access: self.access(), ..OpenOptions::default() }
    }

    /// The arguments that say the same.
    pub fn arguments(&self) -> Vec<OsString> {
        let value = |value: Option<PossibleValue>| value.map(|value| value.get_name().into()).unwrap_or_default();
        let mut all: Vec<OsString> = vec!["--model".into(), self.model.clone().into()];
        all.extend(["--device".into(), value(self.device.to_possible_value())]);
        all.extend(["--precision".into(), value(self.precision.to_possible_value())]);
        all.extend(["--threads".into(), self.threads.to_string().into()]);
        all.extend(self.no_mmap.then(|| "--no-mmap".into()));
        all
    }

    pub fn access(&self) -> Access {
        if self.no_mmap { Access::Read } else { Access::Mapped }
    }

    /// Threads that are used.
    pub fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

/// An error about a model's inside, with the folder in front where it names no file of it.
fn named(error: Error, dir: &Path) -> Error {
    let shown = dir.display().to_string();
    if error.text().contains(&shown) { error } else { error.at(shown) }
}

/// What names emotions: an adapter that says how it was trained, or a model with template and labels of one's own.
#[derive(Args)]
pub struct AskArgs {
    /// An adapter folder; without one the model is asked as it is
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Where the adapter has none of its own: `dialogue`, `dialoguellm` or a TOML file
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// Likewise: the labels, with commas between
    #[arg(long, value_name = "A,B,..", value_delimiter = ',')]
    labels: Option<Vec<String>>,
    /// Likewise: the words the model reads and writes for the labels, in their order
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', requires = "labels")]
    words: Option<Vec<String>>,
    /// Likewise: previous turns shown, a number or `all`
    #[arg(long, value_name = "N|all", value_parser = window)]
    window: Option<Window>,
}

impl AskArgs {
    /// The classifier; `labels_of_data` are the labels where nothing else names any.
    pub fn classifier(
        &self,
        args: &ModelArgs,
        model: Arc<Model>,
        labels_of_data: Option<Labels>,
    ) -> Result<Classifier> {
        let Some((card, dir)) = self.card(args)? else {
            let adapter = self.adapter.as_ref().map(|dir| Adapter::read(dir, model.config())).transpose()?;
            let (template, labels) = (self.own_template()?, self.own_labels(labels_of_data)?);
            return Classifier::new(model, adapter.map(Arc::new), template, labels);
        };
        // a card in the model's own folder is of a merged model
        let adapter = match &self.adapter {
            Some(dir) => {
                card.check_base(model.base()).map_err(|error| error.at(dir.display()))?;
                Some(Arc::new(Adapter::read(dir, model.config())?))
            }
            None => None,
        };
        Classifier::with_card(model, adapter, card).map_err(|error| error.at(dir.display()))
    }

    /// The card that decides template and labels, and its folder.
    pub fn card(&self, args: &ModelArgs) -> Result<Option<(Card, PathBuf)>> {
        let dir = match &self.adapter {
            Some(dir) => dir.clone(),
            None => args.folder()?,
        };
        let card = match Card::read(&dir) {
            Ok(card) => card,
            Err(error) if error.code() == Code::NotFound && dir.is_dir() => return Ok(None),
            Err(error) => return Err(error),
        };
        let given = [
            ("template", self.template.is_some()),
            ("labels", self.labels.is_some()),
            ("window", self.window.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            None => Ok(Some((card, dir))),
            Some((name, _)) => Err(Error::invalid(format!(
                "{} has its own {name} ({}), so --{name} cannot be given",
                dir.display(),
                card::FILE
            ))),
        }
    }

    fn own_template(&self) -> Result<Template> {
        let name = self.template.as_deref().unwrap_or("dialogue");
        let mut template = match Path::new(name).is_file() {
            true => {
                let text = std::fs::read_to_string(name).map_err(|error| Error::io("read", Path::new(name), &error))?;
                Template::from_toml(&text).map_err(|error| error.at(name))?
            }
            false => Template::built_in(name)?,
        };
        template.window = self.window.unwrap_or(template.window);
        Ok(template)
    }

    fn own_labels(&self, of_data: Option<Labels>) -> Result<Labels> {
        match (&self.labels, of_data) {
            (Some(names), _) => Labels::with_words(names.clone(), self.words.clone().unwrap_or_else(|| names.clone())),
            (None, Some(labels)) => Ok(labels),
            (None, None) => Err(Error::invalid(
                "nothing says which labels there are: give --adapter with a dialoguellm.json, or --labels A,B,..",
            )),
        }
    }

    /// Labels that data may have, where they are known before the data.
    pub fn known(&self, args: &ModelArgs) -> Result<Option<Vec<String>>> {
        let card = self.card(args)?;
        Ok(card.map(|(card, _)| card.labels.names().to_vec()).or_else(|| self.labels.clone()))
    }
}

fn window(text: &str) -> std::result::Result<Window, String> {
    use dialoguellm::emotion::template::All;
    match text {
        "all" => Ok(Window::All(All::All)),
        _ => text.parse().map(Window::Last).map_err(|_| format!("`{text}` is neither a number nor `all`")),
    }
}

/// A request to stop that Ctrl-C makes; a second Ctrl-C ends the process at once.
pub fn cancelled_by_ctrl_c() -> Result<Cancel> {
    let cancel = Cancel::default();
    let asked = cancel.clone();
    let handler = move || {
        if asked.is_set() {
            std::process::exit(Code::Cancelled as i32);
        }
        asked.set();
    };
    ctrlc::set_handler(handler).map_err(|error| Error::internal(format!("Ctrl-C cannot be caught: {error}")))?;
    Ok(cancel)
}
