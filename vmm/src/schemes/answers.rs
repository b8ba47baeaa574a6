//! Every question in every situation.

use quire::mapcount::{Accounting, Answer};
use quire::space::Access;
use serde::Serialize;

use super::stage::{Size, Stage, play};

/// How sure an answer is; the later, the less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sureness {
    /// Right.
    Exact,
    /// Wrong to one side at most.
    Errs,
    /// Wrong to either side.
    About,
    /// Takes a walk.
    Walk,
    /// None.
    Cannot,
}

impl Sureness {
    /// Of an answer.
    #[must_use]
    pub const fn of<T>(answer: &Answer<T>) -> Self {
        match answer {
            Answer::Exact(_) => Self::Exact,
            Answer::Errs(_) => Self::Errs,
            Answer::About(_) => Self::About,
            Answer::Walk => Self::Walk,
            Answer::Cannot => Self::Cannot,
        }
    }

    /// As one character.
    #[must_use]
    pub const fn sign(self) -> &'static str {
        match self {
            Self::Exact => "=",
            Self::Errs => ">",
            Self::About => "~",
            Self::Walk => "w",
            Self::Cannot => "-",
        }
    }
}

/// A question.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// In a word or two.
    pub name: &'static str,
}

/// The questions, in the order of the answers.
pub const QUESTIONS: [Question; 13] = [
    Question { name: "mapped?" },
    Question { name: "exactly one leaf?" },
    Question { name: "maybe shared?" },
    Question { name: "may a write fault reuse it?" },
    Question { name: "kpagecount" },
    Question { name: "exclusive bit, Private, Uss" },
    Question { name: "Pss" },
    Question { name: "AnonPages, Mapped" },
    Question { name: "AnonHugePages" },
    Question { name: "partly mapped?" },
    Question { name: "expected references" },
    Question { name: "where rmap may stop" },
    Question { name: "leaves of each size" },
];

type Row = [Sureness; QUESTIONS.len()];

/// The least sure answer to each.
pub(super) fn ask<A: Accounting>() -> Vec<Sureness> {
    let mut worst = [Sureness::Exact; QUESTIONS.len()];
    for (size, scene) in SCENES {
        play(size, |stage: &mut Stage<'_, A>| {
            scene_on(stage, scene, &mut |stage| {
                for (worst, now) in worst.iter_mut().zip(row(stage)) {
                    *worst = now.max(*worst);
                }
            });
        });
    }
    worst.to_vec()
}

fn row<A: Accounting>(stage: &Stage<'_, A>) -> Row {
    let mut row = None;
    let owner = stage.first.raw();
    A::each(&stage.counts(), &mut |answers| {
        let folio = answers.folio(owner, stage.folio().refs());
        let page = answers.page(0, owner);
        row.get_or_insert([
            Sureness::of(&folio.mapped),
            Sureness::of(&folio.one_leaf),
            Sureness::of(&folio.maybe_shared),
            Sureness::of(&folio.may_reuse),
            Sureness::of(&page.page_count),
            Sureness::of(&page.exclusive),
            Sureness::of(&page.charge),
            Sureness::of(&folio.mapped_pages),
            Sureness::of(&folio.huge_pages),
            Sureness::of(&folio.partially_mapped),
            Sureness::of(&folio.leaves),
            Sureness::of(&folio.early_stop),
            Sureness::of(&folio.by_level),
        ]);
    });
    row.expect("every scheme answers")
}

#[derive(Clone, Copy)]
enum Scene {
    Forked,
    Copied,
    Shared,
    InPart,
    CutUp,
}

const SCENES: [(Size, Scene); 7] = [
    (Size::ByPages, Scene::Forked),
    (Size::Huge, Scene::Forked),
    (Size::Huge, Scene::Copied),
    (Size::ByPages, Scene::Shared),
    (Size::ByPages, Scene::InPart),
    (Size::Huge, Scene::CutUp),
    (Size::Gigantic, Scene::CutUp),
];

fn scene_on<'m, A: Accounting>(stage: &mut Stage<'m, A>, scene: Scene, look: &mut dyn FnMut(&Stage<'m, A>)) {
    match scene {
        Scene::Forked => {
            stage.anon();
            look(stage);
            let child = stage.fork();
            look(stage);
            stage.exit(child);
            look(stage);
        }
        Scene::Copied => {
            stage.anon();
            let child = stage.fork();
            stage.touch(child, 7, Access::Write);
            look(stage);
            stage.exit(child);
            look(stage);
        }
        Scene::Shared => {
            // More owners than slots, and the sums run past P.
            let spaces = stage.file(4, 0, 512);
            look(stage);
            stage.exit(spaces[1]);
            stage.exit(spaces[2]);
            look(stage);
        }
        Scene::InPart => {
            stage.anon();
            let child = stage.fork();
            stage.drop_pages(stage.first, 256, 256);
            look(stage);
            stage.drop_pages(child, 256, 256);
            look(stage);
        }
        Scene::CutUp => {
            stage.anon();
            let child = stage.fork();
            look(stage);
            stage.cut(child);
            look(stage);
            stage.join(child);
            look(stage);
        }
    }
}
