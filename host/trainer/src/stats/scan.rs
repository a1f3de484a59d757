//! A model's ranking, for people and for other programs: what `liftplan scan` shows.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use super::spectrum_files::{layer_and_type, write_scores, write_unfrozen};
use super::{Statistic, Statistics, kept, order};
use crate::model::inventory::{Inventory, Kind};
use crate::{Error, Result};

/// How a scan is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Each role with its tensors, best first.
    Table,
    /// Blocks × roles, in the terminal's shades.
    Heat,
    /// Blocks × roles as a picture.
    Svg,
    /// Spectrum's `unfrozen_parameters`.
    Yaml,
    /// Spectrum's scores: layer, type, `snr`.
    Json,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "table" => Ok(Format::Table),
            "heat" => Ok(Format::Heat),
            "svg" => Ok(Format::Svg),
            "yaml" => Ok(Format::Yaml),
            "json" => Ok(Format::Json),
            _ => Err("it can be table, heat, svg, yaml or json".into()),
        }
    }
}

/// One weight in a ranking.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Canonical name.
    pub tensor: String,
    /// Its role.
    pub role: String,
    /// Its decoder block.
    pub block: Option<usize>,
    /// `[out, in]`.
    pub shape: Vec<usize>,
    /// The statistic, six significant digits.
    pub score: f64,
    /// Its place among those of its role, from 1.
    pub place: usize,
    /// Whether it belongs to the top percent of its role.
    pub top: bool,
}

/// The ranking of a model's linear weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scan {
    /// What was scored.
    pub statistic: Statistic,
    /// How much of each role counts as its top.
    pub percent: f64,
    /// Number of decoder blocks.
    pub blocks: usize,
    /// The roles, in the order of the forward pass.
    pub roles: Vec<String>,
    /// Every linear weight: by role, best first.
    pub rows: Vec<Row>,
}

/// Ranks the linear weights of the model with `inventory`.
///
/// # Errors
/// `percent` is not between 0 and 100, or a weight can't be read or scored.
pub fn scan(inventory: &Inventory, statistics: &dyn Statistics, statistic: Statistic, percent: f64) -> Result<Scan> {
    if !(0.0..=100.0).contains(&percent) {
        return Err(Error::config(format!("the top percent must be between 0 and 100, not {percent}")));
    }
    let infos: Vec<_> = inventory.tensors.iter().filter(|info| info.kind == Kind::Linear).collect();
    let values = statistics.singular_values(&infos)?;
    let mut rows = Vec::new();
    let mut roles: Vec<String> = Vec::new();
    for (info, values) in infos.iter().zip(&values) {
        let [rows_, cols] = info.shape[..] else { continue };
        let score = statistic.of(values, rows_, cols).map_err(|error| error.at(format!("tensor `{}`", info.name)))?;
        if !roles.contains(&info.role) {
            roles.push(info.role.clone());
        }
        rows.push(Row {
            tensor: info.name.clone(),
            role: info.role.clone(),
            block: info.block,
            shape: info.shape.clone(),
            score,
            place: 0,
            top: false,
        });
    }
    let mut ranked = Vec::with_capacity(rows.len());
    for role in &roles {
        let of_role: Vec<&Row> = rows.iter().filter(|row| row.role == *role).collect();
        let scores: Vec<f64> = of_role.iter().map(|row| row.score).collect();
        let top = kept(of_role.len(), percent);
        for (place, at) in order(&scores).into_iter().enumerate() {
            ranked.push(Row { place: place + 1, top: place < top, ..of_role[at].clone() });
        }
    }
    Ok(Scan { statistic, percent, blocks: inventory.blocks, roles, rows: ranked })
}

/// Writes a scan's text to `file`, all or nothing.
///
/// # Errors
/// The file can't be written.
pub fn write_scan(file: &Path, text: &str) -> Result<()> {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    crate::files::write_atomically(file, format!("{text}{end}").as_bytes())
}

/// Shades from the lowest score of a role to its highest.
const SHADES: [&str; 5] = ["·", "░", "▒", "▓", "█"];

impl Scan {
    /// The scan in this format.
    pub fn text(&self, format: Format) -> String {
        match format {
            Format::Table => self.table(),
            Format::Heat => self.heat(),
            Format::Svg => self.svg(),
            Format::Yaml => self.yaml(),
            Format::Json => self.scores(),
        }
    }

    /// All of it, as JSON.
    ///
    /// # Errors
    /// None that can happen: every score is finite.
    pub fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|error| Error::internal(format!("a scan as JSON: {error}")))
    }

    fn of_role<'a>(&'a self, role: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |row| row.role == role)
    }

    fn table(&self) -> String {
        let mut text = String::new();
        for role in &self.roles {
            let (count, top) = (self.of_role(role).count(), self.of_role(role).filter(|row| row.top).count());
            // Writing to a string can't fail.
            let _ = writeln!(text, "{role}: {count}, of which the top {} % are {top}", self.percent);
            for row in self.of_role(role) {
                let mark = if row.top { "*" } else { " " };
                let _ = writeln!(text, "{mark} {:>4}  {:>12}  {}", row.place, number(row.score), row.tensor);
            }
            text.push('\n');
        }
        let _ = write!(text, "score: {}; * marks the top {} % of each role", self.statistic.name(), self.percent);
        text
    }

    /// The share of the way from the lowest to the highest place in its role, 1 for the best.
    fn heat_of(&self, row: &Row) -> f64 {
        let count = self.of_role(&row.role).count();
        if count < 2 { 1.0 } else { 1.0 - (row.place - 1) as f64 / (count - 1) as f64 }
    }

    fn heat(&self) -> String {
        let width = self.roles.iter().map(String::len).max().unwrap_or(0);
        let mut text = format!("{:width$}  block 0 → {}\n", "", self.blocks.saturating_sub(1));
        for role in &self.roles {
            let mut cells = vec![" "; self.blocks];
            for row in self.of_role(role) {
                let shade = (self.heat_of(row) * SHADES.len() as f64) as usize;
                if let Some(cell) = row.block.and_then(|block| cells.get_mut(block)) {
                    *cell = SHADES[shade.min(SHADES.len() - 1)];
                }
            }
            let _ = writeln!(text, "{role:width$}  {}", cells.concat());
        }
        let _ = write!(
            text,
            "{} is the top fifth of its role by {}, {} the lowest",
            SHADES[SHADES.len() - 1],
            self.statistic.name(),
            SHADES[0]
        );
        text
    }

    fn svg(&self) -> String {
        const CELL: usize = 18;
        let left = 20 + 8 * self.roles.iter().map(String::len).max().unwrap_or(0);
        let (wide, high) = (left + CELL * self.blocks + 20, 40 + CELL * self.roles.len() + 30);
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {wide} {high}\" width=\"{wide}\" height=\"{high}\" \
             font-family=\"monospace\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        for block in 0..self.blocks {
            let x = left + CELL * block + CELL / 2;
            if block % 5 == 0 || block + 1 == self.blocks {
                let _ = writeln!(text, "<text x=\"{x}\" y=\"30\" text-anchor=\"middle\">{block}</text>");
            }
        }
        for (line, role) in self.roles.iter().enumerate() {
            let y = 40 + CELL * line;
            let _ = writeln!(text, "<text x=\"10\" y=\"{}\">{role}</text>", y + 13);
            for row in self.of_role(role) {
                let Some(block) = row.block else { continue };
                // From near white to a dark blue, evenly by place.
                let heat = self.heat_of(row);
                let shade = |from: f64, to: f64| (from + (to - from) * heat).round() as u8;
                let _ = writeln!(
                    text,
                    "<rect x=\"{}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"#{:02x}{:02x}{:02x}\"{}>\
                     <title>{}: {} {}, place {}</title></rect>",
                    left + CELL * block,
                    CELL - 1,
                    CELL - 1,
                    shade(240.0, 8.0),
                    shade(244.0, 48.0),
                    shade(250.0, 107.0),
                    if row.top { " stroke=\"#d62728\" stroke-width=\"2\"" } else { "" },
                    row.tensor,
                    self.statistic.name(),
                    number(row.score),
                    row.place
                );
            }
        }
        let _ = write!(
            text,
            "<text x=\"10\" y=\"{}\">{} by block; dark: high in its role; framed: the top {} %</text>\n</svg>\n",
            high - 10,
            self.statistic.name(),
            self.percent
        );
        text
    }

    fn yaml(&self) -> String {
        let group = |role: &String| {
            let names: Vec<_> =
                self.of_role(role).filter(|row| row.top).map(|row| layer_and_type(&row.tensor)).collect();
            let kind = self.of_role(role).next().map(|row| layer_and_type(&row.tensor).1);
            (kind.unwrap_or_else(|| role.clone()), names.into_iter().map(|(layer, _)| layer).collect())
        };
        write_unfrozen(&self.roles.iter().map(group).collect::<Vec<_>>())
    }

    fn scores(&self) -> String {
        let entry = |row: &Row| {
            let (layer, kind) = layer_and_type(&row.tensor);
            (layer, kind, row.score)
        };
        write_scores(&self.rows.iter().map(entry).collect::<Vec<_>>())
    }
}

fn number(score: f64) -> String {
    if score == 0.0 || (1e-3..1e6).contains(&score.abs()) { format!("{score:.6}") } else { format!("{score:.5e}") }
}
