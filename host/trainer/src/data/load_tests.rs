//! Whole files through the loader: what comes out, what is left out, and what is an error.

use std::path::PathBuf;

use super::encode::tests::{counted, encoder};
use super::load::Loader;
use super::report::Finding;
use super::splits::{Splits, splits};
use super::template::tests::golden;
use crate::config::{DataConfig, DataFormat, LossOn, OnProblem, TooLong};
use crate::report::{Event, Observer};
use crate::{Error, Result};

/// Keeps the warnings.
#[derive(Default)]
struct Warnings(Vec<String>);

impl Observer for Warnings {
    fn on(&mut self, event: &Event<'_>) {
        if let Event::Warning(text) = event {
            self.0.push(text.to_string());
        }
    }
}

/// A directory with files, and a configuration that names them.
struct Place {
    directory: tempfile::TempDir,
    config: DataConfig,
    template: Option<&'static str>,
    warnings: Vec<String>,
}

impl Place {
    fn new(name: &str, content: impl AsRef<[u8]>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut place = Self { directory, config: DataConfig::default(), template: None, warnings: vec![] };
        place.config.train = vec![place.file(name, content)];
        place
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn load(&mut self) -> Result<Splits> {
        let golden = golden();
        let encoder = encoder(self.template.and_then(|name| golden.special(name, "eos")).as_deref().unwrap_or("</s>"));
        let template = self.template.map(|name| golden.template(name, &Default::default()));
        let loader = Loader { config: &self.config, encoder: &encoder, template: template.as_ref() };
        let mut warnings = Warnings::default();
        let splits = splits(&loader, 1, &mut warnings);
        self.warnings = warnings.0;
        splits
    }

    /// The error's message, with the directory taken out.
    fn error(&mut self) -> String {
        let error: Error = self.load().unwrap_err();
        error.message().replace(&format!("{}/", self.directory.path().display()), "")
    }
}

const LABELLED: &str = "text,label\ngood film,pos\nbad film,neg\n\"so, so\",neg\nfine film,pos\n";

#[test]
fn label_rows_end_to_end() {
    let mut place = Place::new("a.csv", LABELLED);
    let data = place.load().unwrap().train;
    assert_eq!(
        (data.format, data.labels.as_slice()),
        (DataFormat::Label, ["neg".to_string(), "pos".into()].as_slice())
    );
    assert_eq!((data.rows.read, data.rows.used), (4, 4));
    assert_eq!(data.rows.notes, ["format \"label\", told from the column `text` and `label`"]);
    let labels: Vec<_> = data.examples.iter().map(|e| e.label).collect();
    assert_eq!(labels, [Some(1), Some(0), Some(0), Some(1)]);
    for example in &data.examples {
        let label = example.label.unwrap();
        assert_eq!(example.ids[example.prompt_tokens..], data.label_ids[label]);
        assert_eq!(example.reference.as_ref(), Some(&data.labels[label]));
        assert_eq!(example.target_count(), data.label_ids[label].len());
    }
    assert_eq!(data.examples[2].source.to_string().rsplit('/').next(), Some("a.csv:4"));
}

#[test]
fn label_rows_as_conversations() {
    let mut place = Place::new("a.csv", LABELLED);
    place.template = Some("chatml");
    let data = place.load().unwrap().train;
    let encoder = encoder("<|im_end|>");
    for example in &data.examples {
        let label = example.label.unwrap();
        let encoded = super::encode::Encoded {
            ids: example.ids.clone(),
            is_target: example.is_target.clone(),
            ..Default::default()
        };
        assert_eq!(counted(&encoder, &encoded), [format!("{}<|im_end|>", data.labels[label])]);
        assert_eq!(example.ids[example.prompt_tokens..][..data.label_ids[label].len()], data.label_ids[label]);
    }
}

#[test]
fn bad_rows_are_counted_placed_and_handled_as_configured() {
    let content = b"{\"text\": \"one two\", \"label\": \"a\"}\nnot json\n{\"text\": \"\", \"label\": \"a\"}\n\
        {\"text\": \"\xff\", \"label\": \"a\"}\n{\"text\": \"x\"}\n{\"text\": \"y </s> y\", \"label\": \"b\"}\n";
    let mut place = Place::new("a.jsonl", content);
    let message = "a.jsonl:2: not valid JSON at column 2: expected ident (2 rows like this, also a.jsonl:4)";
    assert_eq!(place.error(), message);
    place.config.undecodable = OnProblem::Drop;
    assert_eq!(place.error(), "a.jsonl:5: no `label`");
    place.config.unlabelled = OnProblem::Drop;
    let data = place.load().unwrap().train;
    let rows = &data.rows;
    assert_eq!((rows.read, rows.used, rows.dropped()), (6, 2, 4));
    let count = |finding| rows.count(finding);
    assert_eq!((count(Finding::Undecodable), count(Finding::Empty), count(Finding::Unlabelled)), (2, 1, 1));
    assert_eq!(count(Finding::SpecialTokenInText), 1);
    assert_eq!(place.warnings.len(), 4, "{:?}", place.warnings);
    assert!(place.warnings[0].starts_with("2 of 6 rows left out: not readable, the first at "), "{:?}", place.warnings);
    place.config.empty = OnProblem::Error;
    assert_eq!(place.error(), "a.jsonl:3: `text` is empty");
}

#[test]
fn long_rows_are_cut_dropped_or_an_error() {
    let long = "word ".repeat(50);
    let content = format!(
        "{{\"prompt\": \"a\", \"completion\": \"{long}\"}}\n{{\"prompt\": \"{long}\", \"completion\": \"b\"}}\n{{\"prompt\": \"a\", \"completion\": \"b\"}}\n"
    );
    let mut place = Place::new("a.jsonl", content);
    place.config.max_length = 16;
    let data = place.load().unwrap().train;
    assert_eq!(data.examples.iter().map(|e| e.ids.len()).collect::<Vec<_>>(), [16, data.examples[1].ids.len()]);
    assert_eq!((data.rows.count(Finding::Cut), data.rows.count(Finding::CutToNothing)), (1, 1));
    assert_eq!(data.rows.read, data.rows.used + data.rows.dropped());
    place.config.too_long = TooLong::Drop;
    assert_eq!(place.load().unwrap().train.rows.count(Finding::TooLong), 2);
    place.config.too_long = TooLong::Error;
    let message = place.error();
    assert!(
        message.starts_with("a.jsonl:1: ") && message.ends_with("tokens (2 rows like this, also a.jsonl:2)"),
        "{message}"
    );
}

#[test]
fn no_row_left_is_an_error_that_says_why() {
    let mut place = Place::new("a.jsonl", "{\"text\": \"\"}\n{\"text\": \" \"}\n");
    let message = "a.jsonl: none of the 2 rows can be used: 2 left out: empty (a.jsonl:1: `text` is empty)";
    assert_eq!(place.error(), message);
    assert_eq!(Place::new("a.jsonl", "\n\n").error(), "a.jsonl: there are no rows");
    assert_eq!(Place::new("a.csv", "text\n").error(), "a.csv: there are no rows");
}

#[test]
fn settings_that_do_not_fit_the_files_are_errors() {
    let mut place = Place::new("a.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n");
    assert_eq!(place.error(), "a.jsonl holds conversations, but the model has no chat template");
    let mut place = Place::new("a.csv", "text\nhello there\n");
    place.config.prompt = Some("{text}".into());
    assert_eq!(place.error(), "`data.prompt` has no effect: the format is \"text\"");
    place.config.prompt = None;
    place.config.labels = vec!["a".into()];
    assert_eq!(place.error(), "`data.labels` has no effect: the format is \"text\"");
}

#[test]
fn conversations_count_the_assistant_or_everything() {
    let content =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Ho\"}]}\n";
    let mut place = Place::new("a.jsonl", content);
    place.template = Some("chatml");
    let some = place.load().unwrap().train.examples.remove(0);
    place.config.loss_on = LossOn::All;
    let all = place.load().unwrap().train.examples.remove(0);
    assert_eq!(some.ids, all.ids);
    assert_eq!(all.target_count(), all.ids.len() - 1);
    assert!(some.target_count() < 6);
    assert_eq!(some.reference.as_deref(), Some("Ho"));
    assert_eq!(all.prompt_tokens, some.prompt_tokens);
}

#[test]
fn a_conversation_that_the_template_refuses_is_a_bad_row() {
    let turn = |role| format!("{{\"role\": \"{role}\", \"content\": \"x\"}}");
    let good = format!("{{\"messages\": [{}, {}]}}\n", turn("user"), turn("assistant"));
    let bad = format!("{{\"messages\": [{}, {}, {}]}}\n", turn("user"), turn("user"), turn("assistant"));
    let mut place = Place::new("a.jsonl", good + &bad);
    place.template = Some("inst");
    let message = place.error();
    assert!(
        message.starts_with("a.jsonl:2: the chat template refuses the conversation: After the optional"),
        "{message}"
    );
    place.config.undecodable = OnProblem::Drop;
    assert_eq!(place.load().unwrap().train.examples.len(), 1);
}

#[test]
fn validation_and_test_use_the_labels_and_the_format_of_training() {
    let mut place = Place::new("a.csv", LABELLED);
    place.config.test = vec![place.file("t.csv", "text,label\nx,pos\n")];
    place.config.validation = vec![place.file("v.csv", "text,label\nx,pos\ny,odd\n")];
    assert_eq!(place.error(), "v.csv:3: the label \"odd\" is not among \"neg\", \"pos\"");
    place.config.unlabelled = OnProblem::Drop;
    let splits = place.load().unwrap();
    assert_eq!(splits.validation.unwrap().labels, splits.train.labels);
    assert_eq!(splits.test.unwrap().examples[0].label, Some(1));
    place.config.test = vec![place.file("u.csv", "prompt,completion\nx,pos\n")];
    assert!(place.error().starts_with("u.csv: the format \"label\" needs `text` and `label`"));
}

#[test]
fn a_share_is_held_out_by_the_seed() {
    let rows: String = (0..40).map(|i| format!("line number {i}\n")).collect();
    let mut place = Place::new("a.csv", format!("text\n{rows}"));
    place.config.validation_split = Some(0.25);
    let splits = place.load().unwrap();
    let held_out = splits.validation.unwrap();
    assert_eq!((splits.train.examples.len(), held_out.examples.len()), (30, 10));
    let lines = |examples: &[super::Example]| examples.iter().map(|e| e.source.line).collect::<Vec<_>>();
    let again = place.load().unwrap();
    assert_eq!(lines(&again.train.examples), lines(&splits.train.examples));
    assert!(lines(&held_out.examples).iter().all(|line| !lines(&splits.train.examples).contains(line)));
}

#[test]
fn a_share_of_every_label_is_held_out() {
    let rows: String = (0..40).map(|i| format!("line {i},{}\n", if i < 4 { "rare" } else { "usual" })).collect();
    let mut place = Place::new("a.csv", format!("text,label\n{rows}"));
    place.config.validation_split = Some(0.25);
    let splits = place.load().unwrap();
    let of_label = |data: &super::Dataset, label| data.examples.iter().filter(|e| e.label == Some(label)).count();
    let held_out = splits.validation.unwrap();
    assert_eq!(held_out.labels, ["rare", "usual"]);
    assert_eq!([of_label(&held_out, 0), of_label(&held_out, 1)], [1, 9]);
    assert_eq!([of_label(&splits.train, 0), of_label(&splits.train, 1)], [3, 27]);
}

#[test]
fn several_files_come_in_order_whatever_their_kind() {
    let mut place = Place::new("a.csv", "text\nfirst one\nsecond one\n");
    place.config.train.push(place.file("b.jsonl", "{\"text\": \"third one\"}\n"));
    place.config.train.push(place.file("c.json", "[{\"text\": \"fourth one\"}]"));
    let data = place.load().unwrap().train;
    let sources: Vec<_> = data.examples.iter().map(|e| e.source.to_string()).collect();
    let ends = ["a.csv:2", "a.csv:3", "b.jsonl:1", "c.json, row 1"];
    assert!(sources.len() == 4 && sources.iter().zip(ends).all(|(s, end)| s.ends_with(end)), "{sources:?}");
}
