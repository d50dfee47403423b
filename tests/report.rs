//! report.html in a real browser: every plot is there, nothing fails, nothing is fetched, and no text that nobody asked for.

#[path = "common/command.rs"]
mod command;

use command::Place;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

/// Names under which a Chromium may be installed.
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];

/// What a page is after its script ran, and what the browser's console said of it; `None` where there is no browser.
fn opened(page: &Path) -> Option<(String, Vec<String>)> {
    let there =
        |name: &&&str| Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    let browser = BROWSERS.iter().find(there)?;
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", page.display()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let console = said.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    Some((String::from_utf8(output.stdout).unwrap(), console))
}

fn report(place: &Place, more: &[&str]) -> (String, Value) {
    let (adapter, out) = (place.adapter("adapter"), place.arg("report"));
    let data = place.dialogues();
    let fixed = ["eval", "--adapter", &adapter, "--data", &data, "--report", &out, "--quiet"];
    place.run(&[&fixed[..], more].concat()).ok();
    let read = |name: &str| std::fs::read_to_string(place.path("report").join(name)).unwrap();
    (read("report.html"), serde_json::from_str(&read("report.json")).unwrap())
}

#[test]
fn a_browser_shows_every_plot_says_nothing_and_may_fetch_nothing() {
    let place = Place::new();
    let (page, _) = report(&place, &["--report-texts"]);
    let path = place.path("report/report.html");
    let Some((dom, console)) = opened(&path) else {
        eprintln!("SKIPPED a_browser_shows_every_plot_says_nothing_and_may_fetch_nothing: no Chromium");
        return;
    };
    assert_eq!(console, [""; 0]);
    for plot in ["reliability", "risk", "loss", "rate", "dev"] {
        let figure =
            dom.split(&format!("<figure id=\"{plot}\"")).nth(1).and_then(|rest| rest.split("</figure>").next());
        let figure = figure.unwrap_or_else(|| panic!("no plot {plot}"));
        assert!(
            figure.contains("aria-label=\"") && figure.contains("<svg") && figure.matches("<text").count() > 4,
            "{plot}"
        );
        assert!(figure.contains("<polyline") || figure.contains("<circle"), "{plot} is empty");
    }
    // the checker sees a failing script, and the page's policy refuses whatever is not inside it
    let broken =
        page.replace("</body>", "<script>nowhere()</script><img src=\"https://example.invalid/x.png\"></body>");
    std::fs::write(&path, broken).unwrap();
    let (_, console) = opened(&path).unwrap();
    assert!(console.iter().any(|line| line.contains("nowhere is not defined")), "{console:?}");
    assert!(
        console.iter().any(|line| line.contains("Content Security Policy") || line.contains("example.invalid")),
        "{console:?}"
    );
}

#[test]
fn a_report_holds_nobodys_words_unless_asked_and_cannot_be_made_to_run_them() {
    let place = Place::new();
    let (page, figures) = report(&place, &[]);
    assert!(!page.contains("Who is there?") && page.contains("dialogue") && !page.contains("http://e"), "{page}");
    for field in ["accuracy", "ece_equal_mass", "reliability", "selective", "confusion"] {
        assert!(!figures[field].is_null(), "{field}");
    }
    let hostile =
        r#"{"id":"<script>x","turns":[{"speaker":"<b>Ann","text":"<script>alert(1)</script>","emotion":"joy"}]}"#;
    let data = format!("jsonl:{}", place.write("hostile.jsonl", hostile));
    let (adapter, out) = (place.arg("adapter"), place.arg("report"));
    place.run(&["eval", "--adapter", &adapter, "--data", &data, "--report", &out, "--report-texts", "--quiet"]).ok();
    let page = std::fs::read_to_string(place.path("report/report.html")).unwrap();
    assert_eq!(page.matches("<script>").count(), 1, "the page's own");
    assert!(page.contains("&lt;script&gt;alert(1)"), "{page}");
}

#[test]
fn training_writes_the_report_that_eval_writes_of_what_it_made() {
    let place = Place::new();
    let (data, out, made) = (place.dialogues(), place.arg("adapter"), place.path("made"));
    let report = ["--report", made.to_str().unwrap(), "--report-texts"];
    let fixed = ["train", "--data", &data, "--dev", &data, "--out", &out, "--epochs", "2", "--batch", "2", "--quiet"];
    place.run(&[&fixed[..], &report].concat()).ok();
    let evaluated = ["eval", "--adapter", &out, "--data", &data, "--report", &place.arg("report"), "--report-texts"];
    place.run(&evaluated).ok();
    let figures = |dir: &str| {
        let text = std::fs::read(place.path(dir).join("report.json")).unwrap();
        let mut figures: Value = serde_json::from_slice(&text).unwrap();
        figures["seconds"] = Value::Null;
        figures
    };
    assert_eq!(figures("made"), figures("report"));
    let page = |dir: &str| std::fs::read_to_string(place.path(dir).join("report.html")).unwrap();
    let body = |page: String| page.split_once("<h2>Labels").unwrap().1.to_owned();
    assert_eq!(body(page("made")), body(page("report")));
    // what cannot be shown is said before anything is trained
    let nothing = place.arg("nothing");
    let refused = place.run(&["train", "--data", &data, "--out", &nothing, "--report", &nothing]).refusal(1);
    assert!(refused.contains("--dev"), "{refused}");
    let why = ["--dev", &data, "--ahead", "all", "--report-why", "turns"];
    let all = [&["train", "--data", &data, "--out", &nothing, "--report", &nothing][..], &why].concat();
    let refused = place.run(&all).refusal(5);
    assert!(refused.contains("`ahead`") && !place.path("nothing").exists(), "{refused}");
}

#[test]
fn a_report_says_why_in_the_figures_of_the_command() {
    let place = Place::new();
    let (page, _) = report(&place, &["--report-texts", "--report-why", "words", "--report-why-all"]);
    let dialogues = page.split("<h2>Dialogues").nth(1).unwrap();
    assert_eq!(dialogues.matches("<details class=\"why\">").count(), 6, "every turn");
    let row = dialogues.split("<td class=\"said\">Good.").nth(1).unwrap().split("</details>").next().unwrap();
    let dialogue = place.write("b.jsonl", command::DIALOGUES.lines().nth(1).unwrap());
    let adapter = place.arg("adapter");
    let why = place.run(&["why", "--adapter", &adapter, "--method", "words", "--json", "--input", &dialogue]).json();
    for turn in why["turns"].as_array().unwrap() {
        let change = format!("<td>{:+.2}<span", turn["change"].as_f64().unwrap()).replace("-0.00", "+0.00");
        assert!(row.contains(&change) && row.contains(&format!("<td>{:.2}</td>", turn["without"].as_f64().unwrap())));
    }
    let words = why["words"].as_array().unwrap();
    assert_eq!(words.len(), 3, "Who is there?");
    for word in words {
        assert!(row.contains(&format!(">{}</span>", word["text"].as_str().unwrap())), "{word}: {row}");
    }
    if let Some((_, console)) = opened(&place.path("report/report.html")) {
        assert_eq!(console, [""; 0]);
    }
    // without texts no word is shown
    let (page, _) = report(&Place::new(), &["--report-why", "words"]);
    assert!(page.contains("<details class=\"why\">") && !page.contains("there?"), "{page}");
}
