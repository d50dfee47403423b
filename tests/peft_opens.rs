//! PEFT opens an adapter that was written here, and computes the same with it.
//!
//! Ignored: needs a Python with tests/golden/requirements.txt installed.
//!
//!   DLLM_PEFT_PYTHON=VENV/bin/python cargo test --release --test peft_opens -- --ignored

use dialoguellm::Cancel;
use dialoguellm::files::Config;
use dialoguellm::files::adapter::LoraConfig;
use dialoguellm::model::{Adapter, Forest, Model, OpenOptions, Pass, Precision};
use std::path::Path;
use std::process::Command;

const IDS: [u32; 9] = [3, 14, 15, 92, 65, 35, 89, 79, 32];

/// An adapter with values of its own in A and B, in the kinds of targets and scales that a config can name.
fn adapter(config: &Config, json: &serde_json::Value) -> Adapter {
    let lora = LoraConfig::from_json(json.as_object().unwrap().clone()).unwrap();
    let mut adapter = Adapter::new(lora, config, 7).unwrap();
    let params = adapter.params_mut().iter_mut().enumerate();
    params.for_each(|(i, x)| *x = ((i * 7919 % 1000) as f32 / 1000.0 - 0.5) * 0.2);
    adapter
}

#[test]
#[ignore = "needs DLLM_PEFT_PYTHON, a Python with PEFT"]
fn peft_computes_the_same_with_an_adapter_written_here() {
    let python = std::env::var("DLLM_PEFT_PYTHON").expect("DLLM_PEFT_PYTHON names a Python with PEFT");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let base = root.join("examples/tiny/model");
    let options = OpenOptions { precision: Precision::F32, ..Default::default() };
    let model = Model::open(&base, &options).unwrap();
    for json in [
        serde_json::json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}),
        serde_json::json!({"peft_type": "LORA", "r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"], "use_rslora": true}),
        serde_json::json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": r".*\.mlp\.(gate|up|down)_proj", "rank_pattern": {"down_proj": 5}}),
    ] {
        let adapter = adapter(model.config(), &json);
        let dir = tempfile::tempdir().unwrap();
        adapter.write(dir.path()).unwrap();
        let forest = Forest::chain(&IDS, 0);
        let pass = Pass { forest: &forest, adapter: Some(&adapter), cancel: &Cancel::default() };
        let ours = model.engine().logits(&pass, None, &[IDS.len() as u32 - 1]).unwrap();
        let without = model.engine().logits(&Pass { adapter: None, ..pass }, None, &[IDS.len() as u32 - 1]).unwrap();

        let script = root.join("tests/golden/peft_opens.py");
        let mut command = Command::new(&python);
        command.arg(script).arg(&base).arg(dir.path()).args(IDS.map(|id| id.to_string()));
        let ran = command.output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let theirs: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
        assert_eq!((&theirs["rank"], &theirs["alpha"]), (&json["r"], &json["lora_alpha"]));
        let theirs: Vec<f64> = theirs["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        let difference = |a: &[f32], b: &[f64]| {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).fold(0.0, |worst: f64, (a, b)| {
                let difference = (*a as f64 - b).abs();
                if difference.is_nan() { f64::INFINITY } else { worst.max(difference) }
            })
        };
        let largest = theirs.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        let (same, other) = (difference(&ours, &theirs), difference(&without, &theirs));
        println!("{json}: largest logit {largest:.3}, difference {same:.1e}, without the adapter {other:.1e}");
        assert!(
            same <= 1e-4 * largest && other.is_finite() && other > 1e-2 * largest,
            "{json}: {same} and {other} of {largest}"
        );
    }
}
