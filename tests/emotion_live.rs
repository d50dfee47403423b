//! Proves with the real engine (a small model of random weights, a LLaMA-style tokenizer, every precision) that a turn's
//! probabilities are the same live, alone and in bulk, however forests are packed.

mod common;

use dialoguellm::conversation;
use dialoguellm::emotion::{Bulk, Classifier, Labels, Live, Template};
use dialoguellm::files::dialogues::{Source, Split};
use dialoguellm::files::{Dialogue, LoraConfig, Targets, Turn, Writer};
use dialoguellm::model::{Adapter, Model, OpenOptions, Precision};
use dialoguellm_kernels::matrix::Dtype;
use std::path::Path;
use std::sync::Arc;

/// Sizes of the small model: width, feed-forward, layers, vocabulary; 4 query heads, 2 of keys and values.
const SIZES: [usize; 4] = [32, 64, 3, 320];

fn write_model(dir: &Path) {
    let [d, f, layers, v] = SIZES;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama_tokenizer");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(golden.join(name), dir.join(name)).unwrap();
    }
    let config = format!(
        r#"{{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_act":"silu","vocab_size":{v},"hidden_size":{d},
        "intermediate_size":{f},"num_hidden_layers":{layers},"num_attention_heads":4,"num_key_value_heads":2,"rms_norm_eps":1e-5,
        "rope_theta":10000.0,"max_position_embeddings":2048,"tie_word_embeddings":true,"bos_token_id":1,"eos_token_id":2}}"#
    );
    std::fs::write(dir.join("config.json"), config).unwrap();
    let mut entries = vec![("model.embed_tokens.weight".to_owned(), Dtype::F32, vec![v, d])];
    for layer in 0..layers {
        let matrices: [(&str, &[usize]); 9] = [
            ("input_layernorm", &[d]),
            ("post_attention_layernorm", &[d]),
            ("self_attn.q_proj", &[d, d]),
            ("self_attn.k_proj", &[d / 2, d]),
            ("self_attn.v_proj", &[d / 2, d]),
            ("self_attn.o_proj", &[d, d]),
            ("mlp.gate_proj", &[f, d]),
            ("mlp.up_proj", &[f, d]),
            ("mlp.down_proj", &[d, f]),
        ];
        entries.extend(
            matrices.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), Dtype::F32, shape.to_vec())),
        );
    }
    entries.push(("model.norm.weight".to_owned(), Dtype::F32, vec![d]));
    let mut writer = Writer::create(&dir.join("model.safetensors"), &entries, &[]).unwrap();
    let mut state = 1u32;
    for (_, _, shape) in &entries {
        let values = (0..shape.iter().product::<usize>()).flat_map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
                .mul_add(0.5, if shape.len() == 1 { 1.0 } else { 0.0 })
                .to_le_bytes()
        });
        writer.write(&values.collect::<Vec<u8>>()).unwrap();
    }
    writer.finish().unwrap();
}

fn dialogues() -> Vec<Dialogue> {
    let sayings = ["so it is", "what is it?", "no", "oh, not that", "it was a long day"];
    let turn = |i: usize| Turn {
        speaker: ["Ann", "Bo"][i * i % 3 % 2].into(),
        text: sayings[(i * 7 + i * i) % 5].into(),
        ..Turn::default()
    };
    let dialogue = |n: usize| Dialogue { id: format!("d{n}"), turns: (n..n + 2 + n % 5).map(turn).collect() };
    (0..6).map(dialogue).collect()
}

/// The largest difference of two lists of probabilities; NaN is infinite.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let distance = |(a, b): (&f32, &f32)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() };
    a.iter().zip(b).map(distance).fold(0.0, f32::max)
}

fn classifier(dir: &Path, precision: Precision, template: Template, labels: Labels) -> Arc<Classifier> {
    let options = OpenOptions { precision, threads: 1, ..OpenOptions::default() };
    let model = Arc::new(Model::open(dir, &options).unwrap());
    Arc::new(Classifier::new(model, None, template, labels).unwrap())
}

/// The largest distances of alone and of live from bulk.
fn distances(classifier: &Arc<Classifier>, dialogues: &[Dialogue]) -> [f32; 2] {
    let bulk = classifier.classify(dialogues, &Bulk::default()).unwrap();
    assert!(distance(&bulk[0][0], &bulk[0][1]) > 1e-3, "two turns look alike: this test would see nothing");
    let [mut alone, mut live] = [0f32; 2];
    for (dialogue, bulk) in dialogues.iter().zip(&bulk) {
        let mut listener = Live::new(classifier.clone(), conversation::Options::default());
        for (t, turn) in dialogue.turns.iter().enumerate() {
            let begun = Dialogue { id: String::new(), turns: dialogue.turns[..=t].to_vec() };
            // a budget of one token: every turn has a forest of its own
            let one =
                classifier.classify(&[begun], &Bulk { budget: 1, ..Bulk::default() }).unwrap().remove(0).remove(t);
            alone = alone.max(distance(&one, &bulk[t]));
            let (heard, _) = listener.add_turn(&turn.speaker, &turn.text).unwrap();
            live = live.max(distance(&heard, &bulk[t]));
        }
    }
    [alone, live]
}

fn check(precision: Precision, bound: f32) {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    let short = Template::from_toml("base = \"dialogue\"\ninstruction = \"Which?\"\nwindow = 2").unwrap();
    // what is retrieved changes from turn to turn, and with it the whole prompt
    let sayings = ["no", "a long day", "what is it?"];
    let retrieval: String = sayings.map(|text| format!("[[retrieval]]\ntext = \"{text}\"\nlabel = \"joy\"\n")).concat();
    let retrieving = Template::from_toml(&format!("base = \"dialogue\"\nretrieved = 1\n{retrieval}")).unwrap();
    for template in [Template::built_in("dialogue").unwrap(), short, retrieving] {
        let labels = Labels::new(["joy", "no joy", "fear", "fearful"].map(String::from).to_vec()).unwrap();
        within(bound, distances(&classifier(dir.path(), precision, template, labels), &dialogues()));
    }
}

fn within(bound: f32, [alone, live]: [f32; 2]) {
    println!("alone {alone:e}, live {live:e}");
    assert!(alone <= bound && live <= bound, "alone {alone:e}, live {live:e}");
}

/// The beginning of one of the quickstart's dialogues read by SmolLM2.
fn check_smollm2(precision: Precision, bound: f32) {
    let Some(dir) = common::model_dir() else { return };
    let heldout = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart/heldout.jsonl");
    let mut dialogues = Source::Jsonl(heldout)
        .dialogues(Split::Test, Some(Labels::meld().names()), &dialoguellm::Cancel::default())
        .unwrap();
    dialogues[0].turns.truncate(4);
    let classifier = classifier(&dir, precision, Template::built_in("dialogue").unwrap(), Labels::meld());
    within(bound, distances(&classifier, &dialogues[..1]));
}

#[test]
fn f32_probabilities_are_the_same_live_alone_and_in_bulk() {
    check(Precision::F32, 1e-6);
}

#[test]
fn bf16_probabilities_are_the_same_live_alone_and_in_bulk() {
    check(Precision::Bf16, 1e-6);
}

#[test]
fn smollm2s_f32_probabilities_are_the_same_live_alone_and_in_bulk() {
    check_smollm2(Precision::F32, 1e-5);
}

#[test]
fn smollm2s_bf16_probabilities_are_the_same_live_alone_and_in_bulk() {
    check_smollm2(Precision::Bf16, 1e-5);
}

#[test]
fn an_adapter_folder_gives_back_the_classifier_that_was_saved() {
    let (base, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_model(base.path());
    let plain = classifier(base.path(), Precision::F32, Template::built_in("dialogue").unwrap(), Labels::meld());
    let lora = LoraConfig { rank: 2, alpha: 4.0, targets: Targets::AllLinear, ..LoraConfig::default() };
    let mut adapter = Adapter::new(lora, plain.model().config(), 3).unwrap();
    adapter.params_mut().iter_mut().enumerate().for_each(|(i, p)| *p = (i as f32).sin() / 4.0);
    let adapter = Arc::new(adapter);
    let tuned = Classifier::with_card(plain.model().clone(), Some(adapter.clone()), plain.card().clone()).unwrap();
    let tuned = tuned.calibrated(1.5);
    adapter.write(folder.path()).unwrap();
    tuned.card().write(folder.path()).unwrap();
    let opened = Classifier::open(plain.model().clone(), folder.path()).unwrap();
    let classify = |classifier: &Classifier| classifier.classify(&dialogues(), &Bulk::default()).unwrap();
    assert_eq!(opened.card(), tuned.card());
    assert!(classify(&opened) == classify(&tuned) && classify(&tuned) != classify(&plain));
}
