//! A benchmark as a table.

use std::fmt;

use super::rows::{Bench, Layers, Row};
use crate::report::Time;

/// A row's number with a unit that fits it.
pub(crate) fn value(row: &Row, number: f64) -> String {
    if row.unit.starts_with("bytes") { format!("{number:.2} B") } else { time(number) }
}

/// Nanoseconds; small ones with digits behind the point.
pub(crate) fn time(ns: f64) -> String {
    match ns {
        ns if ns < 0.0 => format!("-{}", time(-ns)),
        ns if ns < 10.0 => format!("{ns:.2} ns"),
        ns if ns < 100.0 => format!("{ns:.1} ns"),
        ns => Time(ns).to_string(),
    }
}

/// What a page's or folio's row is in.
pub(crate) fn per(row: &Row) -> &str {
    row.unit.split_once("per ").map_or("", |(_, what)| what)
}

/// A column of [`Layers`]: its head, and which number stands in it.
pub(crate) type Column = (&'static str, fn(&Layers) -> f64);

/// The columns of [`Layers`] that add up to the total.
pub(crate) const LAYERS: [Column; 7] = [
    ("exception, return", |layers| layers.exception_and_return),
    ("allocation", |layers| layers.allocation),
    ("zeroing, copy", |layers| layers.zeroing),
    ("accounting", |layers| layers.accounting),
    ("table stores", |layers| layers.table_stores),
    ("flush", |layers| layers.flush),
    ("residue", |layers| layers.residue),
];

/// How the layers were come by.
pub(crate) const HOW: &str = "\
Medians of frames that must be cleared. The manager's part and its zeroing are stamped within the fault, in runs of their own; exception and return is the rest of the total, and holds \
what the host's MMU does, the recording of these parts too. Allocation, copying, accounting, table stores and the flush are timed in loops, so they are warmer than in a fault; the residue is what \
they leave of the manager's part: locks, vma look-up, walk, descriptor, and that difference. Of a copy, the first and those of counts and tables are of a folio of order 0. Stage 2 is a fault on memory that the host has yet to give, less one on memory it has given; on one page of the folio, so it may be lost in noise where a folio is large";

impl fmt::Display for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ring) = self.ring {
            writeln!(
                f,
                "manager at ring {ring} of a VM, guest memory {}; {} turns of everything; {} comparisons of recounts, none wrong",
                self.guest_memory, self.turns, self.checks
            )?;
            if self.host.kvm_module.as_deref() == Some("kvm_pvm") {
                writeln!(
                    f,
                    "this KVM is KVM-PVM: it shadows page tables and emulates ring 0, so a fault costs tens of times what it does on VMX or SVM"
                )?;
            }
        }
        if self.rows.iter().any(|row| row.percentiles.is_some()) {
            writeln!(
                f,
                "\n{:<26} {:<11} {:<10} {:<18} {:<5} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6}",
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
                "floor",
                "ratio"
            )?;
        }
        for row in &self.rows {
            let Some(p) = row.percentiles else { continue };
            let mark = if row.headline || row.frames.is_none() { "" } else { "  (beside)" };
            writeln!(
                f,
                "{:<26} {:<11} {:<10} {:<18} {:<5} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6}{mark}",
                row.what,
                row.shape(),
                row.frames.as_deref().unwrap_or("-"),
                row.scheme.as_deref().unwrap_or("-"),
                per(row),
                p.count,
                time(p.p50),
                time(p.p90),
                time(p.p99),
                time(p.p999),
                time(p.max),
                row.floor.map_or_else(|| "-".to_owned(), time),
                row.ratio().map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
            )?;
        }
        if self.otherwise > 0 {
            writeln!(
                f,
                "{} faults were of another kind than their row says: the scheme could not tell",
                self.otherwise
            )?;
        }
        self.show_layers(f)?;
        self.show_metadata(f)?;
        if let Some(recording) = self.recording {
            writeln!(
                f,
                "\nevery time contains {} of time stamps, {:.2} % of the fastest fault",
                time(recording.stamps_ns),
                100.0 * recording.part_of_fault
            )?;
        }
        Ok(())
    }
}

impl Bench {
    fn show_layers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.layers.is_empty() {
            return Ok(());
        }
        write!(f, "\n{:<6} {:<11} {:<18} {:>9}", "layers", "order", "scheme", "total")?;
        LAYERS.iter().try_for_each(|(name, _)| write!(f, " {:>width$}", name, width = name.len().max(9)))?;
        writeln!(f, " {:>9}", "+ stage 2")?;
        for layers in &self.layers {
            let order = if layers.leaf == 9 { format!("{} (2M leaf)", layers.order) } else { layers.order.to_string() };
            write!(f, "{:<6} {order:<11} {:<18} {:>9}", layers.what, layers.scheme, time(layers.total))?;
            LAYERS
                .iter()
                .try_for_each(|(name, of)| write!(f, " {:>width$}", time(of(layers)), width = name.len().max(9)))?;
            writeln!(f, " {:>9}", layers.stage2.map_or_else(|| "-".to_owned(), time))?;
        }
        writeln!(f, "{HOW}")
    }

    fn show_metadata(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.headlines("metadata").next().is_none() {
            return Ok(());
        }
        writeln!(
            f,
            "\n{:<9} {:<11} {:<18} {:>10} {:>10}  of 64 MiB mapped whole, of 1 GiB at order 9; tables and vmas apart",
            "metadata", "order", "scheme", "a frame", "a folio"
        )?;
        let rows: Vec<_> = self.headlines("metadata").collect();
        for pair in rows.chunks_exact(2) {
            writeln!(
                f,
                "{:<9} {:<11} {:<18} {:>10} {:>10}",
                "",
                pair[0].shape(),
                pair[0].scheme.as_deref().unwrap_or("-"),
                value(pair[0], pair[0].quire),
                value(pair[1], pair[1].quire)
            )?;
        }
        Ok(())
    }
}
