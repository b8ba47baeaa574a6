//! What a trace says about itself before its first operation.

use core::fmt::{self, Write as _};

use super::{MAGIC, MAX_TEXT};

/// The header of a trace. `Display` writes it, the first line included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header<'a> {
    /// What the trace is.
    pub title: Option<&'a str>,
    /// The command that was recorded.
    pub command: Option<&'a str>,
    /// Program and system that recorded it.
    pub recorded_by: Option<&'a str>,
    /// Accesses whose direction could not be told; they stand as reads.
    pub unknown_accesses: Option<u64>,
    /// Page faults that the recorder knows it did not see.
    pub lost: Option<u64>,
    /// Accesses and calls left out because the trace could not explain them.
    pub dropped: Option<u64>,
    /// Memory calls that worked but that the format cannot express.
    pub ignored: Option<u64>,
}

impl fmt::Display for Header<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{MAGIC}")?;
        for (key, text) in [("title", self.title), ("command", self.command), ("recorded-by", self.recorded_by)] {
            if let Some(text) = text {
                write!(f, "{key} ")?;
                write_text(f, text)?;
                f.write_char('\n')?;
            }
        }
        for (key, number) in [
            ("unknown-accesses", self.unknown_accesses),
            ("lost", self.lost),
            ("dropped", self.dropped),
            ("ignored", self.ignored),
        ] {
            if let Some(number) = number {
                writeln!(f, "{key} {number}")?;
            }
        }
        Ok(())
    }
}

/// Writes `text` so that the reader takes it: what is not printable ASCII becomes `?`, and what is too long is cut.
fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    if text.is_empty() {
        return f.write_char('?');
    }
    for c in text.chars().take(MAX_TEXT) {
        f.write_char(if c == ' ' || c.is_ascii_graphic() { c } else { '?' })?;
    }
    Ok(())
}
