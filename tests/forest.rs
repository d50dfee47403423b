//! A forest gives each prompt what it gets alone: log-probabilities and LoRA gradients of random forests, for answer,
//! whole-sequence and choice loss, in f64, and in f32 and bf16 on every ISA, against the plain implementation.

mod common;

use common::plain::{Mat, Mode, Plain};
use common::random::{self, Shape};
use dialoguellm::Cancel;
use dialoguellm::device::{Cpu, Device};
use dialoguellm::files::{Access, Tensors};
use dialoguellm::model::engine::Path;
use dialoguellm::model::{Adapter, Builder, Learning, Llama, Pass, Target, Weights};
use dialoguellm_kernels::quantize::quantize;
use dialoguellm_kernels::testing::{Random, check};
use dialoguellm_kernels::{Bits, Elem, Isa, Real, bf16};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Grouped queries, biases, tied embeddings, all seven maps and few: between them every path of a layer.
const MODELS: [(&str, Shape, &str); 4] = [
    (
        "grouped",
        Shape { hidden: 40, heads: 6, kv_heads: 2, head_dim: 8, layers: 3, tied: false, bias: false },
        "q_proj v_proj",
    ),
    (
        "tied",
        Shape { hidden: 40, heads: 4, kv_heads: 4, head_dim: 12, layers: 2, tied: true, bias: false },
        "all-linear",
    ),
    (
        "biased",
        Shape { hidden: 40, heads: 3, kv_heads: 1, head_dim: 16, layers: 2, tied: false, bias: true },
        "k_proj o_proj gate_proj",
    ),
    (
        "shallow",
        Shape { hidden: 40, heads: 4, kv_heads: 2, head_dim: 8, layers: 1, tied: true, bias: true },
        "up_proj down_proj",
    ),
];

/// Prompts of one random forest and what each asks.
struct Case {
    sequences: Vec<Vec<u32>>,
    /// Positions of each sequence that carry loss.
    asked: Vec<Vec<usize>>,
    kind: Kind,
    /// For choice: which sequences answer one question; the first is right.
    questions: Vec<Vec<usize>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Answer,
    Whole,
    Choice,
}

/// Grows a random tree and reads off its paths: depth to 6, runs of 1 to 5 tokens, one root or several.
fn sequences(random: &mut Random, vocabulary: usize) -> Vec<Vec<u32>> {
    fn grow(random: &mut Random, vocabulary: usize, path: &mut Vec<u32>, depth: usize, out: &mut Vec<Vec<u32>>) {
        let start = path.len();
        for _ in 0..1 + random.below(5) {
            path.push(random.below(vocabulary) as u32);
        }
        let children = if depth == 6 || path.len() > 24 { 0 } else { random.below(4) };
        if children == 0 || random.below(4) == 0 {
            out.push(path.clone()); // a leaf, or a prompt that another one continues
        }
        for _ in 0..children {
            grow(random, vocabulary, path, depth + 1, out);
        }
        path.truncate(start);
    }
    let mut out = Vec::new();
    for _ in 0..1 + random.below(2) {
        grow(random, vocabulary, &mut Vec::new(), 1, &mut out);
    }
    out.iter_mut().filter(|ids| ids.len() < 2).for_each(|ids| ids.push(3));
    out.truncate(7);
    out
}

fn case(random: &mut Random, vocabulary: usize, kind: Kind) -> Case {
    let prompts = sequences(random, vocabulary);
    if kind != Kind::Choice {
        let first =
            |ids: &Vec<u32>, random: &mut Random| if kind == Kind::Whole { 1 } else { 1 + random.below(ids.len() - 1) };
        let asked = prompts.iter().map(|ids| (first(ids, random)..ids.len()).collect()).collect();
        return Case { sequences: prompts, asked, kind, questions: Vec::new() };
    }
    // labels of one to three tokens under every prompt; the first two begin alike
    let labels = [vec![5], vec![5, 9], vec![7, 2, 4]];
    let mut case = Case { sequences: Vec::new(), asked: Vec::new(), kind, questions: Vec::new() };
    for prompt in prompts.into_iter().take(3) {
        let first = case.sequences.len();
        for label in &labels {
            case.asked.push((prompt.len()..prompt.len() + label.len()).collect());
            case.sequences.push([prompt.clone(), label.clone()].concat());
        }
        case.questions.push((first..case.sequences.len()).collect());
    }
    case
}

impl Case {
    /// d loss / d log p of every asked position, given all log p.
    fn weights(&self, log_p: &[Vec<f64>]) -> Vec<Vec<f64>> {
        if self.kind != Kind::Choice {
            let count = self.asked.iter().map(Vec::len).sum::<usize>() as f64;
            return log_p.iter().map(|log_p| vec![-1.0 / count; log_p.len()]).collect();
        }
        let mut weights: Vec<Vec<f64>> = log_p.iter().map(|log_p| vec![0.0; log_p.len()]).collect();
        for question in &self.questions {
            let scores: Vec<f64> = question.iter().map(|&s| log_p[s].iter().sum()).collect();
            let total: f64 = scores.iter().map(|score| score.exp()).sum();
            for (i, &s) in question.iter().enumerate() {
                let right = if i == 0 { 1.0 } else { 0.0 };
                let weight = (scores[i].exp() / total - right) / self.questions.len() as f64;
                weights[s].iter_mut().for_each(|w| *w = weight);
            }
        }
        weights
    }
}

/// All asked log p, and the gradient in the adapter's flat order.
struct Answer {
    log_p: Vec<f64>,
    gradient: Vec<f64>,
}

/// Every prompt alone, summed.
fn alone(model: &Plain, case: &Case, adapter: &Adapter, mode: Mode) -> Answer {
    let runs: Vec<_> = case.sequences.iter().map(|ids| model.run(ids, mode)).collect();
    let log_p: Vec<Vec<f64>> = (0..runs.len())
        .map(|s| case.asked[s].iter().map(|&i| runs[s].log_p(i - 1, case.sequences[s][i])).collect())
        .collect();
    let weights = case.weights(&log_p);
    let mut sums: BTreeMap<String, (Mat, Mat)> = BTreeMap::new();
    for (s, run) in runs.iter().enumerate() {
        let targets: Vec<_> =
            case.asked[s].iter().zip(&weights[s]).map(|(&i, &w)| (i - 1, case.sequences[s][i], w)).collect();
        for (module, (a, b)) in run.gradients(&targets) {
            let zero = |m: &Mat| Mat::new(m.rows, m.cols, vec![0.0; m.values.len()]);
            let sum = sums.entry(module).or_insert_with(|| (zero(&a), zero(&b)));
            sum.0.values.iter_mut().zip(&a.values).for_each(|(s, x)| *s += x);
            sum.1.values.iter_mut().zip(&b.values).for_each(|(s, x)| *s += x);
        }
    }
    let mut gradient = vec![0.0; adapter.params().len()];
    for slot in adapter.slots() {
        let (a, b) = &sums[&slot.spec.site.path(slot.spec.layer)];
        gradient[slot.at.a..][..a.values.len()].copy_from_slice(&a.values);
        gradient[slot.at.b..][..b.values.len()].copy_from_slice(&b.values);
    }
    Answer { log_p: log_p.concat(), gradient }
}

/// All prompts as one forest.
fn together<E: Elem>(model: &Llama<Cpu<E>>, case: &Case, adapter: &Adapter, budget: usize) -> Answer {
    let mut builder = Builder::new(0);
    case.sequences.iter().for_each(|ids| {
        builder.insert(0, ids);
    });
    let (forest, rows) = builder.build();
    let mut targets: Vec<Target> = Vec::new();
    // where each asked position lies among the targets: shared ones are asked once
    let places: Vec<Vec<usize>> = (0..rows.len())
        .map(|s| {
            let place = |&i: &usize| {
                let target = Target { row: rows[s][i - 1], token: case.sequences[s][i] };
                targets.iter().position(|t| *t == target).unwrap_or_else(|| {
                    targets.push(target);
                    targets.len() - 1
                })
            };
            case.asked[s].iter().map(place).collect()
        })
        .collect();
    let spread = |log_p: &[f64]| -> Vec<Vec<f64>> {
        places.iter().map(|places| places.iter().map(|&place| log_p[place]).collect()).collect()
    };
    let mut loss = |log_p: &[f64]| {
        let mut merged = vec![0.0; log_p.len()];
        for (places, weights) in places.iter().zip(case.weights(&spread(log_p))) {
            places.iter().zip(weights).for_each(|(&place, weight)| merged[place] += weight);
        }
        Ok(merged)
    };
    let pass = Pass { forest: &forest, adapter: Some(adapter), cancel: &Cancel::default() };
    let learning = Learning { noise: None, activation_bytes: budget, entering: None };
    let params = Arc::new(adapter.params().to_vec());
    let mut gradient = model.device().zeros(1, params.len());
    let log_p = model.gradient64(&pass, &targets, &learning, &mut loss, (params, &mut gradient)).unwrap();
    let asked_alone = model.log_probs64(&pass, None, &targets).unwrap();
    assert_eq!(log_p, asked_alone, "training and inference differ");
    Answer { log_p: spread(&log_p).concat(), gradient: gradient.values().iter().map(|x| x.to_f64()).collect() }
}

/// Gives every matrix the values that whole numbers with scales leave it.
fn quantise(plain: &mut Plain, bits: Bits) {
    for mat in plain.weights.values_mut().filter(|mat| mat.rows > 1) {
        for row in mat.values.chunks_exact_mut(mat.cols) {
            let (mut q, mut scales) = (vec![0; bits.row_bytes(mat.cols)], [bf16::ZERO]);
            let narrow: Vec<f32> = row.iter().map(|&w| w as f32).collect();
            quantize(bits, &mut q, &mut scales, &narrow);
            row.iter_mut().zip(q).for_each(|(w, q)| *w = f64::from(q as i8) * scales[0].to_f64());
        }
    }
}

/// `judge(what, got, plain in the same types, exact)` for every model, kind of loss and random forest.
fn every_case<E: Elem>(
    isa: Isa,
    mode: Mode,
    bits: Option<Bits>,
    forests: usize,
    mut judge: impl FnMut(&str, &Adapter, &Answer, &Answer, &Answer),
) {
    for (name, shape, targets) in MODELS {
        let folder = tempfile::tempdir().unwrap();
        let (mut plain, config, adapter) = random::model(folder.path(), shape, targets);
        bits.inspect(|bits| quantise(&mut plain, *bits));
        let tensors = Arc::new(Tensors::open(folder.path(), Access::Mapped).unwrap());
        let vocabulary = config.vocab_size;
        let from = Weights { tensors: &tensors, bits, cancel: &Cancel::default() };
        let model = Llama::open_from(Cpu::<E>::new(2, Some(isa)).unwrap(), config, &from).unwrap();
        for kind in [Kind::Answer, Kind::Whole, Kind::Choice] {
            for seed in 0..forests {
                let case = case(&mut Random::new(seed as u64 + 100), vocabulary, kind);
                let what = format!("{name} {kind:?} forest {seed} {isa:?} {mode:?}");
                let budget = if seed % 2 == 0 { usize::MAX } else { 0 };
                let got = together(&model, &case, &adapter, budget);
                let exact = alone(&plain, &case, &adapter, Mode::F64);
                let same_types = if mode == Mode::F64 { None } else { Some(alone(&plain, &case, &adapter, mode)) };
                judge(&what, &adapter, &got, same_types.as_ref().unwrap_or(&exact), &exact);
            }
        }
    }
}

/// RMS of the difference over the RMS of `want`; NaN is infinite.
fn relative(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
    let error = square(&mut got.iter().zip(want).map(|(g, w)| g - w)) / square(&mut want.iter().copied());
    if error.is_nan() { f64::INFINITY } else { error.sqrt() }
}

/// The error of all log p, and of every A's and B's gradient by itself.
fn errors(adapter: &Adapter, got: &Answer, want: &Answer) -> Vec<(String, f64)> {
    let mut errors = vec![("log p".to_owned(), relative(&got.log_p, &want.log_p))];
    for slot in adapter.slots() {
        let (a, b) = (slot.at.rank * slot.at.inputs, slot.at.outputs * slot.at.rank);
        for (which, range) in [("A", slot.at.a..slot.at.a + a), ("B", slot.at.b..slot.at.b + b)] {
            let name = format!("{} {which}", slot.spec.site.path(slot.spec.layer));
            errors.push((name, relative(&got.gradient[range.clone()], &want.gradient[range])));
        }
    }
    errors
}

#[test]
fn the_comparer_sees_a_wrong_value_and_a_nan() {
    assert!((relative(&[3.0, 4.1], &[3.0, 4.0]) - 0.02).abs() < 1e-12);
    assert_eq!(relative(&[1.0, f64::NAN], &[1.0, 4.0]), f64::INFINITY);
}

#[test]
fn in_f64_to_1e12() {
    every_case::<f64>(Isa::Portable, Mode::F64, None, 12, |what, adapter, got, _, exact| {
        for (part, error) in errors(adapter, got, exact) {
            assert!(error <= 1e-12, "{what}: {part} {error:.2e}");
        }
    });
}

#[test]
fn in_f64_with_weights_of_eight_bits_to_1e12() {
    every_case::<f64>(Isa::Portable, Mode::F64, Some(Bits::Eight), 4, |what, adapter, got, _, exact| {
        for (part, error) in errors(adapter, got, exact) {
            assert!(error <= 1e-12, "{what}: {part} {error:.2e}");
        }
    });
}

#[test]
fn in_f32_to_1e5_on_every_isa() {
    for &isa in Isa::available() {
        every_case::<f32>(isa, Mode::F32, None, 4, |what, adapter, got, _, exact| {
            for (part, error) in errors(adapter, got, exact) {
                assert!(error <= 1e-5, "{what}: {part} {error:.2e}");
            }
        });
    }
}

/// Roundings to bf16 are as good as random, so a dozen values say little: each model's forests are judged together.
#[test]
fn in_bf16_to_twice_the_plain_error_on_every_isa() {
    for &isa in Isa::available() {
        let mut pools: BTreeMap<String, [Vec<f64>; 3]> = BTreeMap::new();
        every_case::<bf16>(isa, Mode::Bf16, None, 8, |what, _, got, plain, exact| {
            let model = what.split(" forest").next().unwrap();
            for (part, of) in [("log p", (|a| &a.log_p) as fn(&Answer) -> &Vec<f64>), ("gradient", |a| &a.gradient)] {
                let pool = pools.entry(format!("{model} {isa:?} {part}")).or_default();
                pool.iter_mut().zip([got, plain, exact]).for_each(|(pool, answer)| pool.extend(of(answer)));
            }
        });
        for (what, [got, plain, exact]) in &pools {
            let f32s = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<_>>();
            check(&f32s(got), &f32s(plain), exact).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
    }
}

#[test]
fn slopes_by_a_rows_share_are_finite_differences_and_the_path_goes_from_one_text_to_the_other() {
    for (name, shape, targets) in MODELS {
        let folder = tempfile::tempdir().unwrap();
        let (_, config, adapter) = random::model(folder.path(), shape, targets);
        let tensors = Arc::new(Tensors::open(folder.path(), Access::Mapped).unwrap());
        let model = Llama::open(Cpu::<f64>::new(2, Some(Isa::Portable)).unwrap(), config, &tensors).unwrap();
        let other_token = |id: &u32| (id + 17) % 61; // one to one: both texts make the same forest
        let [mut own, mut other] = [(); 2].map(|()| Builder::new(0));
        for ids in [&[5, 9, 3, 8, 2][..], &[5, 9, 3, 40, 7, 21], &[5, 11]] {
            own.insert(0, ids);
            other.insert(0, &ids.iter().map(other_token).collect::<Vec<_>>());
        }
        let [(forest, _), (other, _)] = [own, other].map(Builder::build);
        let rows = forest.len();
        let targets: Vec<Target> =
            [(0, 9), (rows - 1, 4), (rows / 2, 60)].map(|(row, token)| Target { row: row as u32, token }).to_vec();
        let base: Vec<u32> = forest.tokens().iter().map(other_token).collect();
        let cancel = Cancel::default();
        for adapter in [Some(&adapter), None] {
            let pass = Pass { forest: &forest, adapter, cancel: &cancel };
            let along = |share: &[f32]| {
                let path = Path { base: &base, share };
                model.slopes64(&pass, &path, &targets, &mut |log_p| Ok(log_p.to_vec())).unwrap()
            };
            // f is half the sum of squares of log p, whose derivative is log p
            let value = |share: &[f32]| 0.5 * along(share).0.iter().map(|x| x * x).sum::<f64>();
            let mut share: Vec<f32> = (0..rows).map(|row| (row % 5) as f32 / 8.0 + 0.25).collect();
            let (_, slopes) = along(&share);
            for row in 0..rows {
                let (at, step) = (share[row], 1.0 / 4096.0);
                let [above, below] = [step, -step].map(|step| {
                    share[row] = at + step;
                    value(&share)
                });
                share[row] = at;
                let difference = (above - below) / (2.0 * f64::from(step));
                let near = (slopes[row] - difference).abs() <= 1e-4 * difference.abs() + 1e-6;
                assert!(near, "{name}, row {row}: {} {difference}", slopes[row]);
            }
            assert_eq!(along(&vec![1.0; rows]).0, model.log_probs64(&pass, None, &targets).unwrap());
            let pass = Pass { forest: &other, adapter, cancel: &cancel };
            assert_eq!(along(&vec![0.0; rows]).0, model.log_probs64(&pass, None, &targets).unwrap());
        }
    }
}
