//! What all pages have in common: they need nothing else, so that they can be attached to a mail.

use std::fmt::Write;

use crate::svg::escape;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1100px;margin:2em auto;padding:0 1em}\
h1{font-size:1.6em;margin-bottom:.2em}h2{font-size:1.2em;margin:2em 0 .4em;border-bottom:1px solid #ccc}h3{font-size:1em;margin:1.2em 0 .2em}\
p{margin:.4em 0;max-width:60em}p.note{color:#555;font-size:.9em}\
table{border-collapse:collapse;margin:.6em 0;font-size:.9em;font-variant-numeric:tabular-nums}\
th,td{padding:.25em .5em;text-align:right;border:1px solid #e4e4e4}th{background:#f6f6f6;font-weight:600}th:first-child,td:first-child{text-align:left}\
td.walk{background:#eee;color:#777}td.ok{background:#e7f4ea}td.right{background:#f2f7e0}\
svg{max-width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:#333}th,td{white-space:nowrap}code{font-size:.95em}";

/// How a page ends.
pub(crate) const END: &str = "</body></html>\n";

/// How a page begins.
pub(crate) fn head(title: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{}</title><style>{STYLE}</style></head><body>\n",
        escape(title)
    )
}

/// A cell of a table, `th` or `td`.
pub(crate) fn cell_of(html: &mut String, tag: &str, class: &str, text: &str) {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    // Writing to a string does not fail.
    let _ = write!(html, "<{tag}{class}>{}</{tag}>", escape(text));
}

/// A row of a table.
pub(crate) fn row_of(html: &mut String, tag: &str, cells: &[String]) {
    *html += "<tr>";
    cells.iter().for_each(|text| cell_of(html, tag, "", text));
    *html += "</tr>";
}
