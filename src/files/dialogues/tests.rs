use super::text::{Lines, MAX_LINE};
use super::*;
use crate::Code;
use std::path::Path;

const HEADER: &str =
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\r\n";

fn read_meld(rows: &str) -> Result<Vec<Dialogue>> {
    meld(Path::new("m.csv"), format!("{HEADER}{rows}").as_bytes(), Split::Dev, None, &Cancel::default())
}

fn row(text: &str, emotion: &str, dialogue: &str, utterance: &str) -> String {
    format!("1,{text},Ann,{emotion},neutral,{dialogue},{utterance},1,1,\"00:16:16,059\",\"0:16:17,000\"\r\n")
}

fn sentence<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn meld_rows_become_turns_with_gaps_in_their_numbers_and_quotes_undone() {
    let rows = row("\"Well, \"\"no\"\"  then\u{2019}\"", "joy", "7", "0")
        + &row("Hm", "fear", "7", "3")
        + &row("So", "anger", "9", "2");
    let dialogues = read_meld(&rows).unwrap();
    let ids: Vec<&str> = dialogues.iter().map(|dialogue| dialogue.id.as_str()).collect();
    assert_eq!(ids, ["dev/7", "dev/9"]);
    assert_eq!(dialogues[0].turns[0].text, "Well, \"no\"  then\u{2019}");
    assert_eq!(dialogues[0].turns[1].emotion.as_deref(), Some("fear"));
}

#[test]
fn a_byte_order_mark_is_not_part_of_the_first_column() {
    let bytes = ["\u{feff}", HEADER, &row("Hm", "joy", "0", "0")].concat();
    assert_eq!(meld(Path::new("m.csv"), bytes.as_bytes(), Split::Dev, None, &Cancel::default()).unwrap().len(), 1);
}

#[test]
fn a_missing_column_is_named() {
    let error = sentence(meld(
        Path::new("m.csv"),
        b"Utterance,Speaker,Dialogue_ID,Utterance_ID\n",
        Split::Dev,
        None,
        &Cancel::default(),
    ));
    assert!(error.contains("m.csv") && error.contains("`Emotion`"), "{error}");
}

#[test]
fn an_unknown_label_names_its_line_and_the_known_ones() {
    let error = sentence(read_meld(&(row("Hm", "joy", "0", "0") + &row("Hm", "joyful", "0", "1"))));
    assert!(error.contains("line 3") && error.contains("`joyful`") && error.contains("neutral, joy"), "{error}");
}

#[test]
fn a_sentence_in_the_label_column_is_not_repeated() {
    let error = sentence(read_meld(&row("Hm", "my secret words", "0", "0")));
    assert!(!error.contains("secret") && error.contains("15 characters"), "{error}");
}

#[test]
fn a_windows_1252_byte_names_line_byte_and_remedy() {
    let bytes = [HEADER.as_bytes(), b"1,It\x92s,Ann,joy,positive,0,0,1,1,a,b\r\n"].concat();
    let error = sentence(meld(Path::new("m.csv"), &bytes, Split::Dev, None, &Cancel::default()));
    assert!(error.contains("line 2, byte 5 is 0x92") && error.contains("WINDOWS-1252"), "{error}");
}

#[test]
fn rows_out_of_order_are_refused() {
    let error = sentence(read_meld(&(row("Hm", "joy", "0", "4") + &row("Hm", "joy", "0", "4"))));
    assert!(error.contains("line 3: Utterance_ID 4 comes after 4"), "{error}");
    let error =
        sentence(read_meld(&(row("Hm", "joy", "0", "0") + &row("Hm", "joy", "1", "0") + &row("Hm", "joy", "0", "1"))));
    assert!(error.contains("line 4: Dialogue_ID 0 began at line 2"), "{error}");
}

#[test]
fn a_row_with_too_few_fields_is_refused_with_both_counts() {
    let error = sentence(read_meld("1,Hm,Ann,joy\r\n"));
    assert!(error.contains("line 2 has 4 fields, the header has 11"), "{error}");
}

#[test]
fn json_lines_give_all_they_hold() {
    let text = "\n{\"id\":\"x\",\"turns\":[{\"speaker\":\"A\",\"text\":\"b\",\"emotion\":\"joy\",\"visual\":\"c\",\"weight\":2}]}\n{\"turns\":[{\"text\":\"\",\"emotion\":null}]}";
    let dialogues = jsonl(Path::new("x"), text.as_bytes(), None, &Cancel::default()).unwrap();
    let turn = Turn {
        speaker: "A".into(),
        text: "b".into(),
        emotion: Some("joy".into()),
        visual: Some("c".into()),
        weight: Some(2.0),
    };
    assert_eq!(dialogues[0], Dialogue { id: "x".into(), turns: vec![turn] });
    assert_eq!(dialogues[1], Dialogue { id: "d1".into(), turns: vec![Turn::default()] });
}

#[test]
fn a_written_dialogue_reads_back() {
    let turn = Turn {
        speaker: "A".into(),
        text: "\"b\"\n".into(),
        visual: Some("c".into()),
        weight: Some(0.5),
        emotion: None,
    };
    let dialogue = Dialogue { id: "x".into(), turns: vec![turn] };
    let text = serde_json::to_string(&dialogue).unwrap();
    assert_eq!(jsonl(Path::new("x"), text.as_bytes(), None, &Cancel::default()).unwrap(), [dialogue]);
}

#[test]
fn json_errors_say_where_and_never_quote() {
    let cases = [
        ("{\"turns\":[{\"text\":\"secret\",\"emotions\":\"joy\"}]}", "line 1: turn 1: unknown name `emotions`"),
        ("{\"turns\":[{\"text\":[\"secret\"]}]}", "`text` is not a text"),
        ("{\"turns\":[{\"speaker\":\"secret\"}]}", "`text` is missing"),
        ("{\"turns\":[]}", "`turns` is empty"),
        ("{\"id\":\"secret\"}", "`turns` is missing"),
        ("\"secret\"", "not an object"),
        ("{\"turns\":[{\"text\":\"secret", "line 1, column 25: not JSON"),
        ("{\"turns\":[{\"text\":\"secret\",\"weight\":-1}]}", "`weight`"),
        ("{\"turns\":[{\"text\":\"secret\",\"emotion\":\"glee\"}]}", "unknown label `glee`; known are joy"),
    ];
    for (text, want) in cases {
        let error = sentence(jsonl(Path::new("f.jsonl"), text.as_bytes(), Some(&["joy".into()]), &Cancel::default()));
        assert!(error.contains(want) && !error.contains("secret"), "{error}");
    }
}

#[test]
fn pairs_are_taken_as_they_are() {
    let text = "{\"prompt\":\" a\\n\",\"completion\":\" b\"}\n{\"prompt\":\"\",\"completion\":\"c\",\"weight\":0}\n";
    let pairs = pairs(Path::new("p"), text.as_bytes(), &Cancel::default()).unwrap();
    assert_eq!(pairs[0], Pair { prompt: " a\n".into(), completion: " b".into(), weight: 1.0 });
    assert_eq!(pairs[1].weight, 0.0);
}

#[test]
fn a_log_is_names_and_texts_with_empty_lines_between_dialogues() {
    let dialogues = log(Path::new("l"), b"Ann: one: two\nBob:three\n\n\nAnn: four\n", &Cancel::default()).unwrap();
    assert_eq!(dialogues.iter().map(|dialogue| dialogue.turns.len()).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(dialogues[0].turns[0].text, "one: two");
    let error = sentence(log(Path::new("l"), b"Ann: one\nsecret words\n", &Cancel::default()));
    assert!(error.contains("l: line 2") && !error.contains("secret"), "{error}");
}

#[test]
fn every_reader_stops_as_asked() {
    let cancel = Cancel::default();
    cancel.set();
    for (name, text, reader) in formats() {
        assert_eq!(reader(Path::new("x"), text.as_bytes(), &cancel).unwrap_err().code(), Code::Cancelled, "{name}");
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    assert_eq!(read(&file, &cancel).unwrap_err().code(), Code::Cancelled);
}

#[test]
fn lines_are_those_of_a_text_and_none_is_longer_than_may_be() {
    let of = |text: &str| {
        let cancel = Cancel::default();
        Lines::of(Path::new("x"), text.as_bytes(), &cancel).map(|line| line.map(|(_, text)| text.to_owned())).collect()
    };
    let texts: Result<Vec<String>> = of("\u{feff}a\r\n\n b\rc \n\r\nd");
    assert_eq!(texts.unwrap(), "a\r\n\n b\rc \n\r\nd".lines().collect::<Vec<_>>());
    let longest = "x".repeat(MAX_LINE);
    let texts: Result<Vec<String>> = of(&format!("{longest}\n"));
    assert_eq!(texts.unwrap().len(), 1);
    let texts: Result<Vec<String>> = of(&format!("a\n{longest}x"));
    assert!(sentence(texts).contains("x: line 2 is longer than the 8388608 bytes"));
}

#[test]
fn a_folder_has_the_splits_whose_files_are_there_and_a_file_has_none() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("dev.jsonl"), "").unwrap();
    assert_eq!(Source::Jsonl(dir.path().into()).splits(), [Split::Dev]);
    assert!(Source::Jsonl(dir.path().join("dev.jsonl")).splits().is_empty());
    assert_eq!(Source::Meld(dir.path().into()).splits().len(), 3);
}

#[test]
fn a_source_is_a_kind_and_a_path() {
    assert_eq!("meld:a:b".parse::<Source>().unwrap(), Source::Meld("a:b".into()));
    assert!(sentence("movie:x".parse::<Source>()).contains("`movie:x`"));
    assert_eq!("jsonl:a?b".parse::<Source>().unwrap(), Source::Jsonl("a?b".into()));
    let described = Source::Described { of: Box::new(Source::Log("a".into())), visual: "b".into() };
    assert_eq!("log:a?visual=b".parse::<Source>().unwrap(), described);
    for wrong in ["meld:a?labels=4", "pairs:a?visual=b", "log:a?visual=b&visual=c", "log:a?visual="] {
        assert!(sentence(wrong.parse::<Source>()).contains(wrong), "{wrong}");
    }
    assert_eq!(
        Source::Meld("/nowhere".into()).dialogues(Split::Dev, None, &Cancel::default()).unwrap_err().code(),
        Code::NotFound
    );
}

/// A small file of every format, and its reader.
type Reader = fn(&Path, &[u8], &Cancel) -> Result<usize>;

fn formats() -> Vec<(&'static str, String, Reader)> {
    fn size(dialogues: Result<Vec<Dialogue>>) -> Result<usize> {
        Ok(dialogues?.iter().map(|dialogue| dialogue.turns.len()).sum())
    }
    let csv = format!("{HEADER}{}{}", row("Hm", "joy", "0", "0"), row("\"a,b\"", "fear", "0", "1"));
    let emory = r#"{"season_id":"dev","episodes":[{"episode_id":"s01_e01","scenes":[{"scene_id":"s01_e01_c01","utterances":[
        {"utterance_id":"s01_e01_c01_u002","speakers":["Ann","Bo"],"transcript":"Hm","tokens":[["Hm"]],"emotion":"Mad"},
        {"utterance_id":"s01_e01_c01_u004","speakers":["Bo"],"transcript":"So","tokens":[],"emotion":"Sad"}]}]}]}"#;
    let small = r#"[[{"text":"Hm","speaker":"Ann Bo","label":"Mad"},{"text":"So","speaker":"Bo","label":"Sad"}]]"#;
    let reduced = "Utterance,Speaker,Emotion,Scene_ID,Utterance_ID,Season,Episode,Start_Time,End_Time\n\
                   Hm,\"['Ann', 'Bo']\",Mad,1,2,1,1,00:00:02.877,00:00:03.000\nSo,['Bo'],Sad,1,4,1,1,x,y\n";
    let transcript = "S1_F000 [002.1000-003.4500]: Hm: so\nM: Right.\nS1_MXX0 [3.0-4.0]: Mm-hmm.\n";
    let evaluation =
        "% [START_TIME - END_TIME]\n\n[2.1000 - 3.4500]\tS1_F000\tneu\t[2.5, 2.5, 2.5]\nC-E2:\tNeutral;\t()\n";
    let lines = r#"[[{"speaker":"A","utterance":"Hm","emotion":"joy","annotation":"2000030"},
        {"speaker":"B","utterance":"So","emotion":"non-neutral","annotation":"2"}]]"#;
    let instructions =
        r#"[{"instruction":"I","Context":"C","input":"X","output":"joy"},{"instruction":"I","input":"","output":"O"}]"#;
    vec![
        ("meld", csv.clone(), |p, b, c| size(meld(p, b, Split::Test, None, c))),
        ("meld oddities", csv.clone(), |p, b, c| Ok(meld::oddities(p, b, c)?.1.len())),
        ("meld numbers", csv, |p, b, c| Ok(meld::numbers(p, b, c)?.concat().len())),
        ("jsonl", r#"{"id":"x","turns":[{"text":"b","weight":2},{"text":"c"}]}"#.into(), |p, b, c| {
            size(jsonl(p, b, None, c))
        }),
        ("log", "Ann: Hm\nBo: So\n".into(), |p, b, c| size(log(p, b, c))),
        ("pairs", "{\"prompt\":\"a\",\"completion\":\"b\"}\n".repeat(2), |p, b, c| Ok(pairs(p, b, c)?.len())),
        ("emorynlp official", emory.into(), |p, b, c| size(emorynlp::official(p, b, None, c))),
        ("emorynlp small", small.into(), |p, b, c| size(emorynlp::small(p, b, Split::Dev, None, c))),
        ("emorynlp reduced", reduced.into(), |p, b, c| size(emorynlp::reduced(p, b, None, c))),
        ("iemocap transcript", transcript.into(), |p, b, c| Ok(iemocap::transcript(p, b, "S1", c)?.len())),
        ("iemocap labels", evaluation.repeat(2), |p, b, c| Ok(2 * iemocap::evaluations(p, b, c)?.len())),
        ("dailydialog texts", "Hm __eou__ So __eou__\n".into(), |p, b, c| {
            size(dailydialog::parse((p, b), (p, b"0 4\n"), "all", c))
        }),
        ("dailydialog emotions", "0 4 \n".into(), |p, b, c| {
            size(dailydialog::parse((p, b"Hm __eou__ So __eou__\n"), (p, b), "all", c))
        }),
        ("emotionlines", lines.into(), |p, b, c| size(emotionlines::emotionlines(p, b, "all", None, c))),
        ("instructions", instructions.into(), |p, b, c| Ok(instructions::instructions(p, b, c)?.len())),
        (
            "visual",
            "{\"dialogue\":\"d0\",\"turn\":0,\"visual\":\"v\"}\n{\"dialogue\":0,\"turn\":1,\"visual\":\"v\"}\n".into(),
            |p, b, c| Ok(visual::lines(p, b, c)?.len()),
        ),
    ]
}

#[test]
fn every_format_gives_both_of_its_turns() {
    for (name, text, reader) in formats() {
        assert_eq!(reader(Path::new("x"), text.as_bytes(), &Cancel::default()).unwrap(), 2, "{name}");
    }
}

#[test]
fn three_forms_of_emorynlp_are_read_alike() {
    let (path, none) = (Path::new("x"), Cancel::default());
    let file = |wanted: &str| formats().into_iter().find(|(name, ..)| *name == wanted).unwrap().1;
    let official = emorynlp::official(path, file("emorynlp official").as_bytes(), None, &none).unwrap();
    let small = emorynlp::small(path, file("emorynlp small").as_bytes(), Split::Dev, None, &none).unwrap();
    let reduced = emorynlp::reduced(path, file("emorynlp reduced").as_bytes(), None, &none).unwrap();
    assert_eq!(official[0].turns[0].speaker, "Ann Bo");
    assert_eq!((&official[0].turns, &small[0].id[..]), (&small[0].turns, "dev/0"));
    assert_eq!(official, reduced);
}

#[test]
fn dailydialog_has_two_speakers_in_turns_and_a_number_for_every_utterance() {
    let read = |texts: &str, emotions: &str| {
        let (a, b) = (Path::new("texts"), Path::new("emotions"));
        dailydialog::parse((a, texts.as_bytes()), (b, emotions.as_bytes()), "train", &Cancel::default())
    };
    let all = read("One . __eou__ Two __eou__ Three __eou__\nFour __eou__\n", "0 4 6 \n1 \n").unwrap();
    let said: Vec<_> = all[0].turns.iter().map(|turn| (&turn.speaker[..], turn.emotion.as_deref().unwrap())).collect();
    assert_eq!(said, [("A", "no emotion"), ("B", "happiness"), ("A", "surprise")]);
    assert_eq!((&all[1].id[..], &all[0].turns[0].text[..]), ("train/1", "One ."));
    assert!(sentence(read("One __eou__\n", "0 1\n")).contains("emotions: line 1 has 2 numbers for 1 utterances"));
    assert!(sentence(read("One __eou__\n", "7\n")).contains("`7` is no number from 0 to 6"));
    assert!(sentence(read("One __eou__\nTwo __eou__\n", "0\n")).contains("emotions: ends before line 2"));
    assert!(sentence(read("One __eou__\n", "0\n1\n")).contains("texts: ends before line 2"));
}

#[test]
fn instructions_are_rendered_as_the_training_script_does_byte_for_byte() {
    let text = r#"[{"instruction":"I","Context":"C","input":"X","output":"joy"},{"instruction":"I","input":"X","output":"fear"},
        {"instruction":"I","input":"","output":"O"}]"#;
    let pairs = instructions::instructions(Path::new("x"), text.as_bytes(), &Cancel::default()).unwrap();
    let first = "Please perform Classification task. Given the sentence, assign the correct label. Return label only without any other text.\n";
    let with = [
        first,
        "            ### Instruction:\n            I\n\n",
        "            ### Context:\n            C\n\n",
        "            ### Input:\n            X\n\n",
        "            ### Response:\n            ",
    ];
    assert_eq!((&pairs[0].prompt, &pairs[0].completion[..]), (&with.concat(), "joy"));
    let without: Vec<&str> = with.iter().filter(|part| !part.contains("Context")).copied().collect();
    assert_eq!(pairs[1].prompt, without.concat());
    let alpaca = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n        \
                  ### Instruction:\n        I\n\n        ### Response:\n        ";
    assert_eq!(pairs[2].prompt, alpaca);
}

#[test]
fn a_json_file_of_another_form_is_told_by_its_place_and_never_quoted() {
    let (path, none) = (Path::new("f.json"), Cancel::default());
    let lines = |text: &str| sentence(emotionlines::emotionlines(path, text.as_bytes(), "all", None, &none));
    assert!(lines("[[\n{\"speaker\": 5").contains("f.json: line 2, column 13: not a list of dialogues"));
    assert!(lines("[[{\"speaker\":").contains("line 1, column 13: not JSON"));
    let secret = lines("[[{\"speaker\":\"a\",\"utterance\":\"secret words\",\"emotion\":\"joyful\"}]]");
    assert!(
        secret.contains("dialogue 1, utterance 1: unknown label `joyful`") && !secret.contains("secret"),
        "{secret}"
    );
}

#[test]
fn iemocap_joins_by_id_and_refuses_what_contradicts_itself() {
    let (path, none) = (Path::new("x"), Cancel::default());
    let turns = iemocap::transcript(path, b"S1_F000 [1.0-2.0]: a: [b]\nM: Yes\n", "S1", &none).unwrap();
    assert_eq!((&turns[0].0[..], &turns[0].1.speaker[..], &turns[0].1.text[..]), ("S1_F000", "F", "a: [b]"));
    assert_eq!(turns.len(), 1);
    let error = sentence(iemocap::transcript(path, b"S1_F000 [1.0]: secret\n", "S1", &none));
    assert!(error.contains("line 1: not of the form `ID [start-end]: text`") && !error.contains("secret"), "{error}");
    let labels = |text: &str| iemocap::evaluations(path, text.as_bytes(), &none);
    assert!(sentence(labels("[1 - 2]\tS1_F000\tzzz\t[]")).contains("unknown label `zzz`; known are ang, dis"));
    assert!(
        sentence(labels("[1 - 2]\tS1_F000\thap\t[]\n[1 - 2]\tS1_F000\tsad\t[]"))
            .contains("line 2: `S1_F000` has two labels")
    );
    assert!(sentence(labels("[1 - 2] S1_F000")).contains("not of the form"));
}

/// A folder of files, by name and content.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

#[test]
fn of_iemocap_a_dev_split_is_what_was_chosen_and_more_happiness_only_what_was_asked_for() {
    let (mut files, mut names) = (Vec::new(), Vec::new());
    for i in 0..22 {
        let (session, name) = (1 + i / 6, format!("Ses{:02}F_{i:02}", 1 + i / 6));
        files.push((
            format!("Session{session}/dialog/transcriptions/{name}.txt"),
            format!("{name}_F000 [1.0-2.0]: a\n{name}_M000 [2.0-3.0]: b\n"),
        ));
        files.push((format!("Session{session}/dialog/transcriptions/._{name}.txt"), "\0".into()));
        files.push((
            format!("Session{session}/dialog/EmoEvaluation/{name}.txt"),
            format!("[1.0 - 2.0]\t{name}_F000\tfru\t[1, 1, 1]\n[2.0 - 3.0]\t{name}_M000\txxx\t[1, 1, 1]\n"),
        ));
        names.push(name);
    }
    files.push(("dev.txt".into(), format!("{}\n{}\n", names[4], names[9])));
    files.push(("hap.txt".into(), format!("{}_M000\n", names[0])));
    let files: Vec<(&str, &str)> = files.iter().map(|(name, content)| (&name[..], &content[..])).collect();
    let dir = folder(&files);
    let at = |name: &str| dir.path().join(name).display().to_string();
    let read = |options: &str, split| {
        let source: Source = format!("iemocap:{}{options}", dir.path().display()).parse()?;
        let dialogues = source.dialogues(split, None, &Cancel::default())?;
        Ok::<_, Error>(dialogues.into_iter().map(|dialogue| dialogue.id).collect::<Vec<_>>())
    };
    assert_eq!(read("", Split::Train).unwrap(), names);
    assert_eq!(read("?dev=last20", Split::Dev).unwrap(), names[2..]);
    assert_eq!(read("?dev=last20", Split::Train).unwrap(), names[..2]);
    let listed = format!("?dev={}", at("dev.txt"));
    assert_eq!(read(&listed, Split::Dev).unwrap(), [names[4].clone(), names[9].clone()]);
    assert_eq!(read(&listed, Split::Train).unwrap().len(), 20);
    assert_eq!(read(&format!("?unlabelled=drop&hap={}", at("hap.txt")), Split::Train).unwrap(), names);
    let source: Source = format!("iemocap:{}?hap={}", dir.path().display(), at("hap.txt")).parse().unwrap();
    let dialogues = source.dialogues(Split::Train, None, &Cancel::default()).unwrap();
    assert_eq!(label_counts(&dialogues), [("frustration", 22), ("happiness", 1)]);
    assert!(sentence(read("?labels=7433", Split::Train)).contains("53 on whose label nobody agreed"));
    assert!(sentence(read("?labels=5", Split::Train)).contains("labels=4, 6 or 8"));
    assert!(sentence(read("", Split::Test)).contains("Session5/dialog/transcriptions"));
    assert!(sentence(read("", Split::Dev)).contains("no dev split of its own"));
}

#[test]
fn descriptions_belong_to_a_turn_by_dialogue_and_number() {
    let meld =
        format!("{HEADER}{}{}{}", row("Hm", "joy", "7", "0"), row("So", "joy", "7", "3"), row("Oh", "joy", "9", "1"));
    let dir = folder(&[
        ("dev_sent_emo.csv", &meld),
        (
            "v.jsonl",
            "{\"dialogue\":\"dev/7\",\"turn\":3,\"visual\":\"a\"}\n{\"dialogue\":\"train/0\",\"turn\":0,\"visual\":\"x\"}\n",
        ),
        ("clips/dev/dia7_utt3.txt", "a\n"),
        ("clips/dev/readme.txt", "x"),
        ("split/dev.jsonl", "{\"dialogue\":7,\"turn\":3,\"visual\":\"a\"}\n"),
        ("wrong.jsonl", "{\"dialogue\":7,\"turn\":2,\"visual\":\"secret\"}\n"),
        ("none.jsonl", "{\"dialogue\":8,\"turn\":2,\"visual\":\"secret\"}\n"),
    ]);
    let read = |visual: &str| {
        let at = dir.path().display();
        let source: Source = format!("meld:{at}?visual={at}/{visual}").parse().unwrap();
        source.dialogues(Split::Dev, None, &Cancel::default())
    };
    for visual in ["v.jsonl", "clips", "split"] {
        let dialogues = read(visual).unwrap();
        let seen: Vec<_> =
            dialogues.iter().flat_map(|dialogue| &dialogue.turns).map(|turn| turn.visual.as_deref()).collect();
        assert_eq!(seen, [None, Some("a"), None], "{visual}");
    }
    let error = sentence(read("wrong.jsonl"));
    assert!(error.contains("describes turn 2 of dialogue dev/7, which has no such turn"), "{error}");
    let error = sentence(read("none.jsonl"));
    assert!(error.contains("has 1 descriptions, none of them of a turn") && !error.contains("secret"), "{error}");
}

#[test]
fn a_turn_may_be_labelled_by_who_says_it() {
    let text: String = (0..11).chain([3, 0]).map(|i| format!("S{i}: x\n")).collect();
    let dir = folder(&[("talk.log", &text)]);
    let source: Source = format!("log:{}?label=speaker", dir.path().join("talk.log").display()).parse().unwrap();
    let dialogues = source.dialogues(Split::Test, None, &Cancel::default()).unwrap();
    let labels: Vec<_> = dialogues[0].turns.iter().map(|turn| turn.emotion.as_deref()).collect();
    let want: Vec<Option<&str>> = SPEAKER_LABELS.iter().map(|label| Some(*label)).collect();
    assert_eq!(labels[..9], want);
    assert_eq!(labels[9..], [None, None, Some("Speaker_3"), Some("Speaker_0")]);
    assert_eq!(source.labels().unwrap(), SPEAKER_LABELS);
    assert!(sentence("log:a?label=emotion".parse::<Source>()).contains("label=speaker is once"));
}

#[test]
fn what_is_odd_in_a_set_is_told() {
    let file =
        format!("{HEADER}{}{}{}", row("Hm", "joy", "0", "1"), row(" ", "joy", "0", "2"), row("Hm", "fear", "3", "0"));
    let dir = folder(&[("dev_sent_emo.csv", &file)]);
    let source: Source = format!("meld:{}", dir.path().display()).parse().unwrap();
    let told = |source: &Source| {
        let parts = source.parts(Some(Split::Dev), None, &Cancel::default()).unwrap();
        source.findings(&parts, &Cancel::default()).unwrap().remove(0).join("\n")
    };
    let few = "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\nHm,Ann,joy,0,0\n";
    let dir_of_few = folder(&[("dev_sent_emo.csv", few)]);
    let of_few = told(&Source::Meld(dir_of_few.path().into()));
    assert!(of_few.contains("missing, so that traps are not looked for: Sr No., Season"), "{of_few}");
    let told = told(&source);
    for finding in [
        "dialogues: 2, published are 114",
        "turns with joy: 2, published are 163",
        "turns without text: 1",
        "dialogues with one speaker: 2, of them with one turn: 1",
        "Dialogue_ID skips 1, 2",
        "dialogues in which Utterance_ID has gaps: 1;",
        "utterances in two dialogues: 1, of them with different labels: 1",
    ] {
        assert!(told.contains(finding), "{finding}\n{told}");
    }
}

#[test]
fn a_folder_with_two_forms_of_a_set_is_refused() {
    let dir = folder(&[("dev_data.json", "[]"), ("emorynlp_dev_final.csv", "")]);
    let source = Source::EmoryNlp(dir.path().into());
    let error = sentence(source.dialogues(Split::Dev, None, &Cancel::default()));
    assert!(error.contains("dev_data.json and emorynlp_dev_final.csv"), "{error}");
    assert_eq!(source.splits(), [Split::Dev]);
    assert_eq!(source.dialogues(Split::Test, None, &Cancel::default()).unwrap_err().code(), Code::NotFound);
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes: Vec<u8>, changes: Vec<(usize, u8)>, cut: usize) {
        for (_, text, reader) in formats() {
            let mut changed = text.into_bytes();
            for (at, byte) in changes.iter().take(4) {
                let at = at % changed.len();
                changed[at] = *byte;
            }
            let cut = cut % (2 * changed.len());
            let none = Cancel::default();
            let _ = (
                reader(Path::new("x"), &bytes, &none),
                reader(Path::new("x"), &changed[..cut.min(changed.len())], &none),
            );
        }
    }
}
