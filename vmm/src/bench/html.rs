//! A benchmark as one page that needs nothing else.

use std::fmt::Write;

use quire::abi::bench::{Operation, Scope};

use super::beside::{self, Beside};
use super::rows::{Bench, Ledger, METADATA, NestedLayers, Row};
use super::text::{HOW, LAYERS, NESTED_HOW, NESTED_LAYERS, per, shape_of, time, value};
use crate::page::{self, row_of};
use crate::svg::{Axis, Bar, COLOURS, Curve, Stack, bars, curves, escape, stacks};

const WIDTH: f64 = 1000.0;

/// The page, with what was counted beside Linux if that is given.
#[must_use]
pub fn page(bench: &Bench, beside: Option<&Beside>) -> String {
    let mut html = page::head("Quire's benchmark");
    html += "<h1>Quire's benchmark</h1>";
    setting(&mut html, bench);
    by_order(&mut html, bench);
    cost_per_page(&mut html, bench);
    distributions(&mut html, bench);
    layers(&mut html, bench);
    nested(&mut html, bench);
    schemes(&mut html, bench);
    launch(&mut html, bench);
    metadata(&mut html, bench);
    if let Some(beside) = beside {
        beside::section(&mut html, beside);
    }
    table(&mut html, bench);
    html + page::END
}

fn setting(html: &mut String, bench: &Bench) {
    let host = &bench.host;
    let module = host.kvm_module.as_deref().map(|module| format!(" ({module})")).unwrap_or_default();
    let cpu = host.cpu.as_deref().unwrap_or("an unknown CPU");
    let ring = bench.ring.map(|ring| format!(", the manager at ring {ring}")).unwrap_or_default();
    // Writing to a string does not fail.
    let _ = write!(
        html,
        "<p>quire {}, in a VM{}{ring}; {}, guest memory {}. Everything was measured {} times, in VMs of their own; {} comparisons of recounts, none wrong.</p>",
        bench.quire,
        escape(&module),
        escape(cpu),
        bench.guest_memory,
        bench.turns,
        bench.checks,
    );
    if let Some(recording) = bench.recording {
        let _ = write!(
            html,
            "<p class=\"note\">The floor is the same operation with a handler that only loads and stores the entries it needs, in the same run. Every sample, of however many pages, contains {} of \
             time stamps: {:.2}&nbsp;% of the fastest fault.</p>",
            time(recording.stamps_ns),
            100.0 * recording.part_of_fault
        );
    }
}

/// Rows of one operation under one scheme by order, that are to be quoted.
fn line_of<'a>(bench: &'a Bench, what: &'a str, scheme: Option<&'a str>) -> Vec<&'a Row> {
    bench.headlines(what).filter(|row| row.scheme.as_deref() == scheme).collect()
}

/// The first scheme, which the plots by order are of.
fn scheme_of(bench: &Bench) -> Option<&str> {
    bench.rows.iter().find_map(|row| row.scheme.as_deref())
}

/// An axis of shapes, and the place of each.
fn shapes(rows: &[&Row]) -> (Axis, Vec<String>) {
    let mut names: Vec<String> = Vec::new();
    for row in rows {
        if !names.contains(&row.shape()) {
            names.push(row.shape());
        }
    }
    let ticks = names.iter().enumerate().map(|(i, name)| (i as f64, name.clone())).collect();
    let high = (names.len() as f64 - 1.0).max(0.0) + 0.3;
    (Axis { label: "folio order".to_owned(), low: -0.3, high, ticks }, names)
}

fn plot_by_order(html: &mut String, bench: &Bench, operations: &[Operation], label: &str) {
    let scheme = scheme_of(bench);
    let rows = operations.iter().map(|operation| line_of(bench, operation.name(), scheme)).collect();
    plot_rows(html, rows, label);
}

/// A plot of some lines of rows by their shape.
fn plot_rows(html: &mut String, rows: Vec<Vec<&Row>>, label: &str) {
    let all: Vec<_> = rows.iter().flatten().copied().collect();
    if all.is_empty() {
        return;
    }
    let (x, names) = shapes(&all);
    let y = Axis::of_time(label, all.iter().flat_map(|row| [Some(row.quire), row.floor]).flatten());
    let mut lines = Vec::new();
    for (rows, colour) in rows.iter().zip(COLOURS).filter(|(rows, _)| !rows.is_empty()) {
        let points = |of: &dyn Fn(&Row) -> Option<f64>| -> Vec<(f64, f64)> {
            let place = |row: &Row| names.iter().position(|name| *name == row.shape()).map(|at| at as f64);
            rows.iter().filter_map(|row| Some((place(row)?, of(row)?.max(1e-3).log10()))).collect()
        };
        let ours = points(&|row| Some(row.quire));
        lines.push(Curve { name: Some(rows[0].what.clone()), points: ours, colour, is_dashed: false, has_dots: true });
        lines.push(Curve { name: None, points: points(&|row| row.floor), colour, is_dashed: true, has_dots: false });
    }
    *html += &curves(WIDTH, 360.0, &x, &y, &lines);
}

fn by_order(html: &mut String, bench: &Bench) {
    let single: Vec<_> = Operation::EACH.into_iter().filter(|operation| !operation.is_bulk()).collect();
    if single.iter().all(|operation| bench.headlines(operation.name()).next().is_none()) {
        return;
    }
    let scheme = scheme_of(bench).unwrap_or_default();
    let _ = write!(
        html,
        "<h2>Latency by order</h2><p>Medians for one folio under <code>{scheme}</code>, frames to be cleared; dashed: the floor.</p>"
    );
    plot_by_order(html, bench, &single, "one folio");
}

fn cost_per_page(html: &mut String, bench: &Bench) {
    let bulk: Vec<_> = Operation::EACH.into_iter().filter(|operation| operation.is_bulk()).collect();
    if bulk.iter().all(|operation| bench.headlines(operation.name()).next().is_none()) {
        return;
    }
    let _ = write!(
        html,
        "<h2>Cost of a page</h2><p>What is done to all folios at once, divided by pages of 4 KiB; <code>touch</code> stores to every page once, faults included. \
         Dashed: the floor.</p>"
    );
    plot_by_order(html, bench, &bulk, "a page");
}

/// Distributions of faults with their tails: each step up is a nine more.
fn distributions(html: &mut String, bench: &Bench) {
    let scheme = scheme_of(bench);
    for (what, title) in [("fault", "Faults"), ("cow", "Copies on write")] {
        let rows: Vec<_> = line_of(bench, what, scheme).into_iter().filter(|row| row.histogram.len() > 1).collect();
        if rows.is_empty() {
            continue;
        }
        let _ = write!(
            html,
            "<h2>{title}: distribution and tail</h2><p>How many are at most so long, by order; the axis grows by nines, so that the tail shows.</p>"
        );
        let ends = rows.iter().flat_map(|row| [row.histogram[0].0, row.histogram[row.histogram.len() - 1].0]);
        let x = Axis::of_time("latency", ends.collect::<Vec<_>>().into_iter());
        let most = rows.iter().filter_map(|row| row.percentiles).map(|p| p.count).max().unwrap_or(10);
        let high = (most as f64).log10().max(1.0);
        let ticks =
            [(0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")];
        let nines = |part: f64| -(1.0 - part).log10();
        let ticks = ticks.into_iter().map(|(part, name)| (nines(part), name.to_owned()));
        let ticks = ticks.filter(|(at, _)| *at <= high).collect();
        let y = Axis { label: "part of all".to_owned(), low: 0.0, high, ticks };
        let lines = rows.iter().zip(COLOURS.into_iter().cycle()).map(|(row, colour)| {
            let count: u64 = row.histogram.iter().map(|bucket| bucket.1).sum();
            let mut points = vec![(row.histogram[0].0.max(1e-3).log10(), 0.0)];
            let mut below = 0;
            for &(ns, here) in &row.histogram {
                let at = ns.max(1e-3).log10();
                points.push((at, points[points.len() - 1].1));
                below += here;
                // The last has all below it: it stands where one more would.
                points.push((at, nines((below as f64 / count as f64).min(1.0 - 0.5 / count as f64)).min(high)));
            }
            let name = Some(format!("order {}", row.shape()));
            Curve { name, points, colour, is_dashed: false, has_dots: false }
        });
        *html += &curves(WIDTH, 360.0, &x, &y, &lines.collect::<Vec<_>>());
    }
}

fn layers(html: &mut String, bench: &Bench) {
    for (what, title) in [("fault", "Where the time of a fault goes"), ("cow", "Where the time of a copy goes")] {
        let chosen: Vec<_> = bench.layers.iter().filter(|layers| layers.what == what).collect();
        if chosen.is_empty() {
            continue;
        }
        let _ = write!(html, "<h2>{title}</h2>");
        let several = chosen.iter().any(|layers| layers.scheme != chosen[0].scheme);
        let bars: Vec<_> = chosen
            .iter()
            .map(|layers| Stack {
                name: format!(
                    "{}order {}",
                    if several { format!("{}, ", layers.scheme) } else { String::new() },
                    shape_of(layers.leaf, layers.order)
                ),
                parts: LAYERS.iter().zip(COLOURS).map(|((_, of), colour)| (of(layers), colour)).collect(),
                label: time(layers.total),
            })
            .collect();
        let legend: Vec<_> = LAYERS.iter().zip(COLOURS).map(|((name, _), colour)| (*name, colour)).collect();
        *html += &stacks(WIDTH, &bars, &legend);
        *html += "<table>";
        let mut heads = vec!["order".to_owned(), "scheme".to_owned(), "total".to_owned()];
        heads.extend(LAYERS.iter().map(|(name, _)| (*name).to_owned()));
        heads.push("stage 2, on top".to_owned());
        row_of(html, "th", &heads);
        for layers in chosen {
            let mut cells = vec![shape_of(layers.leaf, layers.order), layers.scheme.to_owned(), time(layers.total)];
            cells.extend(LAYERS.iter().map(|(_, of)| time(of(layers))));
            cells.push(layers.stage2.map_or_else(|| "-".to_owned(), time));
            row_of(html, "td", &cells);
        }
        let _ = write!(html, "</table><p class=\"note\">{HOW}.</p>");
    }
}

/// What is done to VMs, where the time of a nested fault goes, and what the ledger takes of it.
fn nested(html: &mut String, bench: &Bench) {
    let Some(format) = bench.stage2 else { return };
    let of_vms = |row: &&Row| Operation::OF_VMS.iter().any(|operation| operation.name() == row.what);
    let named = bench.rows.iter().filter(of_vms).filter_map(|row| row.scheme.as_deref());
    let Some(scheme) = named.max_by_key(|&scheme| scheme == "total") else { return };
    let _ = write!(
        html,
        "<h2>Nested levels</h2><p>VMs of our manager inside of this VM, under <code>{scheme}</code>, stage-2 tables for <code>{format}</code>, frames known to be zero; dashed: the floor. \
         The end of a VM is that of one with {} MiB mapped, on fresh frames.</p>",
        bench.vm_memory.unwrap_or(0) >> 20
    );
    for (title, unit, bulk) in [("Faults", "ns per folio", false), ("Dirty log, clone and end", "ns per page", true)] {
        let line = |operation: Operation| {
            let rows = line_of(bench, operation.name(), Some(scheme)).into_iter().filter(|row| row.unit == unit);
            rows.collect::<Vec<_>>()
        };
        let is_here = |operation: &Operation| matches!(operation.scope(), Scope::Pages | Scope::All) == bulk;
        let rows: Vec<_> = Operation::OF_VMS.into_iter().filter(is_here).map(line).collect();
        let _ = write!(html, "<h3>{title}</h3>");
        plot_rows(html, rows, per_unit(unit));
    }
    if bench.nested_layers.is_empty() {
        return;
    }
    let shape = |layers: &NestedLayers| shape_of(layers.leaf, layers.order);
    *html += "<h3>Where the time of a nested fault goes</h3>";
    let parts = |layers: &NestedLayers| {
        NESTED_LAYERS.iter().zip(COLOURS).map(|((_, of), colour)| (of(layers), colour)).collect()
    };
    let bars: Vec<_> = bench
        .nested_layers
        .iter()
        .map(|layers| Stack {
            name: format!("{}, order {}", layers.scheme, shape(layers)),
            parts: parts(layers),
            label: time(layers.total),
        })
        .collect();
    let legend: Vec<_> = NESTED_LAYERS.iter().zip(COLOURS).map(|((name, _), colour)| (*name, colour)).collect();
    *html += &stacks(WIDTH, &bars, &legend);
    *html += "<table>";
    let mut heads = vec!["order".to_owned(), "scheme".to_owned(), "total".to_owned()];
    heads.extend(NESTED_LAYERS.iter().map(|(name, _)| (*name).to_owned()));
    heads.extend(["accounting", "of the fault", "of the levels"].map(str::to_owned));
    row_of(html, "th", &heads);
    for layers in &bench.nested_layers {
        let mut cells = vec![shape(layers), layers.scheme.to_owned(), time(layers.total)];
        cells.extend(NESTED_LAYERS.iter().map(|(_, of)| time(of(layers))));
        cells.push(time(layers.accounting));
        cells.extend([layers.part_of_fault, layers.part_of_levels].map(|part| format!("{:.2}\u{a0}%", 100.0 * part)));
        row_of(html, "td", &cells);
    }
    let _ = write!(html, "</table><p class=\"note\">{NESTED_HOW}.</p>");
    if bench.ledger.is_empty() {
        return;
    }
    *html += "<h3>What counting costs: <code>total</code> to <code>none</code></h3><table>";
    let shape = |row: &Ledger| shape_of(row.leaf, row.order);
    let (mut whats, mut shapes) = (Vec::new(), Vec::new());
    for row in &bench.ledger {
        if !whats.contains(&row.what) {
            whats.push(row.what);
        }
        if !shapes.contains(&shape(row)) {
            shapes.push(shape(row));
        }
    }
    let mut heads = vec!["what".to_owned()];
    heads.extend(shapes.iter().map(|shape| format!("order {shape}")));
    row_of(html, "th", &heads);
    for what in whats {
        let mut cells = vec![what.to_owned()];
        cells.extend(shapes.iter().map(|of| {
            let row = bench.ledger.iter().find(|row| row.what == what && shape(row) == *of);
            row.map_or_else(String::new, |Ledger { to_none, quartiles: [low, high], .. }| {
                format!("{to_none:.3} ({low:.2} to {high:.2})")
            })
        }));
        row_of(html, "td", &cells);
    }
    *html += "</table><p class=\"note\">In brackets: the quartiles of the turns.</p>";
}

/// The label of an axis of some unit.
fn per_unit(unit: &str) -> &'static str {
    if unit.ends_with("page") { "a page" } else { "one folio" }
}

/// Every scheme beside the others, where there are several.
fn schemes(html: &mut String, bench: &Bench) {
    let mut names: Vec<&str> = Vec::new();
    for name in bench.rows.iter().filter_map(|row| row.scheme.as_deref()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.len() < 2 {
        return;
    }
    let mut charts = String::new();
    for operation in Operation::EACH.into_iter().filter(|&operation| operation != Operation::Touch) {
        let rows: Vec<_> = bench.headlines(operation.name()).collect();
        for shape in ["0", "4", "9", "9 (2M leaf)"] {
            let bar = |(name, colour): (&&str, &'static str)| {
                let row = rows.iter().find(|row| row.shape() == shape && row.scheme.as_deref() == Some(name))?;
                let ratio = row.ratio()?;
                let turns = row.turns.iter().filter_map(|turn| Some(turn.quire / turn.floor?));
                let (low, high) = turns.fold((ratio, ratio), |(low, high), turn| (low.min(turn), high.max(turn)));
                let label = format!("{ratio:.2} ({} a {})", time(row.quire), per(row));
                Some(Bar { name: (*name).to_owned(), value: ratio, interval: Some((low, high)), label, colour })
            };
            let chosen: Vec<_> = names.iter().zip(COLOURS.into_iter().cycle()).filter_map(bar).collect();
            if chosen.len() > 1 {
                let _ = write!(charts, "<h3>{}, order {shape}</h3>", operation.name());
                charts += &bars(900.0, &chosen, Some(1.0));
            }
        }
    }
    if charts.is_empty() {
        return;
    }
    let _ = write!(
        html,
        "<h2>Scheme against scheme</h2><p>In floors of the same run, so that what drifts on the host is out; the line is the floor.</p>{charts}\
         <p class=\"note\">Intervals: the least and the most of the turns.</p>"
    );
}

fn launch(html: &mut String, bench: &Bench) {
    let parts: Vec<_> = bench.rows.iter().filter(|row| row.what.starts_with("launch")).collect();
    let Some((whole, parts)) = parts.split_first() else { return };
    let _ = write!(
        html,
        "<h2>Launch</h2><p>From <code>exec</code> to the guest's first instruction: {} (median), and what it goes into; behind it, the end of the VM.</p>",
        time(whole.quire)
    );
    let bar = |(row, colour): (&&Row, &'static str)| Bar {
        name: row.what.trim_start_matches("launch: ").to_owned(),
        value: row.quire,
        interval: row.percentiles.map(|p| (row.histogram.first().map_or(p.p50, |bucket| bucket.0), p.p90)),
        label: time(row.quire),
        colour,
    };
    *html += &bars(900.0, &parts.iter().zip(COLOURS.into_iter().cycle()).map(bar).collect::<Vec<_>>(), None);
    *html += "<p class=\"note\">Intervals: from the least to the 90th percentile.</p>";
}

fn metadata(html: &mut String, bench: &Bench) {
    let rows: Vec<_> = METADATA.into_iter().flat_map(|what| bench.headlines(what)).collect();
    if rows.is_empty() {
        return;
    }
    *html += "<h2>Metadata</h2><p>Look-up, descriptors and per-page counts with 64 MiB mapped whole, 1 GiB at order 9; tables and vmas apart. Compact, grown: where VMs are counted too, of \
        folios that no VM has mapped, and of folios that one has.</p><table>";
    row_of(html, "th", &["what", "order", "scheme", "bytes a frame", "bytes a folio"].map(str::to_owned));
    for pair in rows.chunks_exact(2) {
        let scheme = pair[0].scheme.clone().unwrap_or_default();
        row_of(
            html,
            "td",
            &[
                pair[0].what.clone(),
                pair[0].shape(),
                scheme,
                format!("{:.2}", pair[0].quire),
                format!("{:.1}", pair[1].quire),
            ],
        );
    }
    *html += "</table>";
}

/// All rows.
fn table(html: &mut String, bench: &Bench) {
    *html += "<h2>All rows</h2><table>";
    let heads = [
        "what",
        "order",
        "frames",
        "scheme",
        "per",
        "count",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "max",
        "floor p50",
        "floor p99",
        "ratio",
    ];
    row_of(html, "th", &heads.map(str::to_owned));
    for row in &bench.rows {
        let Some(p) = row.percentiles else { continue };
        let or = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let cells = [
            row.what.clone(),
            row.shape(),
            or(row.frames.clone()),
            or(row.scheme.clone()),
            per(row).to_owned(),
            p.count.to_string(),
            value(row, p.p50),
            value(row, p.p90),
            value(row, p.p99),
            value(row, p.p999),
            value(row, p.max),
            or(row.floor.map(time)),
            or(row.floor_percentiles.map(|floor| time(floor.p99))),
            or(row.ratio().map(|ratio| format!("{ratio:.2}"))),
        ];
        row_of(html, "td", &cells);
    }
    *html += "</table>";
}
