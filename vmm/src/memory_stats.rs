//! What the tenants had mapped, as smaps, numa_maps and meminfo say it: out of the words of [`quire::abi::stats`], for reports.

use std::fmt;

use quire::abi::stats::{PageRun, Stats, VmaStats};
use quire::mapcount::{Answer, Share};
use quire::space::VmaFlags;
use quire::stats::{Meminfo, Smaps};
use serde::{Serialize, Serializer};

/// An answer of the scheme: a number or, where it cannot tell, `null` in JSON and `-` in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said(pub Answer<u64>);

impl Said {
    /// How sure: `exact`, `errs` (to more), `about`, `walk` (only a walk could tell) or `cannot`.
    #[must_use]
    pub const fn how(self) -> &'static str {
        match self.0 {
            Answer::Exact(_) => "exact",
            Answer::Errs(_) => "errs",
            Answer::About(_) => "about",
            Answer::Walk => "walk",
            Answer::Cannot => "cannot",
        }
    }

    /// In text, scaled: `<=` in front of what errs to more, `~` of what may err to either side.
    fn text(self, scale: impl Fn(u64) -> u64) -> String {
        match self.0 {
            Answer::Exact(value) => scale(value).to_string(),
            Answer::Errs(value) => format!("<={}", scale(value)),
            Answer::About(value) => format!("~{}", scale(value)),
            Answer::Walk | Answer::Cannot => "-".to_owned(),
        }
    }
}

impl Serialize for Said {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.value().serialize(serializer)
    }
}

/// How sure the fields of [`MeminfoRow`] are that depend on the scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MeminfoHow {
    /// Of `anon_pages` and `mapped`.
    pub mapped: &'static str,
    /// Of `anon_huge_pages` and `file_pmd_mapped`.
    pub huge: &'static str,
}

/// meminfo, in pages; see [`Meminfo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "each is the field of Meminfo of its name")]
pub struct MeminfoRow {
    pub mem_total: u64,
    pub mem_free: u64,
    pub anon_pages: Said,
    pub mapped: Said,
    pub anon_huge_pages: Said,
    pub file_pmd_mapped: Said,
    pub page_tables: u64,
    pub how: MeminfoHow,
}

impl From<Meminfo> for MeminfoRow {
    fn from(m: Meminfo) -> Self {
        Self {
            mem_total: m.total,
            mem_free: m.free,
            anon_pages: Said(m.anon_pages),
            mapped: Said(m.mapped),
            anon_huge_pages: Said(m.anon_huge),
            file_pmd_mapped: Said(m.file_pmd),
            page_tables: m.page_tables,
            how: MeminfoHow { mapped: Said(m.anon_pages).how(), huge: Said(m.anon_huge).how() },
        }
    }
}

/// How sure the fields of [`SmapsRow`] are that depend on the scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SmapsHow {
    /// Of `pss`.
    pub pss: &'static str,
    /// Of `shared_clean`, `private_clean`, and so of the clean part of Uss.
    pub clean: &'static str,
    /// Of `shared_dirty`, `private_dirty`.
    pub dirty: &'static str,
}

/// smaps, in pages; see [`Smaps`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "each is the field of Smaps of its name")]
pub struct SmapsRow {
    pub size: u64,
    pub rss: u64,
    /// With its fraction.
    pub pss: Option<f64>,
    pub uss: Said,
    pub shared_clean: Said,
    pub shared_dirty: Said,
    pub private_clean: Said,
    pub private_dirty: Said,
    pub referenced: u64,
    pub anonymous: u64,
    pub anon_huge_pages: u64,
    pub shmem_pmd_mapped: u64,
    pub file_pmd_mapped: u64,
    pub how: SmapsHow,
    #[serde(skip)]
    raw_pss: Said,
}

impl From<Smaps> for SmapsRow {
    fn from(s: Smaps) -> Self {
        Self {
            size: s.size,
            rss: s.rss,
            pss: s.pss.value().map(|pss| pss as f64 / f64::from(1 << Share::SHIFT)),
            uss: Said(s.uss()),
            shared_clean: Said(s.shared_clean),
            shared_dirty: Said(s.shared_dirty),
            private_clean: Said(s.private_clean),
            private_dirty: Said(s.private_dirty),
            referenced: s.referenced,
            anonymous: s.anonymous,
            anon_huge_pages: s.anon_huge,
            shmem_pmd_mapped: s.shmem_pmd,
            file_pmd_mapped: s.file_pmd,
            how: SmapsHow {
                pss: Said(s.pss).how(),
                clean: Said(s.private_clean).how(),
                dirty: Said(s.private_dirty).how(),
            },
            raw_pss: Said(s.pss),
        }
    }
}

/// A vma.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VmaRow {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// As in `/proc/PID/maps`: `rw-p`.
    pub perms: String,
    /// `anon`, `heap`, `stack`, `device` or `object`.
    pub kind: &'static str,
    /// Number of the object it maps, and the page of it that comes first.
    pub object: Option<(u64, u64)>,
    /// numa_maps' mapmax: the most leaves over one of its pages.
    pub mapmax: Said,
    /// smaps.
    #[serde(flatten)]
    pub smaps: SmapsRow,
}

impl From<VmaStats> for VmaRow {
    fn from(v: VmaStats) -> Self {
        let has = |flag| v.flags.has(flag);
        let letter = |flag, letter| if has(flag) { letter } else { '-' };
        Self {
            start: v.start << 12,
            end: v.end << 12,
            perms: [
                letter(VmaFlags::READ, 'r'),
                letter(VmaFlags::WRITE, 'w'),
                letter(VmaFlags::EXEC, 'x'),
                if has(VmaFlags::SHARED) { 's' } else { 'p' },
            ]
            .into_iter()
            .collect(),
            kind: match () {
                () if has(VmaFlags::PFN) || has(VmaFlags::MIXED) => "device",
                () if v.object != 0 => "object",
                () if has(VmaFlags::STACK) => "stack",
                () if has(VmaFlags::HEAP) => "heap",
                () => "anon",
            },
            object: (v.object != 0).then_some((v.object, v.offset)),
            mapmax: Said(v.mapmax),
            smaps: v.smaps.into(),
        }
    }
}

/// Consecutive pages of which pagemap and kpagecount say the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PagesRow {
    /// First address.
    pub at: u64,
    /// How many pages.
    pub pages: u64,
    /// The first one's frame; the others follow.
    pub pfn: u64,
    /// Whether they are a file's or shared memory.
    pub file: bool,
    /// PM_MMAP_EXCLUSIVE.
    pub exclusive: Option<bool>,
    /// kpagecount.
    pub kpagecount: Said,
    /// How sure both are.
    pub how: &'static str,
}

impl From<PageRun> for PagesRow {
    fn from(run: PageRun) -> Self {
        Self {
            at: run.page << 12,
            pages: run.pages,
            pfn: run.pfn,
            file: run.is_file,
            exclusive: run.exclusive.value(),
            kpagecount: Said(run.count),
            how: Said(run.count).how(),
        }
    }
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TenantRow {
    /// Number of its space.
    pub space: u64,
    /// smaps_rollup.
    pub rollup: SmapsRow,
    /// smaps of its vmas, by address.
    pub vmas: Vec<VmaRow>,
    /// pagemap and kpagecount, by address.
    pub pagemap: Vec<PagesRow>,
}

/// All of it, at the checkpoint with the most leaves.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemoryStats {
    /// meminfo.
    pub meminfo: MeminfoRow,
    /// The tenants, by space.
    pub tenants: Vec<TenantRow>,
    /// Tenants that found no room in the results.
    pub more_tenants: u64,
    /// Vmas likewise; their tenants' rollups have them.
    pub more_vmas: u64,
    /// Rows of pagemap likewise.
    pub more_pagemap: u64,
}

impl MemoryStats {
    /// Out of the words that the manager left; `None` when it got to no checkpoint.
    #[must_use]
    pub fn new(words: &[u64]) -> Option<Self> {
        let stats = Stats::new(words)?;
        let mut vmas: Vec<_> = stats.vmas().collect();
        let tenants = stats.tenants().map(|(space, rollup)| {
            let (own, rest) = vmas.iter().partition(|vma| vma.space == space);
            vmas = rest;
            let own: Vec<VmaStats> = own;
            TenantRow {
                space,
                rollup: rollup.into(),
                vmas: own.into_iter().map(VmaRow::from).collect(),
                pagemap: stats.runs().filter(|run| run.space == space).map(PagesRow::from).collect(),
            }
        });
        let tenants = tenants.collect();
        let (more_tenants, more_vmas, more_pagemap) = stats.left_out();
        Some(Self { meminfo: stats.meminfo().into(), tenants, more_tenants, more_vmas, more_pagemap })
    }

    /// As text, of each vma too if `vmas`, and of each page if `pages`.
    #[must_use]
    pub fn text(&self, vmas: bool, pages: bool) -> Text<'_> {
        Text { stats: self, vmas, pages }
    }
}

/// [`MemoryStats`] as text, in kB as Linux has them.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    stats: &'a MemoryStats,
    vmas: bool,
    pages: bool,
}

const fn kb(pages: u64) -> u64 {
    pages * 4
}

fn smaps_line(f: &mut fmt::Formatter<'_>, name: &str, s: &SmapsRow) -> fmt::Result {
    write!(f, "  {name:<34} {:>9} {:>9}", kb(s.size), kb(s.rss))?;
    write!(f, " {:>10}", s.raw_pss.text(|pss| pss >> (Share::SHIFT - 2)))?;
    for said in [s.shared_clean, s.shared_dirty, s.private_clean, s.private_dirty] {
        write!(f, " {:>9}", said.text(kb))?;
    }
    for pages in [s.anonymous, s.anon_huge_pages, s.shmem_pmd_mapped + s.file_pmd_mapped] {
        write!(f, " {:>9}", kb(pages))?;
    }
    writeln!(f)
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stats, vmas, pages } = self;
        let m = &stats.meminfo;
        writeln!(
            f,
            "\n  memory at the checkpoint with the most leaves, in kB (~ about, <= at most, - the scheme cannot tell)"
        )?;
        writeln!(
            f,
            "  MemTotal {}, MemFree {}, AnonPages {}, Mapped {}, AnonHugePages {}, FilePmdMapped {}, PageTables {}",
            kb(m.mem_total),
            kb(m.mem_free),
            m.anon_pages.text(kb),
            m.mapped.text(kb),
            m.anon_huge_pages.text(kb),
            m.file_pmd_mapped.text(kb),
            kb(m.page_tables)
        )?;
        let [a, b, c, d] = ["Shared_C", "Shared_D", "Private_C", "Private_D"];
        writeln!(
            f,
            "  {:<34} {:>9} {:>9} {:>10} {a:>9} {b:>9} {c:>9} {d:>9} {:>9} {:>9} {:>9}",
            "smaps", "Size", "Rss", "Pss", "Anonymous", "AnonHuge", "PmdMapped"
        )?;
        for tenant in &stats.tenants {
            smaps_line(f, &format!("space {} ({} vmas)", tenant.space, tenant.vmas.len()), &tenant.rollup)?;
            for vma in tenant.vmas.iter().filter(|_| *vmas) {
                let what = vma.object.map_or_else(|| vma.kind.to_owned(), |(object, _)| format!("object {object}"));
                smaps_line(
                    f,
                    &format!("  {:012x} {} {what}, mapmax {}", vma.start, vma.perms, vma.mapmax.text(|n| n)),
                    &vma.smaps,
                )?;
            }
        }
        if *pages {
            writeln!(
                f,
                "\n  {:<7} {:<16} {:>7} {:>10} {:>11} {:>10}",
                "space", "pagemap", "pages", "frame", "kpagecount", "exclusive"
            )?;
            for (tenant, run) in
                stats.tenants.iter().flat_map(|tenant| tenant.pagemap.iter().map(move |run| (tenant, run)))
            {
                let sure = |text: String| if run.how == "about" { format!("~{text}") } else { text };
                let exclusive =
                    run.exclusive.map_or_else(|| "-".to_owned(), |yes| sure(if yes { "yes" } else { "no" }.to_owned()));
                let count = run.kpagecount.text(|n| n);
                writeln!(
                    f,
                    "  {:<7} {:016x} {:>7} {:>10x} {count:>11} {exclusive:>10}",
                    tenant.space, run.at, run.pages, run.pfn
                )?;
            }
            if stats.more_pagemap > 0 {
                writeln!(f, "  {} more runs of pages found no room", stats.more_pagemap)?;
            }
        }
        if stats.more_tenants > 0 || stats.more_vmas > 0 {
            writeln!(f, "  {} more tenants and {} more vmas found no room", stats.more_tenants, stats.more_vmas)?;
        }
        Ok(())
    }
}
