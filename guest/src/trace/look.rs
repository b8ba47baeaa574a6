//! What a [look](super::Op::Look) says: one folio at one moment, as lines that programs can read.
//!
//! A site [says](super::session::Site::say) each line. All begin with [`PREFIX`] and the label; an emulator's port and a log show them
//! among other lines. A look takes some 5 KB, and 20 bytes for each owner; a VM's log has room for a [megabyte](crate::abi::results::REGION_BYTES).
//!
//! | line | says |
//! |---|---|
//! | `look L folio ORDER REFS CACHED OWNER` | a folio of this order; its references; 1 when one of them is a page cache's; the asker's number |
//! | `look L truth M T E U K V O L0,L9,L18` | what a recount found, in the words of SCHEMES.md; leaves by their order |
//! | `look L cover NxPAGES...` | leaves over each page, for runs of equal ones |
//! | `look L owner PROC NUMBER PAGE+PAGES...` | an owner: its process, its number in counters, and what it maps of the folio, in order of address |
//! | `look L counters SCHEME TEXT` | a scheme's counters, as [`Answers::show`] writes them |
//! | `look L answers SCHEME QUESTION=ANSWER...` | what it answers the asker about the folio |
//! | `look L pages SCHEME PAGES QUESTION=ANSWER...` | what it answers about each of the next so many pages |
//!
//! Questions have the names of the methods of [`Accounting`]. An answer is `exact:`, `errs:` or `about:` and a value, or `walk` or `cannot`. Values are
//! `yes` and `no`, numbers, shares as `N/OF`, leaves by order as `N,N,N`, and `leaf-N`, `table-N` or `region-N` after which a walk may stop.

use core::fmt;

use super::session::Site;
use super::{Label, Replay};
use crate::addr::{Gva, Pfn};
use crate::audit::Recount;
use crate::folio::{Folio, FolioFlags};
use crate::mapcount::{Accounting, Answer, Answers, ByLevel, Countdown, Share};
use crate::memory::{Memory, Tlb};
use crate::space::{Manager, PAGES_END, SpaceId};

/// The first word of every line of a look.
pub const PREFIX: &str = "look";

/// Whether a line that was said is one of a look.
#[must_use]
pub fn is_line(line: &str) -> bool {
    line.strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with(' '))
}

/// The folio that `space` maps at `at`; where it maps nothing, the one that begins at `before`.
pub(super) fn folio_at<M: Memory + Tlb, A: Accounting>(
    manager: &Manager<M, A>,
    space: SpaceId,
    at: Gva,
    before: Option<Pfn>,
) -> Option<Folio<'_>> {
    match manager.page_table(space).lookup(manager, at.page()) {
        Some((_, leaf)) => manager.folio(leaf.pfn),
        None => manager.folio(before?).filter(|folio| Some(folio.head()) == before),
    }
}

/// Says everything about `folio`, as `asker` would ask. `recount` has just been run.
pub(super) fn show<M: Memory + Tlb, A: Accounting>(
    replay: &Replay<'_, M, A>,
    recount: &Recount,
    site: &mut impl Site<M, A>,
    label: Label,
    folio: Folio<'_>,
    asker: SpaceId,
) {
    let manager = replay.manager();
    let label = label.as_str();
    let (order, refs, cached) = (folio.order(), folio.refs(), folio.flags().has(FolioFlags::CACHE));
    site.say(format_args!("{PREFIX} {label} folio {order} {refs} {} {}", u8::from(cached), asker.raw()));
    let truth = recount.truth(manager, folio);
    site.say(format_args!(
        "{PREFIX} {label} truth {} {} {} {} {} {} {} {}",
        truth.leaves,
        truth.total,
        truth.entire,
        truth.distinct,
        truth.tuples,
        truth.regions,
        truth.owners,
        Shown(truth.levels)
    ));
    let cover = Cover(&|page| recount.cover(manager, folio, page), folio.pages());
    site.say(format_args!("{PREFIX} {label} cover{cover}"));
    for space in manager.spaces() {
        let Some(proc) = replay.proc_in(space) else { continue };
        let owned = Owned { manager, folio, space };
        if owned.is_some() {
            site.say(format_args!("{PREFIX} {label} owner {proc} {}{owned}", space.raw()));
        }
    }
    A::each(&manager.counts(folio), &mut |answers| {
        let (scheme, counters) = (answers.scheme(), Counters(answers));
        site.say(format_args!("{PREFIX} {label} counters {scheme} {counters}"));
        let a = answers.folio(asker.raw(), refs);
        site.say(format_args!(
            "{PREFIX} {label} answers {scheme} mapped={} one_leaf={} maybe_shared={} may_reuse={} mapped_pages={} \
             huge_pages={} partially_mapped={} leaves={} early_stop={} by_level={}",
            Said(a.mapped),
            Said(a.one_leaf),
            Said(a.maybe_shared),
            Said(a.may_reuse),
            Said(a.mapped_pages),
            Said(a.huge_pages),
            Said(a.partially_mapped),
            Said(a.leaves),
            Said(a.early_stop),
            Said(a.by_level),
        ));
        let (mut page, pages) = (0, folio.pages());
        while page < pages {
            let said = answers.page(page, asker.raw());
            let run = (page + 1..pages).take_while(|&next| answers.page(next, asker.raw()) == said).count() as u64 + 1;
            site.say(format_args!(
                "{PREFIX} {label} pages {scheme} {run} page_count={} exclusive={} charge={}",
                Said(said.page_count),
                Said(said.exclusive),
                Said(said.charge)
            ));
            page += run;
        }
    });
}

/// Runs of pages with the same number of leaves.
struct Cover<'a>(&'a dyn Fn(u64) -> u64, u64);

impl fmt::Display for Cover<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Self(cover, pages) = self;
        let mut page = 0;
        while page < pages {
            let leaves = cover(page);
            let run = (page..pages).take_while(|&next| cover(next) == leaves).count() as u64;
            write!(f, " {leaves}x{run}")?;
            page += run;
        }
        Ok(())
    }
}

/// What a space maps of a folio.
struct Owned<'a, M, A> {
    manager: &'a Manager<M, A>,
    folio: Folio<'a>,
    space: SpaceId,
}

impl<M: Memory + Tlb, A: Accounting> Owned<'_, M, A> {
    /// First page and number of pages, leaf by leaf.
    fn for_each(&self, visit: &mut dyn FnMut(u64, u64)) {
        let (head, end) = (self.folio.head(), self.folio.end());
        self.manager.page_table(self.space).for_each_leaf(self.manager, PAGES_END, &mut |place, leaf| {
            if head <= leaf.pfn && leaf.pfn < end {
                visit(leaf.pfn.raw() - head.raw(), place.level.entry_pages());
            }
        });
    }

    fn is_some(&self) -> bool {
        let mut found = false;
        self.for_each(&mut |_, _| found = true);
        found
    }
}

impl<M: Memory + Tlb, A: Accounting> fmt::Display for Owned<'_, M, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut result, mut run) = (Ok(()), (0, 0));
        self.for_each(&mut |first, pages| {
            if run.0 + run.1 == first && run.1 > 0 {
                run.1 += pages;
            } else {
                if run.1 > 0 {
                    result = result.and_then(|()| write!(f, " {}+{}", run.0, run.1));
                }
                run = (first, pages);
            }
        });
        result?;
        write!(f, " {}+{}", run.0, run.1)
    }
}

/// The counters of a scheme.
struct Counters<'a>(&'a dyn Answers);

impl fmt::Display for Counters<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.show(f)
    }
}

/// An answer with how sure it is.
struct Said<T>(Answer<T>);

impl<T: Copy> fmt::Display for Said<T>
where
    Shown<T>: fmt::Display,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Answer::Exact(value) => write!(f, "exact:{}", Shown(value)),
            Answer::Errs(value) => write!(f, "errs:{}", Shown(value)),
            Answer::About(value) => write!(f, "about:{}", Shown(value)),
            Answer::Walk => f.write_str("walk"),
            Answer::Cannot => f.write_str("cannot"),
        }
    }
}

/// A value as one word.
struct Shown<T>(T);

impl fmt::Display for Shown<bool> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "yes" } else { "no" })
    }
}

impl fmt::Display for Shown<u64> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Shown<Countdown> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Countdown::Leaves(leaves) => write!(f, "leaf-{leaves}"),
            Countdown::Tables(tables) => write!(f, "table-{tables}"),
            Countdown::Regions(regions) => write!(f, "region-{regions}"),
        }
    }
}

impl fmt::Display for Shown<ByLevel> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [pages, two, three] = self.0;
        write!(f, "{pages},{two},{three}")
    }
}

impl fmt::Display for Shown<Share> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.pages, self.0.of)
    }
}
