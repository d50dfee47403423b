//! `merge`: an adapter into its base model.

use crate::args::Style;
use crate::out::{self, bytes};
use crate::progress::making;
use clap::Args;
use dialoguellm::Result;
use dialoguellm::emotion::card;
use dialoguellm::files::hub;
use dialoguellm::model::merge::{Merged, merge};
use serde_json::json;
use std::path::PathBuf;

/// Merge an adapter into its base model, tensor by tensor; types are kept.
///
/// The new folder is a model like any other. Labels, template and calibration come along, so that `eval`, `classify` and
/// `chat` need no --adapter with it.
#[derive(Args)]
pub struct Merge {
    /// The base model's folder, or `org/name` from the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The adapter folder
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// The model folder to be made; a model that is there is replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Merge {
    pub fn run(&self, style: Style) -> Result<()> {
        let base = hub::resolve(&self.model)?;
        let card = card::of_adapter(&self.adapter, &base)?;
        let merged = making(style, "tensors", |show, cancel| {
            merge(&base, &self.adapter, &self.out, |dir| card::write_merged(card, dir), show, cancel)
        });
        let Merged { tensors, changed, bytes: size } = merged?;
        if style.json {
            return out::json(&json!({"tensors": tensors, "changed": changed, "bytes": size, "out": self.out}));
        }
        let size = bytes(size as u64);
        out::line(format_args!(
            "{tensors} tensors, {changed} of them changed, {size} written to {}",
            self.out.display()
        ))
    }
}
