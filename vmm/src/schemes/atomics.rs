//! The locked operations of every step, counted where they are done.

use quire::mapcount::Accounting;
use quire::space::Access;
use quire::sync::tally;

use super::stage::{Size, Stage, play};

/// Something that happens to a folio of 2 MiB.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// In full.
    pub name: &'static str,
    /// As a heading.
    pub short: &'static str,
    large: bool,
    scene: Scene,
}

#[derive(Clone, Copy, Debug)]
enum Scene {
    MapFile(u64),
    MapAnon,
    Fork,
    Copy,
    Drop(u64),
    Cut,
}

const fn step(short: &'static str, name: &'static str, large: bool, scene: Scene) -> Step {
    Step { name, short, large, scene }
}

/// What is counted.
pub const STEPS: [Step; 11] = [
    step("map 1", "one page is mapped", false, Scene::MapFile(1)),
    step("map 16", "16 pages are mapped in one batch", false, Scene::MapFile(16)),
    step("map 512", "all 512 pages are mapped by 4 KiB leaves", false, Scene::MapAnon),
    step("map 2M", "all are mapped by one 2 MiB leaf", true, Scene::MapAnon),
    step("fork 512", "fork duplicates 512 leaves", false, Scene::Fork),
    step("fork 2M", "fork duplicates one 2 MiB leaf", true, Scene::Fork),
    step("copy", "the child stores to one page of 512 shared ones, and copies it", false, Scene::Copy),
    step("unmap 16", "16 pages of 512 go in one batch", false, Scene::Drop(16)),
    step("unmap 512", "all 512 go in one batch", false, Scene::Drop(512)),
    step("cut", "mprotect cuts the region in the middle of 512 mapped pages", false, Scene::Cut),
    step("split", "mprotect cuts it in the middle of a 2 MiB leaf, which is split", true, Scene::Cut),
];

/// What each step costs under `A`.
pub(super) fn count<A: Accounting>() -> Vec<u64> {
    STEPS
        .iter()
        .map(|step| {
            let size = if step.large { Size::Huge } else { Size::ByPages };
            play(size, |stage: &mut Stage<'_, A>| count_step(stage, step.scene))
        })
        .collect()
}

fn count_step<A: Accounting>(stage: &mut Stage<'_, A>, scene: Scene) -> u64 {
    match scene {
        Scene::MapFile(pages) => counted(|| _ = stage.file(1, 0, pages)),
        Scene::MapAnon => counted(|| stage.anon()),
        _ => {
            stage.anon();
            match scene {
                Scene::Fork => counted(|| _ = stage.fork()),
                Scene::Copy => {
                    let child = stage.fork();
                    // The new page is a folio of its own: its one count is no part of what happens to this one.
                    counted(|| stage.touch(child, 7, Access::Write)) - u64::from(A::NAME != "none")
                }
                Scene::Drop(pages) => counted(|| stage.drop_pages(stage.first, 0, pages)),
                _ => counted(|| stage.cut(stage.first)),
            }
        }
    }
}

/// Locked operations of the scheme while `f` runs.
fn counted(f: impl FnOnce()) -> u64 {
    tally::reset();
    f();
    tally::costs().iter().map(|cost| cost.locked).sum()
}
