//! `study`: every variant with every seed, a table of them, and the same table after a kill.

#[path = "common/command.rs"]
mod command;

use command::{DIALOGUES, Place};
use serde_json::Value;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

const RECIPE: &str = r#"
[train]
max_steps = 30
batch = 2
[lora]
rank = 4
[study]
seeds = [0, 1]
[study.vary]
window = [0, "all"]
[[study.variant]]
name = "the model as it is"
train = false
"#;

/// The arguments of a study into `out`, on dialogues of the tests' own.
fn study(place: &Place, recipe: &str, out: &str) -> Vec<String> {
    std::fs::create_dir_all(place.path("data")).unwrap();
    for split in ["train", "dev", "test"] {
        place.write(&format!("data/{split}.jsonl"), DIALOGUES);
    }
    let (recipe, data) = (place.write("study.toml", recipe), format!("jsonl:{}", place.arg("data")));
    place.model_args(&["study", &recipe, "--data", &data, "--out", &place.arg(out), "--quiet"])
}

fn run(arguments: &[String]) -> command::Ran {
    command::run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn json(place: &Place, file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(place.path(file)).unwrap()).unwrap()
}

/// The results without times, which no two runs share.
fn results(place: &Place, out: &str) -> Value {
    let mut table = json(place, &format!("{out}/table.json"));
    for row in table["variants"].as_array_mut().unwrap() {
        row["training_seconds"] = Value::Null;
    }
    table
}

#[test]
fn every_combination_runs_with_every_seed_and_means_are_those_of_the_runs() {
    let place = Place::new();
    let text = run(&study(&place, RECIPE, "out")).ok();
    assert!(text.contains("| window=all | 2 |") && text.contains(" ± "), "{text}");
    let table = results(&place, "out");
    let rows = table["variants"].as_array().unwrap();
    let names: Vec<_> =
        rows.iter().map(|row| (row["variant"].as_str().unwrap(), row["seeds"].as_u64().unwrap())).collect();
    assert_eq!(names, [("window=0", 2), ("window=all", 2), ("the model as it is", 1)]);
    let nll = |run: &str| json(&place, &format!("out/runs/{run}/report/report.json"))["nll"].as_f64().unwrap();
    let [a, b] = ["window=all/seed-0", "window=all/seed-1"].map(nll);
    let near = |value: &Value, want: f64| (value.as_f64().unwrap() - want).abs() <= 1e-12;
    assert!(a != b && near(&rows[1]["nll"]["mean"], 0.5 * (a + b)), "{rows:?}");
    assert!(near(&rows[1]["nll"]["deviation"], (a - b).abs() / 2f64.sqrt()));
    assert!(near(&rows[2]["nll"]["mean"], nll("the-model-as-it-is/seed-0")) && rows[2]["nll"]["deviation"].is_null());
    let page = std::fs::read_to_string(place.path("out/study.html")).unwrap();
    assert!(
        page.contains("<figure id=\"spread\"") && page.matches("<circle").count() == 3 && page.contains("window=all")
    );
    // done runs stay as they are
    let file = place.path("out/runs/window=0/seed-1/report/report.json");
    let before = std::fs::metadata(&file).unwrap().modified().unwrap();
    run(&study(&place, RECIPE, "out")).ok();
    assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), before);
    let refused = run(&study(&place, &RECIPE.replace("30", "31"), "out")).refusal(1);
    assert!(refused.contains("holds another study"), "{refused}");
}

#[test]
fn a_study_that_was_killed_goes_on_to_the_same_results() {
    let place = Place::new();
    let recipe = RECIPE.replace("max_steps = 30", "max_steps = 300") + "[eval]\ncheckpoint_steps = 5\n";
    run(&study(&place, &recipe, "whole")).ok();
    let arguments = study(&place, &recipe, "killed");
    let mut inside = 0;
    for round in 0..8 {
        let mut child = command::command(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
            .process_group(0)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_millis(60 + 90 * round);
        while Instant::now() < until && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        // SAFETY: a signal to the group that was made for this child.
        unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
        child.wait().unwrap();
        let states = std::fs::read_dir(place.path("killed/runs")).into_iter().flatten().flatten();
        let seeds = states.flat_map(|variant| std::fs::read_dir(variant.path()).unwrap().flatten());
        inside += seeds.filter(|seed| seed.path().join("adapter/state.json").exists()).count();
    }
    assert!(inside > 0, "no kill hit a run that was training");
    run(&arguments).ok();
    assert_eq!(results(&place, "killed"), results(&place, "whole"));
}

#[test]
fn what_is_wrong_in_a_study_is_told_before_anything_runs() {
    let place = Place::new();
    let refused = |recipe: &str, code| run(&study(&place, recipe, "wrong")).refusal(code);
    assert!(refused("[train]\nepochs = 1\n", 1).contains("no table [study]"));
    assert!(refused("[study.vary]\nwindow = 3\n", 1).contains("vary.window is no list"));
    assert!(refused("[study.vary]\nwindows = [3]\n", 1).contains("windows"));
    assert!(refused("[study]\nseeds = []\n", 1).contains("seeds is empty"));
    assert!(refused("[study]\nsplit = \"all\"\n", 1).contains("must be train, dev or test"));
    let twice = "[[study.variant]]\nname = \"a b\"\n[[study.variant]]\nname = \"a-b\"\n";
    assert!(refused(twice, 1).contains("two variants are called a-b"));
    assert!(!place.path("wrong/runs").exists());
}

#[test]
fn every_study_among_the_recipes_runs_end_to_end() {
    let place = Place::new();
    place.deepen();
    let mut studies = 0;
    for entry in std::fs::read_dir("examples/recipes").unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if !name.starts_with("study-") {
            continue;
        }
        studies += 1;
        let mut arguments = study(&place, &std::fs::read_to_string(&path).unwrap(), &name);
        // enough for ten shots of each label and something to learn from
        let many = (0..12).map(|i| DIALOGUES.replace("\"id\":\"", &format!("\"id\":\"{i}")));
        place.write("data/train.jsonl", many.collect::<String>());
        // a token of this model is a character, so prompts are longer than the recipes expect
        arguments.extend(["--set", "max_steps=1", "--set", "max_tokens=2000"].map(String::from));
        if name == "study-context" {
            arguments.extend(["--set", "layers=[1]"].map(String::from)); // the upper one of this model's two
        }
        if name == "study-meld" {
            arguments.extend(["--final".to_owned(), place.arg("openings.jsonl")]);
        }
        let text = run(&arguments).ok();
        assert!(text.lines().count() >= 4 && !text.contains("NaN"), "{text}");
        assert!(!place.path(&name).join("frozen").exists(), "{name} leaves what its runs shared");
    }
    assert!(studies >= 6, "{studies} studies");
}
