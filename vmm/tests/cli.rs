//! The program as its users meet it: output, messages and exit codes. In this process, so that every host can run these.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn quire(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quire")).args(arguments).output().unwrap()
}

/// It must fail with `code` and one line that contains `says`, and nothing on standard output.
fn fails(arguments: &[&str], code: i32, says: &str) {
    let output = quire(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
    assert!(errors.contains(says), "{arguments:?}: {errors}");
    assert!(output.stdout.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    // Usage errors come with a hint from the argument parser; ours are one line.
    if code != 2 || errors.starts_with("quire:") {
        assert_eq!(errors.lines().count(), 1, "{arguments:?}: {errors}");
        assert!(errors.starts_with("quire: "), "{errors}");
    }
}

fn scratch(name: &str, contents: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{}-{name}", std::process::id()));
    std::fs::write(&path, contents).unwrap();
    path
}

#[test]
fn a_run_prints_json_that_others_can_read() {
    let output = quire(&["run", "--backend", "model", "--json", "--seed", "3"]);
    assert!(output.status.success());
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["backend"], "model");
    assert_eq!(json["scheme"], "total");
    assert_eq!(json["ops"], json["trace_ops"]);
    assert_eq!(json["audit"]["mismatches"], 0);
    for field in ["quire", "host", "trace", "fault", "fork", "teardown", "metadata", "audit", "known"] {
        assert!(!json[field].is_null(), "{field} is missing");
    }
    assert!(json["fault"]["count"].as_u64().unwrap() > 100);
    assert!(output.stderr.is_empty());
}

#[test]
fn the_stats_of_tenants_add_up_under_every_scheme() {
    use quire::mapcount::Scheme;
    for scheme in Scheme::EACH {
        let output = quire(&["run", "--backend", "model", "--scheme", scheme.name(), "--json"]);
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let (stats, known) = (&json["stats"], &json["known"]);
        let number = |value: &serde_json::Value| value.as_u64().unwrap_or_else(|| panic!("{scheme}: {value}"));
        for field in ["mem_total", "mem_free", "page_tables"] {
            assert!(number(&stats["meminfo"][field]) > 0, "{scheme}: {field}");
        }
        assert_eq!((number(&stats["more_tenants"]), number(&stats["more_vmas"])), (0, 0));
        let tenants = stats["tenants"].as_array().unwrap();
        assert!(tenants.len() > 1, "the trace forks");
        let (mut rss, mut pss) = (0, Some(0.0));
        for tenant in tenants {
            let (rollup, vmas) = (&tenant["rollup"], tenant["vmas"].as_array().unwrap());
            assert!(!vmas.is_empty());
            for field in ["size", "rss", "anonymous", "anon_huge_pages", "file_pmd_mapped", "referenced"] {
                let sum: u64 = vmas.iter().map(|vma| number(&vma[field])).sum();
                assert_eq!(number(&rollup[field]), sum, "{scheme}: {field}");
            }
            let parts =
                ["shared_clean", "shared_dirty", "private_clean", "private_dirty"].map(|part| rollup[part].as_u64());
            if let Some(parts) = parts.into_iter().sum::<Option<u64>>() {
                assert_eq!(parts, number(&rollup["rss"]), "{scheme}");
            }
            for (field, how) in [("pss", "pss"), ("private_clean", "clean"), ("shared_dirty", "dirty")] {
                let is_told = matches!(rollup["how"][how].as_str().unwrap(), "exact" | "errs" | "about");
                assert_eq!(rollup[field].is_null(), !is_told, "{scheme}: {field}");
            }
            rss += number(&rollup["rss"]);
            pss = pss.zip(rollup["pss"].as_f64()).map(|(sum, pss)| sum + pss);
        }
        let distinct = number(&known["mapped_pages"]);
        assert!(rss > distinct, "{scheme}: something is shared");
        match scheme {
            Scheme::PerPage | Scheme::FullPartial => {
                // Each share is rounded down, by less than 2^-24 pages.
                let pss = pss.unwrap();
                assert!(pss <= distinct as f64 && distinct as f64 - pss < 0.01, "{scheme}: {pss} of {distinct}");
            }
            Scheme::None => {
                assert_eq!(pss, None);
                assert!(stats["meminfo"]["anon_pages"].is_null());
                assert_eq!(stats["meminfo"]["how"]["mapped"], "walk");
            }
            _ => {}
        }
        let said = stats["meminfo"]["anon_pages"].as_u64().zip(stats["meminfo"]["mapped"].as_u64());
        if let Some((anon, mapped)) = said {
            assert_eq!(Some(anon + mapped), known["said_mapped_pages"].as_u64(), "{scheme}");
            assert!(anon + mapped >= distinct, "{scheme}");
        }
    }
}

#[test]
fn stats_are_printed_when_they_are_asked_for() {
    let text = |arguments: &[&str]| {
        let output = quire(&[&["run", "--backend", "model"], arguments].concat());
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let (plain, rollup, smaps) = (text(&[]), text(&["--stats"]), text(&["--stats=smaps"]));
    assert!(!plain.contains("AnonPages") && rollup.contains("AnonPages"));
    assert!(!rollup.contains("mapmax") && smaps.contains("mapmax"));
    assert!(text(&["--stats", "--scheme", "none"]).contains("AnonPages -, Mapped -"));
}

#[test]
fn json_goes_to_a_file_beside_the_text() {
    let file = scratch("result.json", b"");
    let output = quire(&["run", "--backend", "model", &format!("--json={}", file.display())]);
    assert!(output.status.success());
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(json["passed"], true);
    assert!(String::from_utf8(output.stdout).unwrap().contains("what the mapcounts know"));
    std::fs::remove_file(file).unwrap();
}

#[test]
fn bad_traces_are_code_3_with_file_and_line() {
    fails(&["run", "no-such-file"], 3, "trace no-such-file: ");
    fails(&["run", "/"], 3, "trace /: ");
    fails(&["run", "/dev/zero"], 3, "longer than a trace may be");
    let line_of = |name: &str, text: &str, says: &str| {
        let file = scratch(name, text.as_bytes());
        fails(&["run", "--backend", "model", file.to_str().unwrap()], 3, says);
        std::fs::remove_file(file).unwrap();
    };
    line_of("magic", "something else\n", "line 1: ");
    line_of("cut", "quire-trace 1\nstart 0\n", "line ");
    line_of("unmapped", "quire-trace 1\nstart 0\nr 0 1000\nend 2\n", "line 3: `r 0 1000`: nothing is mapped at 0x1000");
    line_of("garbage", "quire-trace 1\nstart 0\nmap 0 zzz 1 rw- anon\nend 2\n", "line 3: ");
    line_of("dead", "quire-trace 1\nstart 0\nexit 0\nexit 0\nend 3\n", "line 4: ");
}

#[test]
fn usage_is_code_2() {
    fails(&["frobnicate"], 2, "frobnicate");
    fails(&["run", "--scheme", "best"], 2, "no such scheme; there are per-page");
    fails(&["run", "--max-order", "19"], 2, "0..=18");
    fails(&["run", "--mem", "lots"], 2, "a size is a number");
    fails(&["run", "--backend", "model", "--mem", "4K"], 2, "memory of 4096 bytes cannot be");
    fails(&["run", "--vcpus", "0"], 2, "--vcpus");
    fails(&["run", "--disturb", "1"], 2, "--disturb 1: there is no VM");
    fails(&["compare", "--disturb", "1"], 2, "--disturb 1: there is no VM");
    fails(&["bench", "boot", "--stage2", "ept"], 2, "only `nested` has");
    fails(&["bench", "metadata", "--vm-memory", "64M"], 2, "only `nested` has");
    fails(&["explain", "S6c", "--stage2", "ept"], 2, "only `explain nested` has");
    fails(&["explain", "nested", "--stage2", "none"], 2, "needs a --stage2");
}

#[test]
fn what_is_not_there_is_code_4() {
    fails(&["run", "--vcpus", "2"], 4, "--vcpus 2");
    fails(&["run", "--stage2", "ept"], 4, "--stage2");
}

#[test]
fn too_little_memory_says_how_much() {
    let output = quire(&["run", "--backend", "model", "--mem", "8M"]);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("MiB of frames, --mem gives 8"), "{errors}");
}

#[test]
fn scenarios_are_explained() {
    let text = |arguments: &[&str]| {
        let output = quire(&[&["explain", "--backend", "model"], arguments].concat());
        assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let one = text(&["s6c"]);
    for part in
        ["S6c  the child stores to page 7", "w 1 40007000", "total              M 512, T 1023; p:1 c:511 shared"]
    {
        assert!(one.contains(part), "{part:?} is not in\n{one}");
    }
    // All of a file, where no scenario has its name; all there are, in short, where none is named.
    let three = text(&["S3"]);
    assert!(three.contains("S3a  ") && three.contains("S3b  "), "{three}");
    assert_eq!(text(&[]).lines().filter(|line| line.starts_with('S')).count(), 32);

    let json: serde_json::Value = serde_json::from_str(&text(&["S7b", "--json"])).unwrap();
    assert_eq!((&json[0]["truth"]["t"], json[0]["schemes"].as_array().unwrap().len()), (&512.into(), 10));
    let schemes = json[0]["schemes"].as_array().unwrap();
    let total = schemes.iter().find(|scheme| scheme["scheme"] == "total").expect("a scheme");
    let partly = &total["answers"]["partially_mapped"];
    assert_eq!((&partly["sure"], &partly["value"]), (&"errs".into(), &false.into()));

    fails(&["explain", "S99"], 2, "no scenario is called S99; there are S1 S2 ");
}

#[test]
fn a_look_at_nothing_fails() {
    let trace = "quire-trace 1\nstart 0\nmap 0 1000 1 rw- anon\nlook 0 1000 here\nend 3\n";
    let file = scratch("look", trace.as_bytes());
    let output = quire(&["run", "--backend", "model", file.to_str().unwrap()]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("`look 0 1000 here`: no folio is mapped there"), "{errors}");
    std::fs::remove_file(file).unwrap();
}

#[test]
fn the_kernel_image_is_written() {
    let file = scratch("kernel", b"");
    assert!(quire(&["kernel", "-o", file.to_str().unwrap()]).status.success());
    assert!(std::fs::read(&file).unwrap().starts_with(b"\x7fELF"));
    assert!(quire(&["kernel", "--flat", "-o", file.to_str().unwrap()]).status.success());
    assert!(std::fs::metadata(&file).unwrap().len() > 100_000);
    std::fs::remove_file(file).unwrap();
    fails(&["kernel", "-o", "/no/such/folder/kernel"], 1, "/no/such/folder/kernel cannot be written");
}

#[test]
fn the_doctor_looks_and_help_helps() {
    let output = quire(&["doctor"]);
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("/dev/kvm"));
    let help = String::from_utf8(quire(&["--help"]).stdout).unwrap();
    for word in ["run", "explain", "kernel", "doctor", "Exit codes", "RUST_LOG"] {
        assert!(help.contains(word), "{word} is not in the help");
    }
}

#[test]
fn benchmarks_that_cannot_be_compared_are_refused() {
    let row = |quire: &str, what: &str| {
        format!(
            r#"{{"what":"{what}","order":0,"leaf":0,"frames":null,"scheme":"total","headline":true,"quire":{quire},"floor":null,"peers":{{}},
                "unit":"bytes per frame","percentiles":null,"floor_percentiles":null,"turns":[],"histogram":[]}}"#
        )
    };
    let file = |name: &str, ring: u64, rows: &[String]| {
        scratch(name, format!(r#"{{"ring":{ring},"guest_memory":"anon","rows":[{}]}}"#, rows.join(",")).as_bytes())
    };
    let sound = file("sound", 3, &[row("16.5", "metadata")]);
    let sound = sound.to_str().unwrap();
    for (name, rows, says) in [
        ("empty", vec![], "it has no rows"),
        ("zero", vec![row("0", "metadata")], "row 1, metadata of order 0: 0 is no number above zero"),
        ("below", vec![row("1", "fork"), row("-1", "metadata")], "row 2, metadata of order 0: -1 is no number"),
        ("twice", vec![row("1", "fork"), row("1", "fork")], "row 2, fork of order 0: the same as row 1"),
    ] {
        let bad = file(name, 3, &rows);
        for pair in [[sound, bad.to_str().unwrap()], [bad.to_str().unwrap(), sound]] {
            fails(&["bench", "--compare", pair[0], pair[1]], 3, &format!("{} is no benchmark", bad.display()));
            fails(&["bench", "--compare", pair[0], pair[1]], 3, says);
        }
        std::fs::remove_file(bad).unwrap();
    }
    for option in ["--turns=3", "--order=0", "--scheme=total", "--ring=3", "--samples=3", "--launches=3"] {
        fails(&["bench", "--compare", sound, sound, option], 2, "cannot be used with");
    }
    let other = file("other", 0, &[row("16.5", "metadata")]);
    let output = quire(&["bench", "--compare", sound, other.to_str().unwrap()]);
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("ring 3 and 0\n"));
    std::fs::remove_file(sound).unwrap();
    std::fs::remove_file(other).unwrap();
}

#[test]
fn files_that_cannot_be_written_are_refused_before_anything_else() {
    let says = "/no/such/folder/x cannot be written";
    // What comes next would fail by another code.
    fails(&["run", "no-such-trace", "--json=/no/such/folder/x"], 1, says);
    fails(&["compare", "no-such-trace", "--json=/no/such/folder/x"], 1, says);
    fails(&["compare", "no-such-trace", "--html", "/no/such/folder/x"], 1, says);
    fails(&["bench", "boot", "--html", "/no/such/folder/x", "--beside", "no-such-file"], 1, says);
    fails(&["bench", "--compare", "no-such-file", "no-such-file", "--json=/no/such/folder/x"], 1, says);
}

#[test]
fn the_text_is_printed_though_a_file_fails() {
    let output = quire(&["run", "--backend", "model", "--json=/dev/full"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("/dev/full cannot be written"));
    assert!(String::from_utf8(output.stdout).unwrap().contains("what the mapcounts know"));
}
