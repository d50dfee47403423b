//! The engine in f32 is transformers and PEFT: logits and LoRA gradients of every config variant, on every ISA.

mod common;

use common::golden::{Golden, distance, folder};
use dialoguellm::Cancel;
use dialoguellm::device::Cpu;
use dialoguellm::files::{Access, Config, Tensors};
use dialoguellm::model::{Adapter, Builder, Engine, Learning, Llama, Pass, Target};
use dialoguellm_kernels::Isa;
use std::sync::Arc;

/// Every golden folder with a model of its own.
const VARIANTS: [&str; 15] = [
    "mha",
    "gqa",
    "tied",
    "untied",
    "attention_bias",
    "mlp_bias",
    "head_dim",
    "rope_theta",
    "rope_linear",
    "rope_dynamic",
    "rope_llama3",
    "vocab_padding",
    "bf16",
    "f16",
    "sharded",
];

fn open(variant: &str, config: Config, isa: Isa) -> Llama<Cpu<f32>> {
    let tensors = Arc::new(Tensors::open(&folder(variant), Access::Mapped).unwrap());
    Llama::open(Cpu::new(2, Some(isa)).unwrap(), config, &tensors).unwrap()
}

/// Logits of every row of every sequence, each sequence a tree of its own.
fn logits(model: &Llama<Cpu<f32>>, adapter: Option<&Adapter>, sequences: &[Vec<u32>]) -> Vec<f64> {
    let mut all = Vec::new();
    for ids in sequences {
        let forest = dialoguellm::model::Forest::chain(ids, 0);
        let pass = Pass { forest: &forest, adapter, cancel: &Cancel::default() };
        let rows: Vec<u32> = (0..ids.len() as u32).collect();
        all.extend(model.logits(&pass, None, &rows).unwrap().into_iter().map(f64::from));
    }
    all
}

#[test]
fn logits_are_those_of_transformers() {
    for variant in VARIANTS {
        let (golden, config) = (Golden::read(variant), Config::read(&folder(variant)).unwrap());
        let adapter = Adapter::read(&folder(variant).join("adapter"), &config).unwrap();
        for &isa in Isa::available() {
            let model = open(variant, config.clone(), isa);
            for (adapter, name) in [(None, "logits"), (Some(&adapter), "logits_adapter")] {
                let error = distance(&logits(&model, adapter, &golden.sequences()), golden.values(name));
                assert!(error <= 1e-4, "{variant} {name} {isa:?}: {error:.2e}");
            }
        }
    }
}

#[test]
fn quantised_models_of_compressed_tensors_have_transformers_logits() {
    for variant in ["int8", "int8_groups", "int4", "int4_channels"] {
        let (golden, config) = (Golden::read(variant), Config::read(&folder(variant)).unwrap());
        for &isa in Isa::available() {
            let model = open(variant, config.clone(), isa);
            let error = distance(&logits(&model, None, &golden.sequences()), golden.values("logits"));
            assert!(error <= 1e-4, "{variant} {isa:?}: {error:.2e}");
        }
    }
}

#[test]
fn gradients_are_those_of_peft() {
    for variant in VARIANTS {
        let (golden, config) = (Golden::read(variant), Config::read(&folder(variant)).unwrap());
        let adapter = Adapter::read(&folder(variant).join("adapter"), &config).unwrap();
        for &isa in Isa::available() {
            let model = open(variant, config.clone(), isa);
            for budget in [usize::MAX, 0] {
                let gradient = gradient(&model, &adapter, &golden, budget);
                for slot in adapter.slots() {
                    let module = slot.spec.site.path(slot.spec.layer);
                    let (a, b) = (slot.at.rank * slot.at.inputs, slot.at.outputs * slot.at.rank);
                    for (which, got) in [("A", &gradient[slot.at.a..][..a]), ("B", &gradient[slot.at.b..][..b])] {
                        let error = distance(got, golden.gradient(&module, which));
                        assert!(error <= 1e-4, "{variant} {module} {which} {isa:?}: {error:.2e}");
                    }
                }
            }
        }
    }
}

/// The gradient of the golden loss, with activations kept (a large budget) or computed again (none).
fn gradient(model: &Llama<Cpu<f32>>, adapter: &Adapter, golden: &Golden, budget: usize) -> Vec<f64> {
    let mut builder = Builder::new(0);
    for (sample, ids) in golden.sequences().iter().enumerate() {
        builder.insert(sample as u64, ids);
    }
    let (forest, rows) = builder.build();
    let (targets, weight) = golden.targets();
    let target = |(rows, targets): (&Vec<u32>, &Vec<(usize, u32)>)| -> Vec<Target> {
        targets.iter().map(|&(row, token)| Target { row: rows[row], token }).collect()
    };
    let targets: Vec<Target> = rows.iter().zip(&targets).flat_map(target).collect();
    let pass = Pass { forest: &forest, adapter: Some(adapter), cancel: &Cancel::default() };
    let learning = Learning { noise: None, activation_bytes: budget, entering: None };
    let mut loss = |log_p: &[f32]| Ok(vec![-weight as f32; log_p.len()]);
    let mut learner = model.learner(adapter, None).unwrap();
    learner.begin().unwrap();
    let log_p = model.learn(&mut *learner, &pass, &targets, &learning, &mut loss).unwrap();
    let got = -weight * log_p.iter().map(|&x| x as f64).sum::<f64>();
    assert!((got - golden.values("loss")[0]).abs() <= 1e-4, "loss {got}, golden {:?}", golden.values("loss"));
    learner.gradient().unwrap().into_iter().map(f64::from).collect()
}

#[test]
fn changing_any_config_field_changes_the_logits() {
    use dialoguellm::files::Scaling;
    type Change = (&'static str, &'static str, fn(&mut Config));
    let changes: [Change; 10] = [
        ("mha", "rms_norm_eps", |c| c.rms_norm_eps *= 2.0),
        ("rope_theta", "rope_theta", |c| c.rope.theta = 10_000.0),
        ("rope_linear", "rope_scaling", |c| {
            c.rope.scaling = Scaling::None;
            c.max_position_embeddings *= 2;
        }),
        ("rope_linear", "factor", |c| c.rope.scaling = Scaling::Linear { factor: 3.0 }),
        ("rope_dynamic", "rope_scaling", |c| {
            c.rope.scaling = Scaling::None;
            c.max_position_embeddings *= 2;
        }),
        ("rope_llama3", "factor", |c| llama3(c, |v| v[0] *= 2.0)),
        ("rope_llama3", "low_freq_factor", |c| llama3(c, |v| v[1] *= 0.5)),
        ("rope_llama3", "high_freq_factor", |c| llama3(c, |v| v[2] *= 1.5)),
        ("rope_llama3", "original_max_position_embeddings", |c| llama3(c, |v| v[3] *= 2.0)),
        ("tied", "num_key_value_heads", |c| std::mem::swap(&mut c.n_heads, &mut c.n_kv_heads)),
    ];
    for (variant, field, change) in changes {
        let golden = Golden::read(variant);
        let mut config = Config::read(&folder(variant)).unwrap();
        change(&mut config);
        let tensors = Arc::new(Tensors::open(&folder(variant), Access::Mapped).unwrap());
        // a shape that no longer fits is an answer too
        let Ok(model) = Llama::open(Cpu::<f32>::new(1, None).unwrap(), config, &tensors) else { continue };
        let error = distance(&logits(&model, None, &golden.sequences()), golden.values("logits"));
        assert!(error > 1e-4, "{variant}: changing {field} moved the logits by {error:.1e} only");
    }
}

/// Changes llama3's (factor, low, high, original).
fn llama3(config: &mut Config, change: impl Fn(&mut [f64; 4])) {
    use dialoguellm::files::Scaling;
    if let Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } = &mut config.rope.scaling {
        let mut values = [*factor, *low_freq_factor, *high_freq_factor, *original as f64];
        change(&mut values);
        (*factor, *low_freq_factor, *high_freq_factor, *original) =
            (values[0], values[1], values[2], values[3] as usize);
    }
}
