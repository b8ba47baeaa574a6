//! Instructions beside Linux, for the page: counted in an emulated machine by this project's other benchmark, never mixed with times.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::error::Error;
use crate::page::row_of;
use crate::svg::{Bar, COLOURS, bars, escape};

/// What `quire-benches instructions --json` says of it.
#[derive(Clone, Debug, Deserialize)]
pub struct Beside {
    rows: Vec<Row>,
    /// Linux's release; none where its side could not be counted.
    linux: Option<String>,
}

/// One operation on folios of one order, in instructions a folio.
#[derive(Clone, Debug, Deserialize)]
struct Row {
    what: String,
    order: u8,
    quire: f64,
    quire_whole: f64,
    peers: BTreeMap<String, f64>,
}

/// Names of Linux's side, as counted and less what we do not do.
const COUNTED: &str = "linux-6.12";
const CORRECTED: &str = "linux-6.12 corrected";

/// Reads it.
///
/// # Errors
/// [`Error::BenchFile`] when it is something else.
pub fn read(file: &Path) -> Result<Beside, Error> {
    let refuse = |reason: String| Error::BenchFile { file: file.display().to_string(), reason };
    let text = fs::read_to_string(file).map_err(|error| refuse(error.to_string()))?;
    let found: Beside = serde_json::from_str(&text).map_err(|error| refuse(error.to_string()))?;
    let is = |n: &f64| n.is_finite() && *n > 0.0;
    match found.rows.iter().find(|row| ![row.quire, row.quire_whole].iter().chain(row.peers.values()).all(is)) {
        None => Ok(found),
        Some(row) => Err(refuse(format!("{} of order {} has a count that is none", row.what, row.order))),
    }
}

/// The section of the page.
pub fn section(html: &mut String, beside: &Beside) {
    let release = escape(beside.linux.as_deref().unwrap_or("(not counted)"));
    // Writing to a string does not fail.
    let _ = write!(
        html,
        "<h2>Instructions, beside Linux {release}</h2><p>How many times fewer instructions a folio takes here, both kernels at ring 0 of the same emulated machine; the line is Linux. \
         On neither side pages are copied, nor on Linux's cleared or processes made; it does more than we do in each: system calls, LRU lists, statistics, RCU, memory cgroups. \
         These are counts of another machine, not times of this one.</p>"
    );
    let mut names: Vec<&str> = Vec::new();
    for row in &beside.rows {
        if !names.contains(&row.what.as_str()) {
            names.push(&row.what);
        }
    }
    for (name, colour) in names.iter().zip(COLOURS.into_iter().cycle()) {
        let bar = |row: &Row| {
            let theirs = row.peers.get(CORRECTED)?;
            let ratio = theirs / row.quire;
            let label = format!("{ratio:.1} ({:.0} to {theirs:.0})", row.quire);
            Some(Bar { name: format!("order {}", row.order), value: ratio, interval: None, label, colour })
        };
        let chosen: Vec<_> = beside.rows.iter().filter(|row| row.what == *name).filter_map(bar).collect();
        if !chosen.is_empty() {
            let _ = write!(html, "<h3>{}</h3>", escape(name));
            *html += &bars(900.0, &chosen, Some(1.0));
        }
    }
    *html += "<table>";
    let heads = ["what", "order", "here", "Linux", "here, whole", "Linux, as counted"];
    row_of(html, "th", &heads.map(str::to_owned));
    for row in &beside.rows {
        let peer = |name: &str| row.peers.get(name).map_or_else(|| "-".to_owned(), |n| format!("{n:.0}"));
        let cells = [
            row.what.clone(),
            row.order.to_string(),
            format!("{:.0}", row.quire),
            peer(CORRECTED),
            format!("{:.0}", row.quire_whole),
            peer(COUNTED),
        ];
        row_of(html, "td", &cells);
    }
    *html += "</table>";
}

#[cfg(test)]
mod tests {
    use super::{read, section};

    fn written(text: &str) -> std::path::PathBuf {
        let file = std::env::temp_dir().join(format!("quire-beside-{}-{}", std::process::id(), text.len()));
        std::fs::write(&file, text).unwrap();
        file
    }

    #[test]
    fn what_was_counted_is_on_the_page() {
        let row = r#"{"what":"fault","order":4,"quire":100,"quire_whole":9000,"floor":90,"unit":"instructions","peers":{"linux-6.12":20000,"linux-6.12 corrected":1550}}"#;
        let file = written(&format!(r#"{{"rows":[{row}],"linux":"6.12.1"}}"#));
        let mut html = String::new();
        section(&mut html, &read(&file).unwrap());
        std::fs::remove_file(file).unwrap();
        for expected in ["6.12.1", "15.5 (100 to 1550)", "<td>9000</td>", "<td>20000</td>", "<svg"] {
            assert!(html.contains(expected), "{expected} in {html}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "{\"rows\":3}", r#"{"rows":[{"what":"fork","order":0,"quire":0,"quire_whole":1,"peers":{}}]}"#]
        {
            let file = written(text);
            let error = read(&file).unwrap_err();
            std::fs::remove_file(file).unwrap();
            assert_eq!(error.exit_code(), 3, "{error}");
        }
        assert_eq!(read(std::path::Path::new("/nowhere")).unwrap_err().exit_code(), 3);
    }
}
