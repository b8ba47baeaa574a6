//! `quire schemes`: what it prints is found by running, and the copy in SCHEMES.md is the same.

use quire_vmm::schemes::{QUESTIONS, STEPS, Sureness, examine};

fn scheme<'a>(schemes: &'a quire_vmm::schemes::Schemes, name: &str) -> &'a quire_vmm::schemes::SchemeReport {
    schemes.schemes.iter().find(|scheme| scheme.name == name).unwrap_or_else(|| panic!("{name} is a scheme"))
}

#[test]
fn the_specification_has_a_true_copy() {
    let text = examine().to_string();
    let specification = include_str!("../../guest/SCHEMES.md");
    let (_, section) = specification.split_once("\n## Cost and answers\n").expect("the section");
    let (_, copy) = section.split_once("```text\n").expect("a block");
    let (copy, _) = copy.split_once("```").expect("the end of the block");
    assert_eq!(copy, text, "guest/SCHEMES.md does not show what `quire schemes` prints");
}

#[test]
fn locked_operations_are_those_of_the_specification() {
    let schemes = examine();
    let cost = |name: &str, step: &str| {
        let column = STEPS.iter().position(|known| known.short == step).expect("a step");
        scheme(&schemes, name).atomics[column]
    };
    // A batch of any length is one locked operation under the schemes of constant size that count leaves.
    for name in ["total", "per-level", "mm-owner", "rmap-ids"] {
        for step in ["map 1", "map 16", "map 512", "map 2M", "fork 512", "fork 2M", "copy", "unmap 16", "unmap 512"] {
            assert_eq!(cost(name, step), 1, "{name}, {step}");
        }
        assert_eq!((cost(name, "cut"), cost(name, "split")), (0, 1), "{name}");
    }
    assert!(STEPS.iter().all(|step| cost("none", step.short) == 0));
    // n + 2, and n + 1 for fork.
    assert_eq!(
        ["map 1", "map 16", "map 512", "fork 512", "unmap 16", "unmap 512"].map(|step| cost("per-page", step)),
        [3, 18, 514, 513, 18, 514]
    );
    assert_eq!((cost("per-page", "map 2M"), cost("per-page", "split")), (3, 516));
    // The first page that a region loses is pushed down to all that it keeps.
    assert_eq!((cost("full-partial", "copy"), cost("full-partial", "unmap 512")), (512, 1));
}

#[test]
fn our_own_scheme_is_as_small_and_as_sure_as_total() {
    let schemes = examine();
    let (ours, total) = (scheme(&schemes, "per-level"), scheme(&schemes, "total"));
    assert_eq!((ours.state_bytes, ours.bytes_per_page), (total.state_bytes, total.bytes_per_page));
    assert!(ours.atomics.iter().zip(&total.atomics).all(|(ours, total)| ours <= total));
    assert!(ours.answers.iter().zip(&total.answers).all(|(ours, total)| ours <= total));
    let sizes = QUESTIONS.iter().position(|question| question.name == "leaves of each size").expect("a question");
    assert_eq!((ours.answers[sizes], total.answers[sizes]), (Sureness::Exact, Sureness::Cannot));
}
