//! SmolLM2-135M in f32 is transformers' over thousands of tokens: next-token log-probabilities within 1e-3.
//!
//! Needs the model (`DLLM_MODEL`) and what transformers computed with it (`DLLM_PARITY`, made by
//! tests/golden/smollm2_parity.py); says so on stderr where they are absent.

mod common;

use dialoguellm::Cancel;
use dialoguellm::files::{Access, Config, Tensors};
use dialoguellm::model::{Forest, Llama, Pass, Target};
use std::sync::Arc;

/// A document's tokens and, for each but the first, transformers' log-probability.
struct Document {
    ids: Vec<u32>,
    log_p: Vec<f64>,
}

fn documents(path: &std::path::Path) -> Vec<Document> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    (0..)
        .map_while(|n| {
            let ids = file.tensor(&format!("doc.{n:02}.ids")).ok()?;
            let log_p = file.tensor(&format!("doc.{n:02}.logprob")).unwrap();
            let ids = ids.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
            let log_p = log_p.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b) as f64).collect();
            Some(Document { ids, log_p })
        })
        .collect()
}

#[test]
fn next_token_log_probabilities_are_those_of_transformers() {
    let (Some(dir), Some(path)) = (common::model_dir(), common::parity_file()) else { return };
    let tensors = Arc::new(Tensors::open(&dir, Access::Mapped).unwrap());
    let cpu = dialoguellm::device::Cpu::<f32>::new(0, None).unwrap();
    let model = Llama::open(cpu, Config::read(&dir).unwrap(), &tensors).unwrap();
    let (mut tokens, mut worst) = (0, 0.0f64);
    for Document { ids, log_p } in documents(&path) {
        let forest = Forest::chain(&ids, 0);
        let targets: Vec<Target> = (0..).zip(&ids[1..]).map(|(row, &token)| Target { row, token }).collect();
        let pass = Pass { forest: &forest, adapter: None, cancel: &Cancel::default() };
        let got = model.log_probs64(&pass, None, &targets).unwrap();
        assert_eq!(got.len(), log_p.len());
        for (got, want) in got.iter().zip(&log_p) {
            let error = (got - want).abs();
            worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
        }
        tokens += ids.len();
    }
    println!("{tokens} tokens, largest difference {worst:.2e}");
    assert!(tokens >= 5000, "{tokens} tokens only");
    assert!(worst <= 1e-3, "largest difference {worst:.2e}");
}
