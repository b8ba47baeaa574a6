//! The worked scenarios as data files: played in this process and in a VM, every counter and answer must be what the tables of
//! `guest/SCHEMES.md` say. The tables are read from that file, and every row of them must have a scenario.

use std::collections::BTreeSet;

use crate::needs;
use quire_vmm::explain::{Explained, SCRIPTS, Script, Sure, Told, Word};
use quire_vmm::replay::{Backend, Ring};

const SCHEMES: &str = include_str!("../../../guest/SCHEMES.md");
const TRUTH: &str = "The ground truth";
const COUNTERS: &str = "The counters";
const ANSWERS: &str = "The answers";
const THREE: &str = "Three owners";
/// Of schemes that came later, in whatever columns.
const OTHERS: &str = "Full and partial, ids, levels";

/// The rows of the first table under `heading`, its own first; none where there is no such heading.
fn table(heading: &str) -> Vec<Vec<&'static str>> {
    let Some((_, section)) = SCHEMES.split_once(&format!("\n### {heading}\n")) else { return Vec::new() };
    let section = section.split("\n#").next().unwrap_or(section);
    let rows = section.lines().filter(|line| line.starts_with("| "));
    rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// The cells of `scenario` in that table, without the first.
fn find(heading: &str, scenario: &str) -> Option<Vec<&'static str>> {
    table(heading).into_iter().find(|row| row[0].split(' ').next() == Some(scenario)).map(|row| row[1..].to_vec())
}

fn row(heading: &str, scenario: &str) -> Vec<&'static str> {
    find(heading, scenario).unwrap_or_else(|| panic!("no row {scenario} under {heading}"))
}

/// Name and title of every row.
fn titles(heading: &str) -> Vec<(&'static str, &'static str)> {
    table(heading)[1..].iter().map(|row| row[0].split_once(' ').unwrap_or((row[0], ""))).collect()
}

fn parts(cell: &'static str) -> Vec<&'static str> {
    cell.split('/').map(str::trim).collect()
}

fn yes(answer: bool) -> &'static str {
    if answer { "yes" } else { "no" }
}

/// To four places, as in the tables.
fn number(value: f64) -> String {
    ((value * 1e4).round() / 1e4).to_string()
}

/// The values in counters or cells: numbers, runs, slots, marks, states, and whether it is shared. Not what they are called.
fn values(text: &str) -> Vec<String> {
    let text = text.replace("one owner", "no").replace("shared", "yes");
    let is_value = |word: &&str| {
        let number = word.rsplit([':', 'x', '+']).next().unwrap_or(word);
        word.starts_with("0x")
            || number.parse::<u64>().is_ok()
            || "yes no zero one two many refused".split(' ').any(|w| w == *word)
    };
    text.split([' ', ',', ';', '/']).filter(is_value).map(str::to_owned).collect()
}

fn told<'a>(scenario: &'a Explained, scheme: &str) -> &'a Told {
    scenario.schemes.iter().find(|told| told.scheme == scheme).unwrap_or_else(|| panic!("nothing of {scheme}"))
}

/// What a scheme answers, as a cell shows it.
fn said(told: &Told, question: &str) -> String {
    if told.refused {
        return "refused".to_owned();
    }
    told.answers[question].value.as_ref().map_or_else(|| "?".to_owned(), Word::to_string)
}

fn exclusive(told: &Told) -> &'static str {
    match told.answers.get("maybe_shared").and_then(|said| said.value.as_ref()) {
        Some(Word::Is(shared)) => yes(!shared),
        _ if told.refused => "refused",
        _ => "?",
    }
}

fn same<A: PartialEq<B> + std::fmt::Debug, B: std::fmt::Debug>(
    found: A,
    expected: B,
    scenario: &Explained,
    what: &str,
) {
    assert!(found == expected, "{}, {what}: {found:?}, but the tables say {expected:?}\n{scenario}", scenario.scenario);
}

fn compare(scenario: &Explained) {
    let s = scenario;
    let name = s.scenario;
    assert_eq!(s.schemes.len(), 10, "{name}");
    // What it says without a walk, it cannot say.
    let none = told(s, "none");
    let walks = none.answers.values().filter(|said| said.sure == Sure::Walk).count();
    assert_eq!((walks, none.counters.as_str()), (none.answers.len() - 2, "nothing"), "{name}: {:?}", none.answers);
    match find(THREE, name) {
        Some(row) => compare_three(s, &row),
        None => {
            compare_row(s);
            compare_others(s);
        }
    }
}

fn compare_row(s: &Explained) {
    let name = s.scenario;
    let t = s.truth;
    let expected = row(TRUTH, name);
    same([t.m, t.t, t.e, t.u, t.k, t.v, t.o].map(|n| n.to_string()).as_slice(), &expected[..7], s, "M T E U K V O");
    same(s.cover(), expected[7], s, "leaves over each page");

    let cells = row(COUNTERS, name);
    same((s.references - u64::from(s.cached)).to_string(), cells[0], s, "references");
    // Leaves between a page and the folio: the tables have what makes T of M and entire.
    let between = (t.t - t.m - t.e * ((1 << s.order) - 1)) / 511;
    let between = if between > 0 { format!("between {between}") } else { String::new() };
    for (scheme, expected) in [
        ("per-page", [cells[1], cells[2]].join(" ")),
        ("tuples", cells[3].to_owned()),
        ("total", [cells[4], cells[5]].join(" ")),
        ("mm-owner", [cells[6], &between, cells[5]].join(" ")),
        ("zero-one-two-many", cells[7].to_owned()),
        ("vmas", cells[8].to_owned()),
    ] {
        let told = told(s, scheme);
        if expected.contains("refused") {
            same(told.refused, true, s, scheme);
        } else {
            same(values(&told.counters), values(&expected), s, scheme);
        }
    }

    let cells = row(ANSWERS, name);
    let [total, owner, per_page, tuples, vmas, state] =
        ["total", "mm-owner", "per-page", "tuples", "vmas", "zero-one-two-many"].map(|scheme| told(s, scheme));
    // `mm-owner` answers as `total`, and `vmas` of pages as `tuples`.
    let as_total: Vec<_> = [total, owner].into_iter().filter(|told| !told.refused).collect();
    for told in &as_total {
        let counts: Vec<_> = told.pages.iter().map(|(_, said)| said["page_count"].value.clone()).collect();
        same(counts.as_slice(), [cells[0].parse().ok().map(Word::Count)].as_slice(), s, "average");
        same(
            [said(per_page, "mapped_pages"), said(tuples, "mapped_pages"), said(told, "mapped_pages")].as_slice(),
            parts(cells[1]),
            s,
            "mapped",
        );
        same([said(per_page, "huge_pages"), said(told, "huge_pages")].as_slice(), parts(cells[2]), s, "huge");
        let partly = [
            s.truly("partially_mapped").unwrap().to_string(),
            said(per_page, "partially_mapped"),
            said(told, "partially_mapped"),
        ];
        same(partly.as_slice(), parts(cells[5]), s, "partly mapped");
        same(
            [yes(t.o == 1), exclusive(per_page), exclusive(tuples), exclusive(told)].as_slice(),
            parts(cells[6]),
            s,
            "exclusive",
        );
        for (owner, cell) in ["p", "c"].into_iter().zip([cells[3], cells[4]]) {
            let exact = s.owners.iter().find(|found| found.name == owner).map(|found| number(found.pss));
            let pss = exact.map_or_else(String::new, |exact| format!("{exact} / {}", number(told.pss[owner])));
            same(pss, cell, s, "Pss");
        }
    }
    same(said(vmas, "mapped_pages"), said(tuples, "mapped_pages"), s, "mapped, vmas");
    same([exclusive(state), exclusive(vmas)].as_slice(), parts(cells[7]), s, "exclusive");
}

fn compare_three(s: &Explained, cells: &[&'static str]) {
    let t = s.truth;
    same(format!("{}, {}", t.m, t.t), cells[0], s, "M, T");
    let (total, owner) = (told(s, "total"), told(s, "mm-owner"));
    same(values(&total.counters), values(&[cells[0], cells[1]].join(" ")), s, "total");
    let slots = format!("{}, entire 0; {}", t.m, cells[1]);
    same(values(&owner.counters), values(&slots), s, "mm-owner");
    same([yes(t.o <= 1), exclusive(total)].as_slice(), parts(cells[2]), s, "exclusive");
    same(exclusive(owner), exclusive(total), s, "exclusive, mm-owner");
    for (scheme, cell) in [("zero-one-two-many", cells[3]), ("vmas", cells[4])] {
        let told = told(s, scheme);
        same(format!("{}; {}", told.counters, exclusive(told)), cell, s, scheme);
    }
}

/// The table of the other three.
fn compare_others(s: &Explained) {
    let cells = row(OTHERS, s.scenario);
    let three @ [full, ids, levels] = ["full-partial", "rmap-ids", "per-level"].map(|scheme| told(s, scheme));
    same(values(&full.counters), values(&[cells[0], cells[1]].join(" ")), s, "full-partial");
    if ids.refused {
        same("refused", cells[2], s, "rmap-ids");
    } else {
        let shown = values(ids.counters.split(';').next().unwrap_or_default());
        same(&shown[..2], values(cells[2]).as_slice(), s, "rmap-ids");
    }
    same(said(levels, "by_level"), cells[3].replace(", ", ","), s, "leaves of each size");
    same(three.map(|told| said(told, "mapped_pages")).as_slice(), parts(cells[4]), s, "mapped");
    for (owner, cell) in ["p", "c"].into_iter().zip([cells[5], cells[6]]) {
        let pss = levels.pss.get(owner).map_or_else(String::new, |&pss| number(pss));
        same(pss, cell, s, "Pss of per-level");
    }
    same(three.map(|told| said(told, "partially_mapped")).as_slice(), parts(cells[7]), s, "partly mapped");
    same(three.map(exclusive).as_slice(), parts(cells[8]), s, "exclusive");
}

fn play(script: &Script, backend: Backend) -> Vec<Explained> {
    script.play(backend, Ring::Auto).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_row_has_a_scenario_and_every_scenario_a_row() {
    let rows: Vec<_> = [TRUTH, THREE].into_iter().flat_map(titles).collect();
    let played: Vec<_> =
        SCRIPTS.iter().flat_map(|script| play(script, Backend::Model)).map(|s| (s.scenario, s.title)).collect();
    let set = |pairs: &[(&'static str, &'static str)]| pairs.iter().copied().collect::<BTreeSet<_>>();
    assert_eq!(set(&rows), set(&played));
    assert_eq!(rows.len(), played.len(), "each once");
    let names = |heading| titles(heading).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(TRUTH), names(COUNTERS));
    assert_eq!(names(TRUTH), names(ANSWERS));
    assert!(names(TRUTH).len() + names(THREE).len() >= 32);

    let files: BTreeSet<_> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(files, SCRIPTS.iter().map(|script| format!("{}.trace", script.name)).collect());
}

#[test]
fn in_this_process_they_are_what_the_tables_say() {
    for script in SCRIPTS {
        play(&script, Backend::Model).iter().for_each(compare);
    }
}

#[test]
fn in_a_vm_they_are_what_the_tables_say() {
    if !needs::kvm() {
        return;
    }
    for script in SCRIPTS {
        for scenario in play(&script, Backend::Kvm) {
            assert!(scenario.ring.is_some() || scenario.lacks.is_some(), "{}", scenario.scenario);
            // Leaves of 1 GiB are what a KVM may lack.
            assert!(scenario.lacks.is_none() || script.name == "S12");
            compare(&scenario);
        }
    }
}

#[test]
fn a_scheme_alone_counts_as_among_others() {
    for script in SCRIPTS.into_iter().filter(|script| !script.alone) {
        let alone = play(&Script { alone: true, ..script }, Backend::Model);
        for (together, alone) in play(&script, Backend::Model).iter().zip(&alone) {
            assert_eq!(together.truth, alone.truth);
            for scheme in &together.schemes {
                let told = alone.schemes.iter().find(|told| told.scheme == scheme.scheme);
                assert_eq!(told, Some(scheme), "{}", together.scenario);
            }
            assert_eq!(together.schemes.len(), alone.schemes.len());
        }
    }
}

#[test]
fn the_text_fits_120_columns() {
    for scenario in SCRIPTS.iter().flat_map(|script| play(script, Backend::Model)) {
        for line in [scenario.in_short(), scenario.to_string()].iter().flat_map(|text| text.lines()) {
            assert!(line.len() <= 120, "{}: {line}", scenario.scenario);
        }
    }
}
