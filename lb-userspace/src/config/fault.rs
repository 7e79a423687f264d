//! What is wrong with a configuration, told so that it can be put right: file, line, column, the line itself, the
//! reason, and what to do.

use super::secret;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "cannot read the configuration {path}: {source}; name another with --config, or start from docs/lb.example.toml"
    )]
    Read { path: PathBuf, source: std::io::Error },
    /// All that is wrong with it, in the order of its lines.
    #[error("{}", join(.0))]
    Faults(Vec<Fault>),
}

fn join(faults: &[Fault]) -> String {
    let texts: Vec<_> = faults.iter().map(ToString::to_string).collect();
    match texts.len() {
        1 => texts.concat(),
        n => format!("{}\n{n} errors in the configuration", texts.join("\n")),
    }
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// The whole line, without its end.
    pub text: String,
    /// How many characters of it are meant, from `column`.
    pub width: usize,
    pub reason: String,
    /// What to do; may be empty.
    pub help: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, text, reason, .. } = self;
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        writeln!(f, "{file}:{line}:{column}: {reason}")?;
        writeln!(f, " {margin} |")?;
        writeln!(f, " {number} | {text}")?;
        // Tabs are kept so that the mark stands below what it marks.
        let blank: String =
            text.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        write!(f, " {margin} | {blank}{}", "^".repeat(self.width.max(1)))?;
        if !self.help.is_empty() {
            write!(f, "\n {margin} = {}", self.help)?;
        }
        Ok(())
    }
}

/// Bytes of the file that something is about.
pub(super) type Span = Range<usize>;

/// Collects what is wrong with one file.
pub(super) struct Faults<'a> {
    file: &'a str,
    text: &'a str,
    /// Parts of the text that are not to be shown.
    hidden: Vec<Span>,
    /// It is not TOML.
    broken: bool,
    found: Vec<(usize, Fault)>,
}

impl<'a> Faults<'a> {
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, text, hidden: Vec::new(), broken: false, found: Vec::new() }
    }

    /// These parts of the text are shown in no line.
    pub(super) fn hide(&mut self, hidden: Vec<Span>) {
        self.hidden = hidden;
    }

    /// The file is not TOML, so that it is not known which parts of it are to be hidden.
    pub(super) fn is_broken(&mut self) {
        self.broken = true;
    }

    pub(super) fn push(&mut self, span: Span, reason: impl Into<String>, help: impl Into<String>) {
        let start = floor(self.text, span.start);
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |at| start + at);
        let end = floor(self.text, span.end.clamp(start, line_end.max(start)));
        let fault = Fault {
            file: self.file.to_owned(),
            line: self.text[..start].matches('\n').count() + 1,
            column: self.text[line_start..start].chars().count() + 1,
            text: secret::line(
                self.text[line_start..line_end].trim_end_matches('\r'),
                line_start,
                &self.hidden,
                self.broken,
            ),
            width: self.text[start..end].chars().count(),
            reason: secret::words(&reason.into()),
            help: help.into(),
        };
        self.found.push((start, fault));
    }

    /// The value, unless something was found.
    pub(super) fn into_result<T>(mut self, value: T) -> Result<T, ConfigError> {
        if self.found.is_empty() {
            return Ok(value);
        }
        self.found.sort_by_key(|(start, _)| *start);
        Err(ConfigError::Faults(self.found.into_iter().map(|(_, fault)| fault).collect()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// How many there are by now.
    pub(super) fn len(&self) -> usize {
        self.found.len()
    }
}

/// The nearest boundary between characters at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// "did you mean `x`?", when one of `known` is close enough, else all of them.
pub(super) fn suggest(typed: &str, known: &[&str]) -> String {
    let distance = |k: &&&str| strsim::damerau_levenshtein(&typed.to_lowercase(), k);
    match known.iter().min_by_key(distance).filter(|k| distance(k) <= (typed.len() / 3).max(1)) {
        Some(close) => format!("did you mean `{close}`?"),
        None => format!("known here: {}", known.join(", ")),
    }
}
