//! The comparison as one page that needs nothing else: to be attached to a mail.

use std::fmt::Write;

use quire::abi::survey::Question;

use super::answers::Count;
use super::cost::{Cost, Figure};
use super::text::{ERRORS_LEGEND, LEGEND, TABLES, cell, errors};
use super::{Comparison, Row};
use crate::page::{self, cell_of};
use crate::report::Time;
use crate::svg::{Bar, COLOURS, Steps, bars, distribution, escape};

/// The page.
#[must_use]
pub fn page(c: &Comparison) -> String {
    let name = escape(&c.trace);
    let mut html = page::head(&format!("Mapcount schemes on {}", c.trace));
    // Writing to a string does not fail.
    let _ = write!(html, "<h1>Mapcount schemes on <code>{name}</code></h1>");
    if let Some(title) = &c.title {
        let _ = write!(html, "<p>{}</p>", escape(title));
    }
    setting(&mut html, c);

    html += "<h2>What each scheme answers</h2>";
    for table in &TABLES {
        answers(&mut html, c, table);
    }
    let _ = write!(html, "<p class=\"note\">{}. The redder, the more answers are wrong.</p>", escape(LEGEND));

    html += "<h2>How far wrong</h2>";
    let (heads, rows) = errors(c);
    html += "<table><tr><th>scheme</th>";
    heads.iter().for_each(|head| cell_of(&mut html, "th", "", head));
    html += "</tr>";
    for (name, cells) in rows {
        let _ = write!(html, "<tr><td><code>{name}</code></td>");
        cells.iter().for_each(|cell| cell_of(&mut html, "td", if cell == "-" { "walk" } else { "" }, cell));
        html += "</tr>";
    }
    let _ = write!(html, "</table><p class=\"note\">{}.</p>", escape(ERRORS_LEGEND));

    html += "<h3>Pss of a process: how many are at most that far off</h3>";
    let lines: Vec<_> = schemes(c).filter_map(|(row, colour)| pss_line(row, colour)).collect();
    html += &distribution(1000.0, 320.0, &lines);
    let unknown: Vec<_> =
        c.schemes.iter().filter(|row| row.queries.pss.error_mean.is_none()).map(|row| row.name).collect();
    if !unknown.is_empty() {
        let _ = write!(html, "<p class=\"note\">Without any Pss from the state: {}.</p>", unknown.join(", "));
    }
    by_order(&mut html, c);
    cost(&mut html, c);
    html + page::END
}

fn schemes(c: &Comparison) -> impl Iterator<Item = (&Row, &'static str)> {
    c.schemes.iter().zip(COLOURS.into_iter().cycle())
}

/// What was run, and where.
fn setting(html: &mut String, c: &Comparison) {
    let place = match c.ring {
        Some(ring) => format!("in a VM, the manager at ring {ring}"),
        None => "in one process over emulated frames: no trap, no MMU".to_owned(),
    };
    let module = c.host.kvm_module.as_deref().map(|module| format!(" ({module})")).unwrap_or_default();
    let leaves = if c.small_leaves { ", mapped by 4 KiB leaves" } else { "" };
    let _ = write!(
        html,
        "<p>quire {}, {place}{}. {} operations; anonymous folios of up to order {}{leaves}; seed {}. Every scheme was asked at {} checkpoints of one replay, beside a \
         recount of every leaf ({} comparisons, {} wrong): {} processes with {} folios in all.</p>",
        c.quire,
        escape(&module),
        c.ops,
        c.max_order,
        c.seed,
        c.truth.checkpoints,
        c.audit.checks,
        c.audit.mismatches,
        c.truth.processes,
        c.truth.folios.iter().map(|row| row.folios).sum::<u64>(),
    );
    *html += "<table><tr><th>order</th><th>folios</th><th>of several owners</th><th>anonymous</th><th>partly mapped</th></tr>";
    for row in &c.truth.folios {
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            row.order, row.folios, row.shared, row.anon, row.partial
        );
    }
    *html += "</table>";
}

/// A cell whose colour says how much of it is wrong.
fn heat(html: &mut String, count: &Count) {
    let text = cell(count);
    let wrong = count.wrong + count.broken;
    if wrong > 0 {
        // Rare errors must be seen too: by the logarithm, from 1 in 10000.
        let part = wrong as f64 / count.asked() as f64;
        let depth = ((part.log10() + 4.0) / 4.0).clamp(0.05, 1.0);
        let _ = write!(
            html,
            "<td style=\"background:hsl(8,85%,{:.0}%)\" title=\"{wrong} of {}\">{}</td>",
            95.0 - 35.0 * depth,
            count.asked(),
            escape(&text)
        );
        return;
    }
    let class = match text.as_str() {
        "exact" => "ok",
        "right" => "right",
        _ => "walk",
    };
    cell_of(html, "td", class, &text);
}

fn answers(html: &mut String, c: &Comparison, table: &[(Question, &str)]) {
    *html += "<table><tr><th>scheme</th>";
    table.iter().for_each(|(_, head)| cell_of(html, "th", "", head));
    *html += "</tr>";
    for row in &c.schemes {
        let _ = write!(html, "<tr><td><code>{}</code></td>", row.name);
        table.iter().for_each(|(question, _)| heat(html, &row.queries.count(*question).all));
        *html += "</tr>";
    }
    *html += "</table>";
}

fn pss_line(row: &Row, colour: &'static str) -> Option<Steps> {
    let pss = &row.queries.pss;
    let known = (pss.samples - pss.unknown) as f64;
    pss.error_mean?;
    let points = pss.at_most.iter().map(|&(error, count)| (error, count as f64 / known)).collect();
    Some(Steps { name: row.name.to_owned(), points, colour })
}

/// The questions that folio orders matter to.
fn by_order(html: &mut String, c: &Comparison) {
    let orders: Vec<_> = c.truth.folios.iter().map(|row| row.order).collect();
    *html += "<h2>Errors by folio order</h2>";
    for (question, what) in [
        (Question::PageCount, "Leaves over a page (kpagecount), of every page of a mapped folio"),
        (Question::Charge, "What a leaf is charged in Pss"),
        (Question::Exclusive, "Is a mapped page exclusive (pagemap, Private_*)?"),
        (Question::Shared, "Is a folio shared?"),
        (Question::MappedPages, "Pages mapped (AnonPages, Mapped)"),
    ] {
        let _ = write!(html, "<h3>{what}</h3><table><tr><th>scheme</th>");
        orders.iter().for_each(|order| cell_of(html, "th", "", &format!("order {order}")));
        *html += "</tr>";
        for row in &c.schemes {
            let query = row.queries.count(question);
            if query.all.unanswered() == query.all.asked() {
                continue;
            }
            let _ = write!(html, "<tr><td><code>{}</code></td>", row.name);
            for order in &orders {
                let count = query.by_order.iter().find(|row| row.order == *order).map(|row| row.count);
                heat(html, &count.unwrap_or_default());
            }
            *html += "</tr>";
        }
        *html += "</table>";
    }
}

fn cost(html: &mut String, c: &Comparison) {
    *html += "<h2>What it costs</h2><h3>Bytes of state: for each large folio (and for each of its pages)</h3>";
    let bytes = schemes(c).map(|(row, colour)| {
        let pages = if row.page_bytes > 0 { format!(" + {} a page", row.page_bytes) } else { String::new() };
        let value = row.state_bytes as f64;
        Bar { name: row.name.to_owned(), value, interval: None, label: format!("{value}{pages}"), colour }
    });
    *html += &bars(900.0, &bytes.collect::<Vec<_>>(), None);
    *html += "<h3>Locked operations in each call of the count layer (a batch of leaves), counted</h3>";
    let atomics = schemes(c).map(|(row, colour)| {
        let value = row.atomics;
        Bar { name: row.name.to_owned(), value, interval: None, label: format!("{value:.2}"), colour }
    });
    *html += &bars(900.0, &atomics.collect::<Vec<_>>(), None);
    if c.rounds == 0 {
        return;
    }
    *html += "<h3>Bytes of metadata measured, for each mapped folio</h3>";
    let bytes = schemes(c).filter_map(|(row, colour)| {
        let value = row.cost.as_ref()?.metadata.bytes_per_folio;
        Some(Bar { name: row.name.to_owned(), value, interval: None, label: format!("{value:.1}"), colour })
    });
    *html += &bars(900.0, &bytes.collect::<Vec<_>>(), None);
    type Pick = fn(&Cost) -> Option<Figure>;
    let of: [(&str, Pick); 5] = [
        ("An operation of the trace, faults included", |cost| cost.op),
        ("A fault", |cost| cost.fault),
        ("A fork", |cost| cost.fork),
        ("Teardown of an address space", |cost| cost.teardown),
        ("munmap", |cost| cost.unmap),
    ];
    for (what, figure) in of {
        let bar = |(row, colour): (&Row, &'static str)| {
            let figure = row.cost.as_ref().and_then(figure)?;
            Some(Bar {
                name: row.name.to_owned(),
                value: figure.ratio,
                interval: Some((figure.ratio_min, figure.ratio_max)),
                label: format!("{:.2} ({})", figure.ratio, Time(figure.ns)),
                colour,
            })
        };
        let all: Vec<_> = schemes(c).filter_map(bar).collect();
        if !all.is_empty() {
            let _ = write!(html, "<h3>{what}, relative to <code>none</code></h3>{}", bars(900.0, &all, Some(1.0)));
        }
    }
    let _ = write!(
        html,
        "<p class=\"note\">Each scheme alone, {} rounds in turn. Bars are medians of the ratios within a round, lines reach from the least to the most; in brackets the \
         median time. Times contain the trap into the manager, which on {} is most of a fault.</p>",
        c.rounds,
        c.host.kvm_module.as_deref().map_or_else(|| "this host".to_owned(), escape)
    );
}
