//! The command: arguments in, results on standard output, progress and errors on standard error.
//!
//! Every subcommand is a file of its own and a thin one: what it does is in the library. An exit code is the number of
//! the error's class, so that a script can tell a missing file from a full disk.

mod args;
mod bench;
mod chat;
mod classify;
mod data;
mod eval;
mod generate;
mod import;
mod info;
mod lines;
mod measure;
mod merge;
mod openings;
mod out;
mod progress;
mod quantize;
mod report;
mod score;
mod study;
mod train;
mod why;

use clap::{Parser, Subcommand};
use dialoguellm::{Code, Result};
use std::process::ExitCode;

/// Shown below the help of the command.
const CODES: &str = "\
Exit codes: 0 fine, 1 wrong argument or option, 2 not found, 3 refused by the system (permission, full disk),
4 a file contradicts itself or its format, 5 not supported, 6 out of memory, 7 more tokens than the model's
context holds, 9 stopped as asked (Ctrl-C), 10 the GPU is lost, 11 a weight, loss or gradient is NaN or infinite,
13 an error of this program: please report it.

DLLM_ISA=portable|neon|neonbf16|avx2|avxvnni|avx512|avx512vnni|avx512bf16|amx keeps to that level of instructions or below.
DLLM_CUDA_TOOLKIT=DIR is where the CUDA compiler and cuBLASLt are, if the system does not find them;
DLLM_CUBLASLT=0 multiplies with own kernels alone.";

/// Emotion in conversation: train, ask and look into LLaMA models, on this machine alone.
#[derive(Parser)]
#[command(version, after_help = CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    style: args::Style,
}

#[derive(Subcommand)]
enum Command {
    /// Train a LoRA adapter on dialogues with labels, or on prompts with completions
    Train(train::Train),
    /// Measure how well labels are named
    Eval(eval::Eval),
    /// Run a recipe with one thing and another varied, over several seeds
    Study(study::Study),
    /// Name the emotion of every turn of dialogues that come as lines
    Classify(classify::Classify),
    /// Tell which earlier turns and words made the emotion of a turn
    Why(why::WhyArgs),
    /// Type a conversation and see the emotion of every turn at once
    Chat(chat::Chat),
    /// Continue a text
    Generate(generate::Generate),
    /// How likely continuations of a prompt are
    Score(score::Score),
    /// Count, check or convert dialogues
    Data(data::Data),
    /// Merge an adapter into its base model
    Merge(merge::Merge),
    /// Make a smaller copy of a model: weights of 8 or 4 bits
    Quantize(quantize::Quantize),
    /// Make a model folder of a GGUF file
    Import(import::Import),
    /// What a model is and what it needs
    Info(info::Info),
    /// How fast this machine computes with a model
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refusal) => return refused(&refusal),
    };
    ignore_size_limit_signal();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dialoguellm: {error}");
            exit_code(error.code())
        }
    }
}

/// Help and version are answers; anything else is a wrong argument.
fn refused(refusal: &clap::Error) -> ExitCode {
    let _ = refusal.print(); // nobody is left to tell
    if refusal.use_stderr() { exit_code(Code::InvalidArgument) } else { ExitCode::SUCCESS }
}

fn exit_code(code: Code) -> ExitCode {
    ExitCode::from(code as i32 as u8)
}

fn run(cli: &Cli) -> Result<()> {
    match &cli.command {
        Command::Train(command) => command.run(cli.style),
        Command::Eval(command) => command.run(cli.style),
        Command::Study(command) => command.run(cli.style),
        Command::Classify(command) => command.run(cli.style),
        Command::Why(command) => command.run(cli.style),
        Command::Chat(command) => command.run(cli.style),
        Command::Generate(command) => command.run(cli.style),
        Command::Score(command) => command.run(cli.style),
        Command::Data(command) => command.run(cli.style),
        Command::Merge(command) => command.run(cli.style),
        Command::Quantize(command) => command.run(cli.style),
        Command::Import(command) => command.run(cli.style),
        Command::Info(command) => command.run(cli.style),
        Command::Bench(command) => command.run(cli.style),
    }
}

/// A file-size limit (`ulimit -f`) then is an error like a full disk, not a signal that ends the process.
#[cfg(unix)]
fn ignore_size_limit_signal() {
    // SAFETY: no handler runs; the disposition is set before any other thread exists.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
#[cfg(not(unix))]
fn ignore_size_limit_signal() {}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_code_is_an_exit_code_of_its_own() {
        assert_eq!(exit_code(Code::Internal), ExitCode::from(13));
        assert_ne!(exit_code(Code::InvalidArgument), ExitCode::SUCCESS);
    }
}
