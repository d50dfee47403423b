//! `quantize`: a model's linear maps as whole numbers.

use crate::args::Style;
use crate::out::{self, bytes};
use crate::progress::making;
use clap::{Args, ValueEnum};
use dialoguellm::Result;
use dialoguellm::device::Bits;
use dialoguellm::emotion::card;
use dialoguellm::files::hub;
use dialoguellm::model::quantize::{Quantized, quantize};
use serde_json::json;
use std::path::PathBuf;

#[derive(Clone, Copy, ValueEnum)]
enum BitsName {
    #[value(name = "8")]
    Eight,
    #[value(name = "4")]
    Four,
}

/// Make a smaller copy of a model: linear maps as whole numbers of 8 or 4 bits.
///
/// The new folder is a model like any other, which transformers and vLLM read too (compressed-tensors). Adapters of the
/// model fit it, and labels, template and calibration of a merged one come along.
#[derive(Args)]
pub struct Quantize {
    /// The model's folder, or `org/name` from the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Bits of a weight: 8 with a scale for each output, 4 with one for every 32 inputs
    #[arg(long, value_enum, default_value = "8")]
    bits: BitsName,
    /// The model folder to be made; a model that is there is replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Quantize {
    pub fn run(&self, style: Style) -> Result<()> {
        let bits = match self.bits {
            BitsName::Eight => Bits::Eight,
            BitsName::Four => Bits::Four,
        };
        let base = hub::resolve(&self.model)?;
        let made =
            making(style, "matrices", |show, cancel| quantize(&base, &self.out, bits, &[card::FILE], show, cancel));
        let Quantized { tensors, quantized, bytes: size } = made?;
        if style.json {
            return out::json(&json!({"tensors": tensors, "quantized": quantized, "bytes": size, "out": self.out}));
        }
        let size = bytes(size as u64);
        out::line(format_args!(
            "{tensors} tensors, {quantized} of them in {} bits, {size} written to {}",
            bits.count(),
            self.out.display()
        ))
    }
}
