//! The trainer on an engine small enough to check: gradients, accumulation, order, resume, cancel, refusals.

use super::super::data::{Choice, Prompt};
use super::super::loss::{Loss, Shape};
use super::super::schedule::Schedule;
use super::*;
use crate::fake::{self, Event, Script};
use std::ops::Range;

fn draw(i: u64, below: u64) -> u64 {
    dropout::key(1, i, 0, 0, 0) % below
}

fn prompt(ids: Vec<u32>, answer: Range<usize>) -> Prompt {
    Prompt { ids, answer, weight: 1.0, choice: None }
}

/// Dialogues of one to three prompts with common beginnings and various numbers of targets and weights.
fn dialogues(n: u64) -> Vec<Group> {
    let ids = |seed: u64, len: u64| -> Vec<u32> { (0..len).map(|i| draw(seed * 100 + i, 13) as u32).collect() };
    let one = |g: u64, p: u64| {
        let (trunk, leaf) = (ids(g % 3, 3 + 2 * p), ids(50 + 10 * g + p, 2 + draw(g + p, 3)));
        let (from, to) = (trunk.len() + 1, trunk.len() + leaf.len());
        Prompt { weight: 1.0 + (g % 2) as f32 / 2.0, ..prompt([trunk, leaf].concat(), from..to) }
    };
    let group = |g: u64| Group { sample: g, stage: 0, prompts: (0..1 + g % 3).map(|p| one(g, p)).collect() };
    (0..n).map(group).collect()
}

/// Questions with three candidates, the first tokens shared.
fn questions(n: u64) -> Vec<Group> {
    let candidate = |g: u64, c: u64| Prompt {
        choice: Some(Choice { question: 0, gold: c == draw(g, 3), bias: 0.0 }),
        ..prompt(vec![1, draw(g, 13) as u32, 5, c as u32, 7 + (c * g % 3) as u32], 3..5)
    };
    (0..n).map(|g| Group { sample: g, stage: 0, prompts: (0..3).map(|c| candidate(g, c)).collect() }).collect()
}

fn data_for(loss: Loss) -> Vec<Group> {
    if loss == Loss::Choice { questions(7) } else { dialogues(7) }
}

/// Seven groups in batches of three: the last step of every epoch is short.
fn options(loss: Loss) -> Options {
    Options {
        loss,
        batch: 3,
        epochs: 8,
        learning_rate: 1e-2,
        weight_decay: 0.1,
        schedule: Schedule::Cosine,
        warmup_ratio: 0.1,
        micro_tokens: 12,
        ..Options::default()
    }
}

fn trainer(dropout: f64, options: Options) -> (Trainer, Script) {
    let (model, script) = fake::model();
    let groups = data_for(options.loss);
    (Trainer::new(model, fake::adapter(dropout), groups, options).unwrap(), script)
}

fn run(trainer: &mut Trainer, steps: usize) -> Vec<StepReport> {
    (0..steps).map(|_| trainer.step(&Cancel::default()).unwrap()).collect()
}

/// The parameters as they are now.
fn params(trainer: &mut Trainer) -> Vec<f32> {
    trainer.adapter().unwrap().params().to_vec()
}

fn bits(trainer: &mut Trainer) -> Vec<u32> {
    let mut all = params(trainer);
    all.extend(trainer.learner.values().unwrap().iter());
    let Moments { m, v } = trainer.learner.moments().unwrap();
    all.extend(m.iter().chain(&*v));
    all.into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_steps_gradient_is_the_slope_of_its_loss() {
    for loss in [Loss::Answer, Loss::Sequence, Loss::Choice] {
        for dropout in [0.0, 0.3] {
            let (mut trainer, _) = trainer(dropout, options(loss));
            trainer.sort_epoch();
            trainer.accumulate(&Cancel::default()).unwrap();
            let gradient = trainer.learner.gradient().unwrap();
            for (i, got) in gradient.iter().enumerate() {
                let want = slope(&mut trainer, i);
                assert!((f64::from(*got) - want).abs() <= 1e-4 * want.abs().max(1.0), "{loss:?} {i}: {got}, {want}");
            }
            assert!(gradient.iter().all(|&g| g != 0.0));
        }
    }
}

/// Four-point differences: log-probabilities are f32, so the steps are wide.
fn slope(trainer: &mut Trainer, i: usize) -> f64 {
    const H: f32 = 1.0 / 128.0;
    let mut adapter = trainer.adapter().unwrap().clone();
    let at = adapter.params()[i];
    let mut loss = |d: f32| {
        adapter.params_mut()[i] = at + d;
        trainer.learner = trainer.model.engine().learner(&adapter, None).unwrap();
        trainer.accumulate(&Cancel::default()).unwrap().loss
    };
    let slope = (8.0 * (loss(H) - loss(-H)) - (loss(2.0 * H) - loss(-2.0 * H))) / f64::from(12.0 * H);
    loss(0.0);
    slope
}

#[test]
fn how_a_step_is_cut_changes_it_by_rounding_only() {
    for loss in [Loss::Answer, Loss::Choice] {
        let whole = Options { micro_tokens: 1 << 20, ..options(loss) };
        let pieces = Options { micro_tokens: 1, ..options(loss) };
        let ((mut a, one), (mut b, many)) = (trainer(0.0, whole), trainer(0.0, pieces));
        for (a, b) in run(&mut a, 8).into_iter().zip(run(&mut b, 8)) {
            assert!((a.loss - b.loss).abs() <= 1e-6 * a.loss, "{} against {}", a.loss, b.loss);
            assert!((a.grad_norm - b.grad_norm).abs() <= 1e-5 * a.grad_norm);
            assert!(a.tokens <= b.tokens && a.linear_tokens == b.linear_tokens);
        }
        let (one, many) = (one.calls.lock().unwrap().len(), many.calls.lock().unwrap().len());
        assert_eq!((one, many), (8, 8 / 3 * 7 + 6)); // a pass a step; a pass a group
    }
}

#[test]
fn a_short_last_batch_is_a_step_divided_by_its_own_targets() {
    let keep = Options { shuffle: false, learning_rate: 1e-30, warmup_ratio: 0.0, ..options(Loss::Answer) };
    let (mut all, _) = trainer(0.0, keep.clone());
    let (model, _) = fake::model();
    let last = data_for(Loss::Answer).split_off(6);
    let mut alone = Trainer::new(model, fake::adapter(0.0), last, keep).unwrap();
    let reports = run(&mut all, 3);
    assert_eq!(
        reports.iter().map(|r| (r.epoch, r.epoch_done)).collect::<Vec<_>>(),
        [(1, false), (1, false), (1, true)]
    );
    assert_eq!(reports[2].loss, run(&mut alone, 1)[0].loss);
}

#[test]
fn every_epoch_has_every_group_once_in_an_order_of_its_own() {
    let (mut trainer, _) = trainer(0.0, options(Loss::Answer));
    let mut orders = Vec::new();
    for _ in 0..4 {
        let mut epoch = Vec::new();
        for _ in 0..3 {
            trainer.sort_epoch();
            epoch.extend_from_slice(trainer.groups_of_step());
            run(&mut trainer, 1);
        }
        let mut sorted = epoch.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3, 4, 5, 6]);
        orders.push(epoch);
    }
    orders.sort_unstable();
    orders.dedup();
    assert_eq!(orders.len(), 4);
}

#[test]
fn without_shuffling_groups_come_as_given() {
    let (mut trainer, _) = trainer(0.0, Options { shuffle: false, ..options(Loss::Answer) });
    for want in [vec![0, 1, 2], vec![3, 4, 5], vec![6], vec![0, 1, 2]] {
        trainer.sort_epoch();
        assert_eq!(trainer.groups_of_step(), want);
        run(&mut trainer, 1);
    }
}

#[test]
fn groups_wait_for_their_epoch_and_dev_scores_for_its_end() {
    let mut groups = dialogues(7);
    (groups[1].stage, groups[4].stage, groups[5].stage, groups[6].stage) = (1, 1, 2, 1);
    let options = Options { shuffle: false, epochs: 3, ..options(Loss::Answer) };
    let mut trainer = Trainer::new(fake::model().0, fake::adapter(0.0), groups, options).unwrap();
    let mut epochs = vec![Vec::new(); 3];
    while !trainer.is_done() {
        trainer.sort_epoch();
        let taken = trainer.groups_of_step().to_vec();
        let report = run(&mut trainer, 1)[0];
        assert_eq!((report.epoch, report.epoch_done), (trainer.epoch(), trainer.epoch_is_done()));
        assert_eq!(report.epoch_done, [1, 3, 6].contains(&report.step));
        epochs[report.epoch as usize - 1].extend(taken);
    }
    assert_eq!(epochs, [vec![0, 2, 3], vec![0, 1, 2, 3, 4, 6], vec![0, 1, 2, 3, 4, 5, 6]]);
}

#[test]
fn another_seed_is_another_order() {
    let order = |seed| {
        let (mut trainer, _) = trainer(0.0, Options { seed, ..options(Loss::Answer) });
        trainer.sort_epoch();
        trainer.order
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
}

#[test]
fn the_first_warm_up_step_has_rate_0() {
    let (mut trainer, _) = trainer(0.0, options(Loss::Answer));
    let reports = run(&mut trainer, 1);
    assert_eq!(reports[0].lr, 0.0);
    assert_eq!(params(&mut trainer), fake::adapter(0.0).params());
    assert!(trainer.learner.moments().unwrap().m.iter().all(|&m| m != 0.0));
}

#[test]
fn weight_decay_takes_its_share_of_a_and_b_alike() {
    let plain = Options { warmup_ratio: 0.0, weight_decay: 0.0, ..options(Loss::Answer) };
    let decayed = Options { weight_decay: 0.5, ..plain.clone() };
    let ((mut plain, _), (mut decayed, _)) = (trainer(0.0, plain), trainer(0.0, decayed));
    run(&mut plain, 1);
    run(&mut decayed, 1);
    let start = fake::adapter(0.0);
    for ((start, plain), decayed) in start.params().iter().zip(plain.adapter.params()).zip(decayed.adapter.params()) {
        let diff = plain - decayed - start * 1e-2 * 0.5;
        assert!(diff.abs() <= 2e-7, "{start}: {plain} and {decayed}");
    }
}

#[test]
fn the_loss_falls_while_training() {
    for loss in [Loss::Answer, Loss::Sequence, Loss::Choice] {
        let (mut trainer, _) = trainer(0.0, Options { learning_rate: 5e-2, ..options(loss) });
        let reports = run(&mut trainer, 24);
        let mean = |part: &[StepReport]| part.iter().map(|r| r.loss).sum::<f64>();
        assert!(mean(&reports[18..]) < 0.9 * mean(&reports[..6]), "{loss:?}");
        assert!(reports[23].done && trainer.is_done() && trainer.steps() == 24);
    }
}

#[test]
fn after_the_last_step_there_is_none() {
    let (mut trainer, _) = trainer(0.0, Options { max_steps: 2, ..options(Loss::Answer) });
    assert!(run(&mut trainer, 2)[1].done);
    let error = trainer.step(&Cancel::default()).unwrap_err();
    assert_eq!((error.code(), error.text()), (Code::InvalidArgument, "the run is over: all 2 steps are made"));
}

#[test]
fn prompts_are_shared_across_samples_only_without_randomness() {
    let tokens = |dropout, neftune| {
        let all = Options { micro_tokens: 1 << 20, batch: 7, shuffle: false, neftune, ..options(Loss::Answer) };
        run(&mut trainer(dropout, all).0, 1)[0].tokens
    };
    let alone: usize = data_for(Loss::Answer)
        .iter()
        .map(|group| {
            super::super::batch::Layout { loss: Loss::Answer, shape: Shape::default(), shared: false }
                .batch(&[group])
                .forest
                .len()
        })
        .sum();
    assert!(tokens(0.0, 0.0) < alone);
    assert_eq!((tokens(0.1, 0.0), tokens(0.0, 5.0)), (alone, alone));
}

#[test]
fn noise_is_keyed_by_seed_and_step() {
    let (mut trainer, script) = trainer(0.3, Options { micro_tokens: 1 << 20, neftune: 5.0, ..options(Loss::Answer) });
    run(&mut trainer, 2);
    let noises: Vec<_> = script.calls.lock().unwrap().iter().map(|call| call.noise).collect();
    let want = |step| Some(Noise { seed: 42, step, dropout: 0.3, neftune: 5.0 });
    assert_eq!(noises, [want(0), want(1)]);
}

#[test]
fn a_rerun_makes_the_same_bits() {
    for dropout in [0.0, 0.3] {
        let finish = || {
            let (mut trainer, _) = trainer(dropout, options(Loss::Answer));
            run(&mut trainer, 20);
            bits(&mut trainer)
        };
        assert_eq!(finish(), finish());
    }
}

#[test]
fn a_run_saved_after_any_step_and_resumed_makes_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    for (loss, average) in [(Loss::Answer, 0.0), (Loss::Choice, 0.5)] {
        let options = |loss| Options { average, ..options(loss) };
        let (mut unbroken, _) = trainer(0.3, options(loss));
        let reports = run(&mut unbroken, 20);
        for stop in 0..=20 {
            let (mut first, _) = trainer(0.3, options(loss));
            run(&mut first, stop);
            first.save(&dir.path().join("run")).unwrap();
            drop(first);
            let mut second =
                Trainer::resume(&dir.path().join("run"), fake::model().0, data_for(loss), options(loss)).unwrap();
            let again = run(&mut second, 20 - stop);
            assert_eq!(bits(&mut second), bits(&mut unbroken), "stopped after {stop}");
            assert!(again.iter().zip(&reports[stop..]).all(|(a, b)| StepReport { seconds: b.seconds, ..*a } == *b));
        }
    }
}

#[test]
fn the_last_steps_are_averaged_scored_and_kept_and_change_no_step() {
    let averaged = Options { average: 0.25, ..options(Loss::Answer) };
    let ((mut plain, _), (mut averaged, _)) = (trainer(0.3, options(Loss::Answer)), trainer(0.3, averaged));
    let mut sum = vec![0.0; params(&mut plain).len()];
    for step in 1..=24 {
        let loss = run(&mut plain, 1)[0].loss;
        assert_eq!(run(&mut averaged, 1)[0].loss, loss);
        if step <= 18 {
            assert_eq!(params(&mut averaged), params(&mut plain), "step {step}");
            continue;
        }
        sum.iter_mut().zip(params(&mut plain)).for_each(|(sum, value)| *sum += f64::from(value));
        let n = f64::from(step - 18);
        let near = |(got, sum): (&f32, &f64)| (f64::from(*got) - sum / n).abs() <= 1e-6;
        assert!(params(&mut averaged).iter().zip(&sum).all(near), "step {step}");
    }
    averaged.note_dev(1.0, Map::new()).unwrap();
    let mean = params(&mut averaged);
    assert_ne!(mean, params(&mut plain));
    assert_eq!(averaged.finish().unwrap().0.params(), mean);
}

/// This test is its own child process, which trains and saves without end until it is killed.
#[test]
fn a_run_killed_at_any_time_resumes_to_the_same_bits_as_an_unbroken_one() {
    const DIR: &str = "DLLM_TEST_KILLED_RUN";
    let settings = Options { max_steps: 60, ..options(Loss::Answer) };
    let begin = |dir: &Path| match dir.exists() {
        true => Trainer::resume(dir, fake::model().0, data_for(Loss::Answer), settings.clone()).unwrap(),
        false => trainer(0.3, settings.clone()).0,
    };
    if let Some(dir) = std::env::var_os(DIR) {
        let dir = Path::new(&dir);
        let mut run_on = begin(dir);
        while !run_on.is_done() {
            run(&mut run_on, 1);
            run_on.save(dir).unwrap();
        }
        loop {
            run_on.save(dir).unwrap();
        }
    }
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let mut reached = Vec::new();
    for kill in 0..20u64 {
        let name = "train::trainer::tests::a_run_killed_at_any_time_resumes_to_the_same_bits_as_an_unbroken_one";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args([name, "--exact"]).env(DIR, &dir).stdout(std::process::Stdio::null());
        let mut child = child.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_micros(15_000 + draw(kill, 40_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        reached.push(begin(&dir).steps_made());
    }
    assert!(reached.is_sorted() && reached[19] > 0, "{reached:?}");
    let (mut killed, mut unbroken) = (begin(&dir), trainer(0.3, settings.clone()).0);
    let left = (60 - killed.steps_made()) as usize;
    run(&mut killed, left);
    run(&mut unbroken, 60);
    assert_eq!(bits(&mut killed), bits(&mut unbroken), "killed after {reached:?}");
}

#[test]
fn a_cancel_in_the_middle_of_a_step_leaves_the_trainer_as_before_it() {
    let (mut calm, _) = trainer(0.3, options(Loss::Answer));
    run(&mut calm, 6);
    let (mut cancelled, script) = trainer(0.3, options(Loss::Answer));
    for made in 0..6 {
        let before = bits(&mut cancelled);
        // In the first pass of some steps and in the second of those that have one.
        script.then(if made % 3 == 1 { &[Event::Fine, Event::Cancelled] } else { &[Event::Cancelled] });
        let error = cancelled.step(&Cancel::default()).unwrap_err();
        script.events.lock().unwrap().clear();
        assert_eq!(error.code(), Code::Cancelled);
        assert_eq!((bits(&mut cancelled), cancelled.steps_made()), (before, made));
        run(&mut cancelled, 1);
    }
    assert_eq!(bits(&mut cancelled), bits(&mut calm));
}

#[test]
fn a_set_cancel_stops_before_anything_is_computed() {
    let (mut trainer, script) = trainer(0.0, options(Loss::Answer));
    let cancel = Cancel::default();
    cancel.set();
    assert_eq!(trainer.step(&cancel).unwrap_err().code(), Code::Cancelled);
    assert_eq!((trainer.steps_made(), script.cost()), (0, 0));
}

#[test]
fn a_step_that_is_not_finite_is_skipped_and_counted() {
    for event in [Event::NanLoss, Event::NanGradient] {
        let (mut trainer, script) = trainer(0.0, options(Loss::Answer));
        run(&mut trainer, 2);
        let before = bits(&mut trainer);
        script.then(&[event]);
        let report = run(&mut trainer, 1)[0];
        assert!(report.skipped && !(report.loss.is_finite() && report.grad_norm.is_finite()));
        assert_eq!((bits(&mut trainer), trainer.steps_made(), trainer.skipped()), (before, 3, 1));
        assert!(!run(&mut trainer, 1)[0].skipped);
        assert!(params(&mut trainer).iter().all(|p| p.is_finite()));
    }
}

#[test]
fn too_many_skips_in_a_row_end_the_run() {
    let (mut trainer, script) = trainer(0.0, Options { skip_limit: 2, micro_tokens: 1 << 20, ..options(Loss::Answer) });
    script.then(&[Event::NanLoss, Event::NanLoss, Event::Fine, Event::NanLoss, Event::NanLoss, Event::NanLoss]);
    run(&mut trainer, 5);
    let error = trainer.step(&Cancel::default()).unwrap_err();
    assert_eq!(error.code(), Code::Numeric);
    assert!(error.text().starts_with("step 6: the loss is NaN"), "{error}");
    assert_eq!((trainer.steps_made(), trainer.skipped()), (5, 4));
}

#[test]
fn a_batch_without_any_answer_has_loss_0() {
    let mut groups = data_for(Loss::Answer);
    groups[0].prompts.iter_mut().for_each(|p| p.answer = p.ids.len()..p.ids.len());
    let keep = Options { shuffle: false, batch: 1, warmup_ratio: 0.0, ..options(Loss::Answer) };
    let mut trainer = Trainer::new(fake::model().0, fake::adapter(0.0), groups, keep).unwrap();
    let report = run(&mut trainer, 1)[0];
    assert_eq!((report.loss, report.grad_norm, report.tokens, report.skipped), (0.0, 0.0, 0, false));
}

#[test]
fn bad_options_and_adapters_are_refused() {
    let new = |adapter, options| Trainer::new(fake::model().0, adapter, dialogues(2), options).err().unwrap();
    let error = new(fake::adapter(0.0), Options { batch: 0, ..Options::default() });
    assert_eq!(error.text(), "batch is 0, must be 1 or more");
    let mut broken = fake::adapter(0.0);
    broken.params_mut()[3] = f32::NAN;
    let error = new(broken, Options::default());
    assert_eq!(error.text(), "the adapter to train has NaN at parameter 3, must be finite");
}

mod dev {
    use super::*;

    #[test]
    fn the_best_dev_scores_parameters_are_kept_and_the_first_of_equals_wins() {
        let (mut trainer, _) = trainer(0.0, options(Loss::Answer));
        let mut at = Vec::new();
        for score in [0.3, 0.6, 0.6, 0.5] {
            run(&mut trainer, 3);
            at.push(params(&mut trainer));
            assert_eq!(trainer.note_dev(score, Map::new()).unwrap(), at.len() <= 2);
        }
        assert!(trainer.note_dev(f64::NAN, Map::new()).is_err());
        let (adapter, best) = trainer.finish().unwrap();
        assert_eq!(adapter.params(), at[1]);
        assert_eq!(best, Some(Best { score: 0.6, step: 6, epoch: 2 }));
    }

    #[test]
    fn without_dev_scores_the_last_parameters_stay() {
        let (mut trainer, _) = trainer(0.0, options(Loss::Answer));
        run(&mut trainer, 3);
        let last = params(&mut trainer);
        let (adapter, best) = trainer.finish().unwrap();
        assert_eq!((adapter.params(), best), (last.as_slice(), None));
    }

    #[test]
    fn the_best_is_still_known_after_a_resume_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let (mut first, _) = trainer(0.0, options(Loss::Answer));
        run(&mut first, 3);
        let score = 0.1 + 0.2; // not the f64 nearest to 0.3
        first.note_dev(score, Map::new()).unwrap();
        let then = first.adapter.params().to_vec();
        run(&mut first, 1);
        first.save(&dir.path().join("run")).unwrap();
        let resumed =
            Trainer::resume(&dir.path().join("run"), fake::model().0, data_for(Loss::Answer), options(Loss::Answer));
        let mut resumed = resumed.unwrap();
        assert!(!resumed.note_dev(score, Map::new()).unwrap());
        let (adapter, best) = resumed.finish().unwrap();
        assert_eq!(adapter.params(), then);
        assert_eq!(best, Some(Best { score, step: 3, epoch: 1 }));
    }
}

mod log {
    use super::*;

    fn steps_in(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap();
        let step = |line: &str| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap();
        text.lines().map(step).collect()
    }

    #[test]
    fn each_step_stands_in_the_metrics_once_after_a_crash_and_a_resume() {
        let dir = tempfile::tempdir().unwrap();
        let (run_dir, log) = (dir.path().join("run"), dir.path().join("metrics.jsonl"));
        let (mut first, _) = trainer(0.0, options(Loss::Answer));
        first.log_to(&log).unwrap();
        run(&mut first, 3);
        first.note_dev(0.5, Map::new()).unwrap();
        run(&mut first, 1);
        first.save(&run_dir).unwrap();
        run(&mut first, 3); // lost
        drop(first);
        let mut second =
            Trainer::resume(&run_dir, fake::model().0, data_for(Loss::Answer), options(Loss::Answer)).unwrap();
        second.log_to(&log).unwrap();
        run(&mut second, 2);
        assert_eq!(steps_in(&log), [1, 2, 3, 3, 4, 5, 6]);
    }

    #[test]
    fn a_line_holds_the_steps_numbers_and_the_dev_lines_details() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("metrics.jsonl");
        let (mut trainer, script) = trainer(0.0, options(Loss::Answer));
        trainer.log_to(&log).unwrap();
        let report = run(&mut trainer, 1)[0];
        script.then(&[Event::NanLoss]);
        run(&mut trainer, 1);
        trainer.note_dev(0.5, json_line(json!({"accuracy": 0.25}))).unwrap();
        let text = std::fs::read_to_string(&log).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["tokens"], report.tokens);
        assert_eq!(lines[0]["linear_tokens"], report.linear_tokens);
        assert!((lines[0]["loss"].as_f64().unwrap() - report.loss).abs() <= 1e-12);
        assert_eq!((&lines[1]["loss"], &lines[1]["skipped"]), (&Value::Null, &Value::Bool(true)));
        assert_eq!((&lines[2]["dev_score"], &lines[2]["accuracy"]), (&json!(0.5), &json!(0.25)));
    }

    #[test]
    fn a_step_whose_line_cannot_be_written_did_not_happen() {
        let (mut trainer, _) = trainer(0.0, options(Loss::Answer));
        run(&mut trainer, 2);
        let before = bits(&mut trainer);
        trainer.metrics = Some(Metrics::broken());
        assert_eq!(trainer.step(&Cancel::default()).unwrap_err().code(), Code::Io);
        assert_eq!((bits(&mut trainer), trainer.steps_made()), (before, 2));
    }
}

mod checkpoints {
    use super::*;

    /// tests/checkpoints/format_1 was written by this library's first version: five steps of `options(Answer)` with
    /// dropout 0.3, a dev score of 0.625 after the second, the third skipped for a NaN loss.
    #[test]
    fn the_first_format_still_opens() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/format_1");
        let mut old = resume(&path).unwrap();
        assert_eq!((old.steps_made(), old.skipped()), (5, 1));
        assert_eq!(old.best(), Some(Best { score: 0.625, step: 2, epoch: 1 }));
        let (mut new, script) = trainer(0.3, options(Loss::Answer));
        run(&mut new, 2);
        script.then(&[Event::NanLoss]);
        run(&mut new, 3);
        for (old, new) in old.adapter.params().iter().zip(new.adapter.params()) {
            assert!((old - new).abs() <= 1e-5 * new.abs(), "{old} against {new}");
        }
        run(&mut old, 1);
    }

    /// A saved run of five steps.
    fn saved() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let (mut trainer, _) = trainer(0.0, options(Loss::Answer));
        run(&mut trainer, 5);
        trainer.save(&path).unwrap();
        (dir, path)
    }

    fn resume(path: &Path) -> Result<Trainer> {
        Trainer::resume(path, fake::model().0, data_for(Loss::Answer), options(Loss::Answer))
    }

    fn refusal(path: &Path) -> String {
        resume(path).err().unwrap().to_string()
    }

    fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
        let file = path.join("state.json");
        let mut state = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        change(&mut state);
        std::fs::write(&file, state.to_string()).unwrap();
    }

    #[test]
    fn another_base_precision_data_or_setting_is_refused_with_both_values() {
        let (_dir, path) = saved();
        let (data, settings) = (data_for(Loss::Answer), options(Loss::Answer));
        let says = |model, data, settings| Trainer::resume(&path, model, data, settings).err().unwrap().to_string();
        let base = says(fake::model_as("other", "f32").0, data.clone(), settings.clone());
        assert!(base.contains("begun with base model base, this is other"), "{base}");
        let precision = says(fake::model_as("base", "bf16").0, data.clone(), settings.clone());
        assert!(precision.contains("begun with precision f32, this is bf16"), "{precision}");
        let fewer = says(fake::model().0, data[..6].to_vec(), settings.clone());
        assert!(fewer.contains("begun with training data"), "{fewer}");
        let batch = says(fake::model().0, data, Options { batch: 2, ..settings });
        assert!(batch.contains("batch was 3 and is 2"), "{batch}");
    }

    #[test]
    fn a_newer_format_is_refused() {
        let (_dir, path) = saved();
        edit(&path, |state| state["format"] = json!(FORMAT + 1));
        assert!(refusal(&path).contains("has checkpoint format 2, this version reads formats up to 1"));
    }

    #[test]
    fn a_state_that_contradicts_itself_is_refused() {
        let (_dir, path) = saved();
        edit(&path, |state| state["step"] = json!(25));
        assert!(refusal(&path).contains("state.json contradicts itself: step 25 of 24"));
        edit(&path, |state| state["step"] = json!("five"));
        assert!(refusal(&path).contains("state.json"));
        edit(&path, |state| *state = json!({"a": 1}));
        assert!(refusal(&path).contains("has no format number"));
    }

    #[test]
    fn a_moment_that_is_nan_is_refused() {
        let (_dir, path) = saved();
        let file = path.join("state.safetensors");
        let mut bytes = std::fs::read(&file).unwrap();
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(&file, bytes).unwrap();
        let says = refusal(&path);
        assert!(says.contains("tensor v: value 23 is NaN"), "{says}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let (_dir, path) = saved();
        std::fs::remove_file(path.join("state.safetensors")).unwrap();
        assert!(refusal(&path).contains("state.safetensors"));
        std::fs::remove_file(path.join("state.json")).unwrap();
        assert!(refusal(&path).contains("state.json"));
    }

    #[test]
    fn a_folder_that_is_no_checkpoint_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.tex"), "years").unwrap();
        let (mut trainer, _) = trainer(0.0, options(Loss::Answer));
        let error = trainer.save(dir.path()).unwrap_err();
        assert!(error.text().contains("is no checkpoint"), "{error}");
        assert!(dir.path().join("thesis.tex").exists());
    }

    #[test]
    fn saving_again_replaces_and_a_callers_file_goes_with_it() {
        let (_dir, path) = saved();
        let mut trainer = resume(&path).unwrap();
        run(&mut trainer, 1);
        trainer
            .save_with(&path, |dir| std::fs::write(dir.join("labels"), "joy").map_err(|e| Error::io("write", dir, &e)))
            .unwrap();
        assert_eq!(std::fs::read_to_string(path.join("labels")).unwrap(), "joy");
        assert_eq!(resume(&path).unwrap().steps_made(), 6);
    }

    #[test]
    fn a_save_that_fails_leaves_the_old_checkpoint() {
        let (_dir, path) = saved();
        let mut trainer = resume(&path).unwrap();
        run(&mut trainer, 1);
        assert!(trainer.save_with(&path, |_| Err(Error::invalid("no"))).is_err());
        assert_eq!(resume(&path).unwrap().steps_made(), 5);
    }
}
