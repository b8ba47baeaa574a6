//! A benchmark as a table.

use std::fmt;

use super::rows::{Bench, Layers, METADATA, NestedLayers, Row};
use crate::report::Time;

/// A row's number with a unit that fits it.
pub(crate) fn value(row: &Row, number: f64) -> String {
    if row.unit.starts_with("bytes") { format!("{number:.2} B") } else { time(number) }
}

/// Nanoseconds; small ones with digits behind the point.
pub(crate) fn time(ns: f64) -> String {
    match ns {
        0.0 => "0 ns".to_owned(),
        ns if ns < 0.0 => format!("-{}", time(-ns)),
        ns if ns < 0.1 => format!("{ns:.4} ns"),
        ns if ns < 10.0 => format!("{ns:.2} ns"),
        ns if ns < 100.0 => format!("{ns:.1} ns"),
        ns => Time(ns).to_string(),
    }
}

/// What a page's or folio's row is in.
pub(crate) fn per(row: &Row) -> &str {
    row.unit.split_once("per ").map_or("", |(_, what)| what)
}

/// A shape, as in [`Row::shape`].
pub(crate) fn shape_of(leaf: u8, order: u8) -> String {
    if leaf == 9 { format!("{order} (2M leaf)") } else { order.to_string() }
}

/// A column of layers, [`Layers`] or [`NestedLayers`]: its head, and which number stands in it.
pub(crate) type Column<L> = (&'static str, fn(&L) -> f64);

/// The columns of [`Layers`] that add up to the total.
pub(crate) const LAYERS: [Column<Layers>; 7] = [
    ("exception, return", |layers| layers.exception_and_return),
    ("allocation", |layers| layers.allocation),
    ("zeroing, copy", |layers| layers.zeroing),
    ("accounting", |layers| layers.accounting),
    ("table stores", |layers| layers.table_stores),
    ("flush", |layers| layers.flush),
    ("residue", |layers| layers.residue),
];

/// The parts of a nested fault: a head, and which number of [`NestedLayers`] stands below it. They add up to the total.
pub(crate) const NESTED_LAYERS: [Column<NestedLayers>; 7] = [
    ("exception, return", |layers| layers.exception_and_return),
    ("reflect", |layers| layers.reflect),
    ("guest's manager", |layers| layers.guest),
    ("host", |layers| layers.host),
    ("stage 2", |layers| layers.stage2),
    ("compose", |layers| layers.compose),
    ("residue", |layers| layers.residue),
];

/// How these were come by.
pub(crate) const NESTED_HOW: &str = "\
Medians of frames that are known to be zero. Exceptions and returns are the floor, two round trips whose handlers store the entries. In runs of their own the first fault is stamped as finding that the \
guest's table lacks the page and as the guest's own fault, the second as the fault of the VMM's space, the stage-2 fault and composing, taken one after the other; the residue is what they leave, second attempts among it, \
and less than nothing where the floor's trips are slower. Accounting is timed in a loop: the scheme told of one folio at three levels, a stage-1, a stage-2 and a nested batch; \
it stands as a part of the whole fault, and of what the levels take without the round trips";

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
        self.show_nested(f)?;
        self.show_metadata(f)?;
        if let Some(recording) = self.recording {
            writeln!(
                f,
                "\nevery sample, of however many pages, contains {} of time stamps: {:.2} % of the fastest fault",
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
            let order = shape_of(layers.leaf, layers.order);
            write!(f, "{:<6} {order:<11} {:<18} {:>9}", layers.what, layers.scheme, time(layers.total))?;
            LAYERS
                .iter()
                .try_for_each(|(name, of)| write!(f, " {:>width$}", time(of(layers)), width = name.len().max(9)))?;
            writeln!(f, " {:>9}", layers.stage2.map_or_else(|| "-".to_owned(), time))?;
        }
        writeln!(f, "{HOW}")
    }

    fn show_nested(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(memory) = self.vm_memory {
            writeln!(
                f,
                "\nVMs: stage-2 tables for `{}`; their end is that of one with {} MiB mapped, on fresh frames",
                self.stage2.unwrap_or_default(),
                memory >> 20
            )?;
        }
        if !self.nested_layers.is_empty() {
            self.show_nested_layers(f)?;
        }
        if self.ledger.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n`total` to `none`, median of turns and quartiles")?;
        for row in &self.ledger {
            let [low, high] = row.quartiles;
            writeln!(
                f,
                "{:<18} {:<11} {:.3}  {low:.3} to {high:.3}",
                row.what,
                shape_of(row.leaf, row.order),
                row.to_none
            )?;
        }
        Ok(())
    }

    fn show_nested_layers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{:<13} {:<11} {:<8} {:>9}", "layers", "order", "scheme", "total")?;
        NESTED_LAYERS.iter().try_for_each(|(name, _)| write!(f, " {:>width$}", name, width = name.len().max(9)))?;
        writeln!(f, " {:>12} {:>9} {:>9}", "| accounting", "of fault", "of levels")?;
        for layers in &self.nested_layers {
            write!(
                f,
                "{:<13} {:<11} {:<8} {:>9}",
                "nested_fault",
                shape_of(layers.leaf, layers.order),
                layers.scheme,
                time(layers.total)
            )?;
            NESTED_LAYERS
                .iter()
                .try_for_each(|(name, of)| write!(f, " {:>width$}", time(of(layers)), width = name.len().max(9)))?;
            writeln!(
                f,
                " {:>12} {:>7.3} % {:>7.2} %",
                time(layers.accounting),
                100.0 * layers.part_of_fault,
                100.0 * layers.part_of_levels
            )?;
        }
        writeln!(f, "{NESTED_HOW}")
    }

    fn show_metadata(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.headlines("metadata").next().is_none() {
            return Ok(());
        }
        writeln!(
            f,
            "\n{:<16} {:<11} {:<11} {:>10} {:>10}  of 64 MiB mapped whole, of 1 GiB at order 9; tables and vmas apart",
            "metadata", "order", "scheme", "a frame", "a folio"
        )?;
        let rows: Vec<_> = METADATA.into_iter().flat_map(|what| self.headlines(what)).collect();
        for pair in rows.chunks_exact(2) {
            writeln!(
                f,
                "{:<16} {:<11} {:<11} {:>10} {:>10}",
                pair[0].what,
                pair[0].shape(),
                pair[0].scheme.as_deref().unwrap_or("-"),
                value(pair[0], pair[0].quire),
                value(pair[1], pair[1].quire)
            )?;
        }
        writeln!(
            f,
            "compact, grown: where VMs are counted too, of folios that no VM has mapped, and of folios that one has"
        )
    }
}
