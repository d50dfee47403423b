//! A base model's fingerprint: enough bytes to tell two models apart, few enough to take no time.
//!
//! An adapter stores the fingerprint of the model it was trained on. This file knows bytes, not what they mean.

use super::{Tensors, read_bounded};
use crate::Result;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::Path;

/// Bytes taken from each end of a tensor.
const SAMPLE: usize = 4096;
/// Tensors sampled: more than any LLaMA has, so that a stranger's file cannot make this slow.
const MOST_TENSORS: usize = 1 << 13;

/// SHA-256 in hex of `dir/config.json`, every safetensors header, and the first and last 4 KiB of every tensor. Tensors
/// are taken in name order; each part is preceded by its length, so that parts cannot flow into each other.
///
/// # Errors
/// NotFound or Io where config.json cannot be read.
pub fn fingerprint(dir: &Path, tensors: &Tensors) -> Result<String> {
    let config = read_bounded(&dir.join(super::config::FILE), super::SETTINGS_LIMIT)?;
    let mut hash = Sha256::new();
    part(&mut hash, b"dialoguellm base model, version 1");
    part(&mut hash, &config);
    tensors.headers().for_each(|header| part(&mut hash, header));
    for (name, bytes) in tensors.stored().take(MOST_TENSORS) {
        part(&mut hash, name.as_bytes());
        part(&mut hash, &bytes[..bytes.len().min(SAMPLE)]);
        part(&mut hash, &bytes[bytes.len().saturating_sub(SAMPLE)..]);
    }
    Ok(hex(&hash.finalize()))
}

fn part(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, b| {
        let _ = write!(text, "{b:02x}"); // a String never refuses
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::safetensors::{SINGLE, Writer};
    use crate::files::{Access, config};
    use dialoguellm_kernels::matrix::Dtype;

    /// Of a model with one tensor of 20,000 values, all `fill` except that value `at` is 1.
    fn of(text: &str, name: &str, at: usize) -> String {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(config::FILE), text).unwrap();
        let mut writer =
            Writer::create(&dir.path().join(SINGLE), &[(name.to_owned(), Dtype::F32, vec![20_000])], &[]).unwrap();
        (0..20_000).for_each(|i| writer.write(&f32::from(i == at).to_le_bytes()).unwrap());
        writer.finish().unwrap();
        fingerprint(dir.path(), &Tensors::open(dir.path(), Access::Mapped).unwrap()).unwrap()
    }

    #[test]
    fn config_names_and_both_ends_of_a_tensor_change_it_and_nothing_else_does() {
        let base = of("{}", "w", 10_000);
        assert_eq!(base.len(), 64);
        assert_eq!(base, of("{}", "w", 10_000));
        assert_eq!(base, of("{}", "w", 9_000), "the middle is not read");
        for other in [of("{ }", "w", 10_000), of("{}", "v", 10_000), of("{}", "w", 0), of("{}", "w", 19_999)] {
            assert_ne!(base, other);
        }
    }
}
