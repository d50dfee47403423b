//! `import`: a GGUF file to a model folder.

use crate::args::Style;
use crate::out::{self, bytes, thousands};
use crate::progress::making;
use clap::{Args, ValueEnum};
use dialoguellm::Result;
use dialoguellm::files::Dtype;
use dialoguellm::files::gguf::{Report, import};
use serde_json::json;
use std::path::PathBuf;

/// Make a model folder of a GGUF file, tokenizer included.
///
/// F32, F16 and BF16 tensors keep every bit; Q8_0, Q4_0 and Q4_1 are computed and rounded once.
#[derive(Args)]
pub struct Import {
    /// The GGUF file
    #[arg(value_name = "FILE.gguf")]
    file: PathBuf,
    /// The model folder to be made; a model that is there is replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What quantised tensors become
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: DtypeName,
}

#[derive(Clone, Copy, ValueEnum)]
enum DtypeName {
    F32,
    F16,
    Bf16,
}

impl Import {
    pub fn run(&self, style: Style) -> Result<()> {
        let dtype = match self.dtype {
            DtypeName::F32 => Dtype::F32,
            DtypeName::F16 => Dtype::F16,
            DtypeName::Bf16 => Dtype::Bf16,
        };
        let imported = making(style, "tensors", |show, cancel| import(&self.file, &self.out, dtype, show, cancel));
        let Report { tensors, dequantised, vocabulary, tokens, bytes: size, .. } = imported?;
        if style.json {
            return out::json(&json!({
                "tensors": tensors, "dequantised": dequantised, "vocabulary": vocabulary, "tokens": tokens,
                "bytes": size, "out": self.out,
            }));
        }
        out::line(format_args!(
            "{tensors} tensors ({dequantised} dequantised), {}, vocabulary {vocabulary} of {} tokens; written to {}",
            bytes(size),
            thousands(tokens as u64),
            self.out.display()
        ))
    }
}
