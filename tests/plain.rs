//! The plain implementation, which the engine is held to, is itself transformers and PEFT to f32's precision.

mod common;

use common::golden::{self, Golden, distance};
use common::plain::Mode;

/// Variants whose every field the plain implementation knows.
const VARIANTS: [&str; 7] = ["mha", "gqa", "tied", "untied", "attention_bias", "mlp_bias", "rope_theta"];

#[test]
fn the_comparer_sees_a_wrong_value_and_a_nan() {
    assert_eq!(distance(&[1.0, 2.0], &[1.0, 4.0]), 0.5);
    assert_eq!(distance(&[1.0, f64::NAN], &[1.0, 4.0]), f64::INFINITY);
}

#[test]
fn logits_are_those_of_transformers() {
    for variant in VARIANTS {
        let (golden, model) = (Golden::read(variant), golden::plain(variant));
        let mut base = model.clone();
        base.pairs.clear();
        for (model, name) in [(&base, "logits"), (&model, "logits_adapter")] {
            let all: Vec<f64> =
                golden.sequences().iter().flat_map(|ids| model.run(ids, Mode::F64).logits.values).collect();
            let error = distance(&all, golden.values(name));
            assert!(error <= 1e-5, "{variant} {name}: {error:.2e}");
        }
    }
}

#[test]
fn gradients_are_those_of_peft() {
    for variant in VARIANTS {
        let (golden, model) = (Golden::read(variant), golden::plain(variant));
        let (targets, weight) = golden.targets();
        let mut sums = std::collections::BTreeMap::new();
        for (ids, targets) in golden.sequences().iter().zip(&targets) {
            let weighted: Vec<_> = targets.iter().map(|&(row, token)| (row, token, -weight)).collect();
            for (module, (a, b)) in model.run(ids, Mode::F64).gradients(&weighted) {
                let sum = sums.entry(module).or_insert_with(|| (vec![0.0; a.values.len()], vec![0.0; b.values.len()]));
                sum.0.iter_mut().zip(&a.values).for_each(|(s, x)| *s += x);
                sum.1.iter_mut().zip(&b.values).for_each(|(s, x)| *s += x);
            }
        }
        assert_eq!(sums.len(), model.pairs.len());
        for (module, (a, b)) in &sums {
            for (which, got) in [("A", a), ("B", b)] {
                let error = distance(got, golden.gradient(module, which));
                assert!(error <= 1e-5, "{variant} {module} {which}: {error:.2e}");
            }
        }
    }
}
