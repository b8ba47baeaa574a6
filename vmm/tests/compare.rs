//! `quire compare`: what it writes can be read back, and says what must be so.

use std::path::Path;
use std::process::Command;

use quire::mapcount::Scheme;
use quire_vmm::compare::study;
use quire_vmm::workload::Workload;
use serde_json::Value;

mod needs;

fn trace(name: &str) -> String {
    format!("{}/../fixtures/traces/{name}.trace", env!("CARGO_MANIFEST_DIR"))
}

/// The JSON of a comparison, and the page that came with it.
fn compare(name: &str, arguments: &[&str]) -> (Value, String) {
    let html = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("compare-{}-{name}.html", std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_quire"))
        .args(["compare", &trace("every"), "--json", "--html", html.to_str().unwrap()])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = std::fs::read_to_string(&html).unwrap();
    std::fs::remove_file(html).unwrap();
    (serde_json::from_slice(&output.stdout).unwrap(), page)
}

fn row(json: &Value, scheme: Scheme) -> &Value {
    let rows = json["schemes"].as_array().unwrap();
    rows.iter().find(|row| row["name"] == scheme.name()).unwrap_or_else(|| panic!("{scheme} is missing"))
}

/// What must be so of the answers of any replay.
fn answers_hold(json: &Value) {
    let schemes = || Scheme::EACH.into_iter().filter(|&scheme| scheme != Scheme::All);
    assert_eq!(json["schemes"].as_array().unwrap().len(), schemes().count());
    assert_eq!(json["audit"]["mismatches"], 0);
    assert!(json["truth"]["processes"].as_u64().unwrap() > 0);
    let folios: u64 =
        json["truth"]["folios"].as_array().unwrap().iter().map(|row| row["folios"].as_u64().unwrap()).sum();
    for scheme in schemes() {
        let queries = &row(json, scheme)["queries"];
        for (name, query) in queries.as_object().unwrap().iter().filter(|(_, query)| query["exact"].is_u64()) {
            assert_eq!(query["broken"], 0, "{scheme}: {name} was said to be exact, and wrong");
            let n = |verdict: &str| query[verdict].as_u64().unwrap();
            assert_eq!(n("wrong"), n("more") + n("less"));
            let asked = n("exact") + n("right") + n("wrong") + n("walk") + n("cannot");
            assert!(asked > 0, "{scheme}: {name} was never asked");
            if name == "mapped" {
                assert_eq!(asked, folios, "{scheme}: every folio was asked about");
            }
        }
        // The one that knows no owners has other promises.
        if scheme != Scheme::PerPage {
            assert_eq!(queries["false_exclusive"], 0, "{scheme}");
            assert_eq!(queries["reuse"]["more"], 0, "{scheme}");
        }
        assert_eq!(queries["mapped"]["less"], 0, "{scheme}");
        assert_eq!(queries["mapped_pages"]["less"], 0, "{scheme}");
    }
    let per_page = &row(json, Scheme::PerPage)["queries"];
    assert_eq!(per_page["pss"]["error_max"], 0.0);
    assert_eq!(per_page["uss"]["error_max"], 0.0);
    assert_eq!(per_page["pss"]["unknown"], 0);
    assert_eq!(per_page["inflation"]["anon"], 1.0);
    let none = &row(json, Scheme::None)["queries"];
    assert_eq!(none["mapped"]["exact"], 0);
    assert_eq!(none["pss"]["error_mean"], Value::Null);
    for of in ["anon", "file", "anon_max", "file_max"] {
        let inflation = |scheme| row(json, scheme)["queries"]["inflation"][of].as_f64().unwrap_or(1.0);
        assert!(1.0 <= inflation(Scheme::PerLevel) && inflation(Scheme::PerLevel) <= inflation(Scheme::Total), "{of}");
    }
}

/// A page that needs nothing but itself.
fn page_holds(page: &str) {
    assert!(page.starts_with("<!DOCTYPE html>") && page.trim_end().ends_with("</html>"));
    for scheme in Scheme::EACH.into_iter().filter(|&scheme| scheme != Scheme::All) {
        assert!(page.contains(&format!("<code>{scheme}</code>")), "{scheme}");
    }
    for foreign in ["<script", "<link", "<img", "src=", "href=", "http", "url(", "@import"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert!(page.contains("<svg") && !page.contains("NaN") && !page.contains("inf"));
}

#[test]
fn in_this_process() {
    let (json, page) = compare("model", &["--backend", "model", "--only-answers"]);
    answers_hold(&json);
    page_holds(&page);
    assert_eq!(json["backend"], "model");
    assert_eq!(json["rounds"], 0);
    assert_eq!(row(&json, Scheme::Total)["state_bytes"], 32);
    assert_eq!(row(&json, Scheme::Total)["cost"], Value::Null);
    assert_eq!(row(&json, Scheme::Total)["atomics"], 1.0);
    assert_eq!(row(&json, Scheme::None)["atomics"], 0.0);
    assert!(row(&json, Scheme::PerPage)["atomics"].as_f64().unwrap() > 2.0);
}

#[test]
fn every_scheme_is_timed_alone() {
    let (json, page) = compare("rounds", &["--backend", "model", "--rounds", "2"]);
    answers_hold(&json);
    page_holds(&page);
    for row in json["schemes"].as_array().unwrap() {
        assert!(row["ns_per_op"].as_f64().unwrap() > 0.0);
        for figure in ["op", "fault", "fork", "teardown", "unmap"] {
            let figure = &row["cost"][figure];
            let n = |name: &str| figure[name].as_f64().unwrap();
            assert!(0.0 < n("ns_min") && n("ns_min") <= n("ns") && n("ns") <= n("ns_max"));
            assert!(n("ratio_min") <= n("ratio") && n("ratio") <= n("ratio_max"));
        }
        assert!(row["cost"]["metadata"]["bytes_per_folio"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(row(&json, Scheme::None)["cost"]["fault"]["ratio"], 1.0);
}

#[test]
fn a_vm_answers_as_this_process_does() {
    if !needs::kvm() {
        return;
    }
    let answers = |backend| {
        let (json, _) = compare(backend, &["--backend", backend, "--ring", "3", "--only-answers"]);
        answers_hold(&json);
        (json["truth"].clone(), json["schemes"].clone())
    };
    assert_eq!(answers("kvm"), answers("model"));
}

#[test]
fn text_fits_a_terminal() {
    let output = Command::new(env!("CARGO_BIN_EXE_quire"))
        .args(["compare", &trace("every"), "--backend", "model", "--rounds", "1"])
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    for head in ["answers", "how far wrong", "cost", "ratio to `none`"] {
        assert!(text.contains(head), "{head}");
    }
}

#[test]
fn errors_are_those_of_a_run() {
    for (arguments, code) in [
        (vec!["no-such-file"], 3),
        (vec!["--rounds", "0"], 2),
        (vec!["--rounds", "2", "--only-answers"], 2),
        (vec!["--backend", "model", "--mem", "4K"], 2),
        (vec!["--vcpus", "2"], 4),
        (vec!["--backend", "model", "--mem", "8M"], 1),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_quire")).arg("compare").args(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}

/// The study is what a fresh run finds; `cargo run --release -p quire-vmm --example study` writes it anew.
#[test]
fn the_study_is_what_a_run_finds() {
    let written = include_str!("../../fixtures/STUDY.md");
    assert!(written.contains(study::HEADS));
    let workload = Workload::read(Path::new(&trace("every")), 1).unwrap();
    for variant in study::VARIANTS {
        for line in study::lines(&workload, variant).unwrap() {
            assert!(written.lines().any(|old| old == line), "not in fixtures/STUDY.md:\n{line}");
        }
    }
}
