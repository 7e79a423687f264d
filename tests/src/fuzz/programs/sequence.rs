//! A sequence of frames as text: one step a line, each a JSON object; lines that begin with `#` say something to people.
//!
//! A step says what its sender does (`{"client":{"conn":1,"flags":"S"}}`); all that follows from what came before, such as
//! sequence numbers, cookies and timestamps, is filled in when the sequence is played, and may be shifted (`"seq":-1`). Payloads are
//! text in which a character is a byte (ISO 8859-1). In them `{T3}` stands for a token of slot 3 as text, `{R3}` for a raw one, `{Q3}`
//! for a QUIC connection id of that slot.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// Steps that one sequence has at most.
pub const MAX_STEPS: usize = 48;

/// What happens next.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Step {
    /// A client sends a segment or a datagram.
    Client(Sent),
    /// The backend that has the connection does.
    Backend(Sent),
    /// The frame that was sent last is sent again.
    Again {
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        edits: Vec<Edit>,
    },
    /// Backends change.
    State { slot: u16, is: Condition },
}

/// What becomes of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    Ready,
    Drain,
    Down,
    Gone,
    /// Ready, and where its frames go is not known.
    Lost,
}

/// A segment or datagram of a conversation.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sent {
    /// Which conversation: this number modulo that of services tells the service.
    pub conn: u8,
    /// Of `SAFRPU`; not for datagrams.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub flags: String,
    /// Beside the sequence number that is due.
    #[serde(skip_serializing_if = "is_zero")]
    pub seq: i32,
    /// Beside the acknowledgement number that is due.
    #[serde(skip_serializing_if = "is_zero")]
    pub ack: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<u16>,
    /// TCP options in place of those that are due, as characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub data: String,
    /// What is done to the frame's bytes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub edits: Vec<Edit>,
}

/// A change to the bytes of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Edit {
    /// A byte behind the Ethernet addresses, counted modulo how many there are, becomes this.
    Set { at: u16, to: u8 },
    /// So many bytes are missing at the end.
    Cut(u16),
    /// So many zeros are added behind it.
    Pad(u16),
    /// Both checksums are made right again.
    Sum,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks like this")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

/// Reads a sequence.
///
/// # Errors
/// The line that is none.
pub fn read(text: &[u8]) -> Result<Vec<Step>> {
    let text = std::str::from_utf8(text).context("a sequence is text")?;
    let mut steps = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        steps.push(serde_json::from_str(line).with_context(|| format!("line {}: {line}", number + 1))?);
    }
    ensure!(steps.len() <= MAX_STEPS, "{} steps are more than {MAX_STEPS}", steps.len());
    Ok(steps)
}

/// Writes what [`read`] reads.
pub fn write(steps: &[Step]) -> Vec<u8> {
    let lines = steps.iter().map(|step| serde_json::to_string(step).expect("steps are JSON") + "\n");
    lines.collect::<String>().into_bytes()
}

/// The bytes that a text stands for: one for each character, the low eight bits of it.
pub fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|c| u32::from(c) as u8).collect()
}

/// The text that stands for bytes.
pub fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let data = text(&(0..=255).collect::<Vec<u8>>());
        let sent = Sent { conn: 3, flags: "SA".into(), seq: -5, data, ..Sent::default() };
        let edits = vec![Edit::Set { at: 9, to: 255 }, Edit::Cut(3), Edit::Pad(1), Edit::Sum];
        let steps = vec![
            Step::Client(Sent { edits: edits.clone(), ..sent.clone() }),
            Step::Backend(sent),
            Step::Again { edits },
            Step::State { slot: 7, is: Condition::Lost },
        ];
        assert_eq!(read(&write(&steps)).unwrap(), steps);
        assert_eq!(write(&steps[3..]), b"{\"state\":{\"slot\":7,\"is\":\"lost\"}}\n");
        let Step::Backend(sent) = &steps[1] else { panic!("as written") };
        assert_eq!(bytes(&sent.data), (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn what_is_no_step_is_told_with_its_line() {
        let told = read(b"# about\n{\"again\":{}}\n{\"dance\":{}}\n").unwrap_err().to_string();
        assert!(told.starts_with("line 3"), "{told}");
    }
}
