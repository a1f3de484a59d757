//! Files in, examples and the account of their rows out.
//!
//! Rows are read a chunk at a time and turned into examples on all cores; what comes out is in the order of the files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::encode::{Encoded, Encoder};
use super::format::{self, Reading, Sample};
use super::mask;
use super::read::{self, Row};
use super::report::{Finding, RowReport};
use super::template::ChatTemplate;
use super::types::{Example, RowOrigin};
use super::wording::Wording;
use crate::config::{DataConfig, DataFormat, LossOn, TooLong};
use crate::report::{Event, Observer};
use crate::{Error, Result};

/// Rows that are turned into examples at a time.
const CHUNK: usize = 512;

/// What all files of a run are read with.
pub struct Loader<'a> {
    /// The settings.
    pub config: &'a DataConfig,
    /// The tokenizer.
    pub encoder: &'a Encoder,
    /// The chat template, if there is one to use.
    pub template: Option<&'a ChatTemplate>,
}

/// What some files hold.
pub struct Loaded {
    /// The examples; their labels are not counted yet.
    pub examples: Vec<Example>,
    /// The label of each example; label rows only.
    pub labels: Vec<Option<String>>,
    /// What the rows are.
    pub format: DataFormat,
    /// What became of them.
    pub rows: RowReport,
    /// The first sample that became an example.
    pub first: Option<Sample>,
}

/// What became of one row.
enum Outcome {
    /// An example, its label, and what else is to be said about it.
    Used(Box<Example>, Box<Sample>, Vec<(Finding, String)>),
    Left(Finding, String),
}

impl Loader<'_> {
    /// Reads `files`, whose rows are `format` (or whose first file tells). `labels` are those that are known.
    ///
    /// # Errors
    /// A file cannot be read, the format cannot be told, a row is bad and the configuration says not to go on, or no
    /// row can be used.
    pub fn load(
        &self,
        files: &[PathBuf],
        format: DataFormat,
        labels: &[String],
        observer: &mut dyn Observer,
    ) -> Result<Loaded> {
        let wording = self.config.prompt.as_deref().map(Wording::parse).transpose()?;
        let mut reading = Reading {
            format,
            fields: &self.config.fields,
            wording,
            labels,
            has_template: self.template.is_some(),
            needs_answer: self.config.loss_on == LossOn::Assistant,
        };
        let mut loaded = Loaded { examples: vec![], labels: vec![], format, rows: RowReport::default(), first: None };
        for path in files {
            let name = shown(path);
            observer.on(&Event::Phase(&format!("reading {name}")));
            let mut rows = read::open(path, &name)?;
            let mut is_known = false;
            loop {
                let chunk: Vec<Row> = rows.by_ref().take(CHUNK).collect::<Result<_>>()?;
                if chunk.is_empty() {
                    break;
                }
                if !is_known {
                    is_known = self.tell(&mut reading, &name, &chunk, &mut loaded.rows)?;
                }
                let outcomes: Vec<(RowOrigin, Result<Outcome>)> =
                    chunk.into_par_iter().map(|row| (row.origin.clone(), self.outcome(&reading, row))).collect();
                for (origin, outcome) in outcomes {
                    loaded.add(&origin, outcome?);
                }
                observer.on(&Event::Progress { unit: "rows", done: loaded.rows.read, total: loaded.rows.read });
            }
        }
        loaded.format = reading.format;
        loaded.rows.check(self.config)?;
        if loaded.examples.is_empty() {
            return Err(nothing_left(files, &loaded.rows));
        }
        Ok(loaded)
    }

    /// Tells the format from the first rows of a file, or checks it against them; false if none of them can be read.
    fn tell(&self, reading: &mut Reading<'_>, name: &str, rows: &[Row], report: &mut RowReport) -> Result<bool> {
        let readable = rows.iter().filter_map(|row| row.columns.as_ref().ok());
        let columns: BTreeSet<String> = readable.flat_map(|columns| columns.keys().cloned()).collect();
        if columns.is_empty() {
            return Ok(false);
        }
        let format = format::detect(self.config, reading.format, name, &columns)?;
        if reading.format == DataFormat::Auto {
            let told_by = format::required(format, reading.fields).iter().map(|c| format!("`{c}`")).collect::<Vec<_>>();
            report.notes.push(format!("format \"{}\", told from the column {}", format.name(), told_by.join(" and ")));
        }
        reading.format = format;
        if let Some(wording) = &reading.wording {
            if !matches!(format, DataFormat::Label | DataFormat::PromptCompletion) {
                return Err(Error::config(format!("`data.prompt` has no effect: the format is \"{}\"", format.name()))
                    .help("leave it out"));
            }
            wording.check(name, &columns)?;
        }
        if matches!(format, DataFormat::Chat | DataFormat::Sharegpt) && self.template.is_none() {
            let why = match self.config.chat_template.as_str() {
                "none" => "data.chat_template is \"none\"",
                _ => "the model has no chat template",
            };
            return Err(Error::data(format!("{name} holds conversations, but {why}"))
                .help("give one as data.chat_template = \"file.jinja\""));
        }
        Ok(true)
    }

    fn outcome(&self, reading: &Reading<'_>, row: Row) -> Result<Outcome> {
        let columns = match row.columns {
            Ok(columns) => columns,
            Err(what) => return Ok(Outcome::Left(Finding::Undecodable, what)),
        };
        let sample = match reading.sample(&columns) {
            Ok(sample) => sample,
            Err((finding, what)) => return Ok(Outcome::Left(finding, what)),
        };
        // The template's own refusal is the row's fault; that the model's turns cannot be told is not.
        if let (Sample::Chat { messages, tools, .. }, Some(template)) = (&sample, self.template)
            && let Err(refused) = template.render(messages, tools.as_ref(), false)
        {
            return Ok(Outcome::Left(Finding::Undecodable, refused.message().to_string()));
        }
        let (mut encoded, reference) = self.encode(&sample).map_err(|e| e.at(&row.origin))?;

        let mut findings = Vec::new();
        if let Some((token, _)) = sample.texts().iter().find_map(|text| self.encoder.find_special(text)) {
            findings.push((Finding::SpecialTokenInText, format!("\"{token}\"")));
        }
        if encoded.shares_token {
            findings.push((Finding::SharedToken, "the prompt alone encodes differently".to_string()));
        }
        let (tokens, most) = (encoded.ids.len(), self.config.max_length);
        let has_targets = |encoded: &Encoded| encoded.is_target.contains(&true);
        if !has_targets(&encoded) {
            return Ok(Outcome::Left(Finding::Empty, format!("nothing to learn in {tokens} tokens")));
        }
        if tokens > most {
            let what = format!("{tokens} tokens");
            if self.config.too_long != TooLong::Truncate {
                return Ok(Outcome::Left(Finding::TooLong, what));
            }
            encoded.ids.truncate(most);
            encoded.is_target.truncate(most);
            if !has_targets(&encoded) {
                return Ok(Outcome::Left(Finding::CutToNothing, what));
            }
            findings.push((Finding::Cut, what));
        }
        // Where the last answer was cut off, there is nothing to compare an answer with.
        let prompt_tokens = encoded.answers.last().copied().unwrap_or(0);
        let is_whole = prompt_tokens < encoded.ids.len();
        let example = Example {
            prompt_tokens: prompt_tokens.min(encoded.ids.len()),
            ids: encoded.ids,
            is_target: encoded.is_target,
            source: row.origin,
            reference: reference.filter(|_| is_whole),
            label: None,
        };
        Ok(Outcome::Used(Box::new(example), Box::new(sample), findings))
    }

    /// Tokens with their mask, and the last answer in words.
    pub fn encode(&self, sample: &Sample) -> Result<(Encoded, Option<String>)> {
        let (mut encoded, reference) = match (sample, self.template) {
            (Sample::Text(text), _) => (self.encoder.text(text)?, None),
            (Sample::Pair { prompt, completion, .. }, _) => {
                (self.encoder.pair(prompt, completion)?, Some(completion.trim().to_string()))
            }
            (Sample::Chat { messages, tools, .. }, Some(template)) => {
                let spoken = if self.config.loss_on == LossOn::All {
                    mask::spoken(template, self.encoder, messages, tools.as_ref()).or_else(|_| {
                        let text = template.render(messages, tools.as_ref(), false)?.text;
                        Ok::<_, Error>(mask::Spoken { text, ranges: vec![], last_answer: String::new() })
                    })?
                } else {
                    mask::spoken(template, self.encoder, messages, tools.as_ref())?
                };
                let answer = Some(spoken.last_answer).filter(|_| !spoken.ranges.is_empty());
                (self.encoder.conversation(&spoken.text, &spoken.ranges)?, answer)
            }
            (Sample::Chat { .. }, None) => return Err(Error::internal("a conversation without a chat template")),
        };
        if self.config.loss_on == LossOn::All {
            encoded.is_target.iter_mut().skip(1).for_each(|target| *target = true);
        }
        Ok((encoded, reference))
    }
}

impl Loaded {
    fn add(&mut self, origin: &RowOrigin, outcome: Outcome) {
        self.rows.read += 1;
        match outcome {
            Outcome::Left(finding, what) => self.rows.add(finding, origin, what),
            Outcome::Used(example, sample, findings) => {
                self.rows.used += 1;
                for (finding, what) in findings {
                    self.rows.add(finding, origin, what);
                }
                self.labels.push(sample.label().map(str::to_string));
                self.examples.push(*example);
                if self.first.is_none() {
                    self.first = Some(*sample);
                }
            }
        }
    }
}

/// The error for files that leave nothing.
fn nothing_left(files: &[PathBuf], rows: &RowReport) -> Error {
    let names = files.iter().map(|path| shown(path)).collect::<Vec<_>>().join(", ");
    if rows.read == 0 {
        return Error::data(format!("{names}: there are no rows"));
    }
    let reasons: Vec<_> = rows
        .findings
        .iter()
        .filter(|(finding, _)| finding.is_drop())
        .map(|(finding, report)| {
            let first = report.first.first().map(|p| format!(" ({}: {})", p.at, p.what)).unwrap_or_default();
            format!("{} {}{first}", report.count, finding.describe())
        })
        .collect();
    Error::data(format!("{names}: none of the {} rows can be used: {}", rows.read, reasons.join("; ")))
        .help("mend the data, or raise data.max_length if rows were cut or left out for their length")
}

/// How a file is named to the user: from the working directory if it lies below it.
fn shown(path: &Path) -> String {
    let below = std::env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok().map(Path::to_path_buf));
    below.as_deref().unwrap_or(path).display().to_string()
}
