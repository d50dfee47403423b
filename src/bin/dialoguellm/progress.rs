//! Progress on standard error: a bar where a person looks on, else a plain line every few seconds.

use crate::args::{Style, cancelled_by_ctrl_c};
use crate::out::duration;
use dialoguellm::{Cancel, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Between two plain lines.
const PAUSE: Duration = Duration::from_secs(5);

/// Makes a model folder with a `work` that tells how many of how many `what` are done; Ctrl-C stops it.
pub fn making<T>(
    style: Style,
    what: &'static str,
    work: impl FnOnce(&mut dyn FnMut(usize, usize) -> bool, &Cancel) -> Result<T>,
) -> Result<T> {
    let cancel = cancelled_by_ctrl_c()?;
    let mut progress: Option<Progress> = None;
    let mut show = |done: usize, all: usize| {
        progress.get_or_insert_with(|| Progress::new(style, what, 0, all as u64)).at(done as u64, "");
        true
    };
    let made = work(&mut show, &cancel);
    progress.iter().for_each(Progress::end);
    made
}

/// How far something is.
pub struct Progress {
    what: &'static str,
    total: u64,
    /// Where it was at the start, and when that was.
    first: u64,
    started: Instant,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    Lines { last: Instant },
    Nothing,
}

impl Progress {
    /// Something of `total` parts, of which `first` are done.
    pub fn new(style: Style, what: &'static str, first: u64, total: u64) -> Self {
        let started = Instant::now();
        let shown = match std::io::stderr().is_terminal() {
            _ if style.quiet => Shown::Nothing,
            true => Shown::Bar(bar(what, total)),
            false => Shown::Lines { last: started },
        };
        Self { what, total, first, started, shown }
    }

    /// `done` parts are done; `more` is said beside.
    pub fn at(&mut self, done: u64, more: &str) {
        let left = self.left(done);
        match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_position(done);
                bar.set_message([more, &left].join(if more.is_empty() || left.is_empty() { "" } else { ", " }));
            }
            Shown::Lines { last } if last.elapsed() >= PAUSE => {
                *last = Instant::now();
                let parts = [format!("{} {done}/{}", self.what, self.total), more.to_owned(), left];
                eprintln!("{}", parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", "));
            }
            Shown::Lines { .. } | Shown::Nothing => {}
        }
    }

    /// The time left at the pace so far.
    fn left(&self, done: u64) -> String {
        let (made, rest) = (done.saturating_sub(self.first), self.total.saturating_sub(done));
        if made == 0 || rest == 0 {
            return String::new();
        }
        duration(self.started.elapsed().as_secs_f64() * rest as f64 / made as f64) + " left"
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        match &self.shown {
            Shown::Bar(bar) => bar.println(line),
            Shown::Lines { .. } => eprintln!("{line}"),
            Shown::Nothing => {}
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &'static str, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len}  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(what);
    bar
}
