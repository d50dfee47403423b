//! Rotary positions: angles in f64, with the scalings of the LLaMA family.
//!
//! Su et al. 2021 (arXiv 2104.09864); scaling as transformers' `modeling_rope_utils.py`: linear, dynamic NTK and llama3.

use super::Forest;
use crate::files::config::{Config, Scaling};
use crate::{Error, Result};
use std::f64::consts::PI;

/// The cos and sin of every angle that a pass needs, and each row's place among them.
pub struct Angles {
    /// `[entries, d / 2]`.
    pub cos: Vec<f64>,
    /// `[entries, d / 2]`.
    pub sin: Vec<f64>,
    /// The entry of every forest row.
    pub at: Vec<u32>,
    /// d / 2.
    pub half: usize,
}

/// The angles of a forest's rows. Errors: UNSUPPORTED for dynamic scaling past the original length where prompts share
/// tokens or continue a cache, because there the base depends on each prompt's own length.
pub fn angles(config: &Config, forest: &Forest) -> Result<Angles> {
    let half = config.head_dim / 2;
    let mut angles = Angles { cos: Vec::new(), sin: Vec::new(), at: Vec::with_capacity(forest.len()), half };
    match past_original(config, forest) {
        None => {
            angles.push(&frequencies(config, 0), forest.depth());
            angles.at.extend(forest.positions().iter().map(|&position| position as u32));
        }
        Some(original) => angles.push_each_prompt(config, forest, original)?,
    }
    Ok(angles)
}

/// The original length, if the scaling is dynamic and the forest is longer.
fn past_original(config: &Config, forest: &Forest) -> Option<usize> {
    match config.rope.scaling {
        Scaling::Dynamic { original, .. } if forest.depth() > original => Some(original),
        _ => None,
    }
}

impl Angles {
    /// Appends the entries of positions `0..count`.
    fn push(&mut self, frequencies: &[f64], count: usize) {
        for position in 0..count {
            for &frequency in frequencies {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                self.cos.push(cos);
                self.sin.push(sin);
            }
        }
    }

    fn push_each_prompt(&mut self, config: &Config, forest: &Forest, original: usize) -> Result<()> {
        for span in forest.spans() {
            if span.parent.is_some() || span.start > 0 {
                return Err(Error::unsupported(format!(
                    "rope_scaling \"dynamic\" past its original length ({} tokens, original {original}): the rotation \
                     depends on each prompt's length, so prompts that share tokens or continue a cache cannot run; \
                     use prompts of at most {original} tokens or linear ones",
                    forest.depth()
                )));
            }
            let first = (self.cos.len() / self.half.max(1)) as u32;
            self.push(&frequencies(config, span.rows.len()), span.rows.len());
            self.at.extend((0..span.rows.len() as u32).map(|position| first + position));
        }
        Ok(())
    }
}

/// theta^(-2i/d), scaled; `length` matters to dynamic scaling only.
fn frequencies(config: &Config, length: usize) -> Vec<f64> {
    let d = config.head_dim as f64;
    let plain = |theta: f64| (0..config.head_dim / 2).map(move |i| theta.powf(-2.0 * i as f64 / d));
    let theta = config.rope.theta;
    match config.rope.scaling {
        Scaling::None => plain(theta).collect(),
        Scaling::Linear { factor } => plain(theta).map(|f| f / factor).collect(),
        Scaling::Dynamic { factor, original } => {
            let length = length.max(original) as f64;
            let stretch = factor * length / original as f64 - (factor - 1.0);
            plain(theta * stretch.powf(d / (d - 2.0))).collect()
        }
        Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
            plain(theta).map(|f| llama3(f, factor, low_freq_factor, high_freq_factor, original as f64)).collect()
        }
    }
}

/// Long waves are slowed by `factor`, short ones kept, those between blended.
fn llama3(frequency: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let turns = original * frequency / (2.0 * PI); // full turns over the original length
    if turns < low {
        frequency / factor
    } else if turns > high {
        frequency
    } else {
        let smooth = (turns - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}
