//! The crates that one would take instead, on tables of their own in this process. They have no accounting, no locks and no regions: what they do is what
//! the engine below does. Their addresses are this process's, which nobody walks.
//!
//! `x86_64` needs its default features off: `nightly` is one of them. `aarch64-paging` builds here, but has no counterpart: it maps ranges of descriptors of
//! another architecture, and neither unmaps nor translates one page.
#![expect(unsafe_code, reason = "the peers take it on trust that their frames are frames")]

use std::cell::RefCell;
use std::hint::black_box;

use memory_addr::{PhysAddr as Pa, VirtAddr as Va};
use page_table_entry::x86_64::X64PTE;
use page_table_multiarch::{MappingFlags, PageSize as Size, PageTable64, PagingHandler, PagingMetaData};
use quire::addr::Level;
use x86_64::structures::paging::mapper::{MapperFlush, Translate};
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageTable, PageTableFlags, PhysFrame, Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

use crate::engine::Alone;
use crate::work::{Op, Probe, Shape, TIMES};

const AT: u64 = 0x10_0000_0000;
/// Where the frames are that are mapped; nobody looks there.
const TO: u64 = 0x20_0000_0000;

/// One of them, with tables of its own.
pub(crate) trait Engine {
    fn name(&self) -> &'static str;
    /// Maps `count` leaves.
    fn map(&mut self, at: u64, to: u64, count: u64);
    fn unmap(&mut self, at: u64, count: u64);
    fn translate(&self, at: u64) -> u64;
}

/// What takes a turn.
pub(crate) trait Peer {
    fn name(&self) -> &'static str;
    fn turn(&mut self, probe: &mut dyn Probe);
}

struct On<E> {
    engine: E,
    shape: Shape,
}

impl<E: Engine> Peer for On<E> {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn turn(&mut self, probe: &mut dyn Probe) {
        let Self { engine, shape } = self;
        let step = shape.leaf.entry_pages() << 12;
        probe.probe(Op::Map, &mut || engine.map(AT, TO, shape.leaves()));
        probe.probe(Op::Translate, &mut || {
            for i in 0..shape.leaves() {
                assert_eq!(black_box(engine.translate(black_box(AT + i * step))), TO + i * step);
            }
        });
        probe.probe(Op::Unmap, &mut || engine.unmap(AT, shape.leaves()));
        if shape.has(Op::Single) {
            engine.map(AT, TO, 1);
            probe.probe(Op::Single, &mut || {
                for i in 0..TIMES {
                    let page = (1 + i % 511) << 12;
                    engine.map(AT + page, TO + page, 1);
                    engine.unmap(AT + page, 1);
                }
            });
            engine.unmap(AT, 1);
        }
    }
}

/// Those that can do it.
pub(crate) fn peers(shape: Shape) -> Vec<Box<dyn Peer>> {
    if shape.leaf == Level::THREE {
        return Vec::new();
    }
    vec![
        Box::new(On { engine: Alone::new(shape), shape }),
        Box::new(On { engine: X86::new(shape), shape }),
        Box::new(On { engine: Multiarch::new(shape), shape }),
        Box::new(On { engine: Generic::new(shape), shape }),
    ]
}

// --- frames for tables ---------------------------------------------------------------------------------------

#[repr(C, align(4096))]
struct Table([u64; 512]);

thread_local! {
    /// Tables that came back.
    static FREE: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// A cleared table page, which lives for ever; its address is physical and virtual.
fn alloc() -> u64 {
    FREE.with_borrow_mut(Vec::pop)
        .unwrap_or_else(|| std::ptr::from_mut(Box::leak(Box::new(Table([0; 512])))).expose_provenance() as u64)
}

fn free(table: u64) {
    FREE.with_borrow_mut(|free| free.push(table));
}

// --- x86_64 --------------------------------------------------------------------------------------------------

struct X86 {
    table: OffsetPageTable<'static>,
    large: bool,
}

struct Boxes;

// SAFETY: `alloc` gives a table to one owner at a time.
unsafe impl FrameAllocator<Size4KiB> for Boxes {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        Some(PhysFrame::containing_address(PhysAddr::new(alloc())))
    }
}

impl X86 {
    fn new(shape: Shape) -> Self {
        let root = Box::leak(Box::new(PageTable::new()));
        // SAFETY: physical addresses of tables are those of this process, and nobody else has this root.
        let table = unsafe { OffsetPageTable::new(root, VirtAddr::zero()) };
        Self { table, large: shape.leaf == Level::TWO }
    }
}

impl Engine for X86 {
    fn name(&self) -> &'static str {
        "x86_64"
    }

    fn map(&mut self, at: u64, to: u64, count: u64) {
        let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE | PageTableFlags::USER_ACCESSIBLE;
        for i in 0..count {
            if self.large {
                let page: Page<Size2MiB> = Page::containing_address(VirtAddr::new(at + (i << 21)));
                let frame = PhysFrame::containing_address(PhysAddr::new(to + (i << 21)));
                // SAFETY: no MMU walks these tables.
                unsafe { self.table.map_to(page, frame, flags, &mut Boxes) }.map(MapperFlush::ignore).expect("absent");
            } else {
                let page: Page<Size4KiB> = Page::containing_address(VirtAddr::new(at + (i << 12)));
                let frame = PhysFrame::containing_address(PhysAddr::new(to + (i << 12)));
                // SAFETY: as above.
                unsafe { self.table.map_to(page, frame, flags, &mut Boxes) }.map(MapperFlush::ignore).expect("absent");
            }
        }
    }

    fn unmap(&mut self, at: u64, count: u64) {
        for i in 0..count {
            if self.large {
                let page: Page<Size2MiB> = Page::containing_address(VirtAddr::new(at + (i << 21)));
                self.table.unmap(page).expect("mapped").1.ignore();
            } else {
                let page: Page<Size4KiB> = Page::containing_address(VirtAddr::new(at + (i << 12)));
                self.table.unmap(page).expect("mapped").1.ignore();
            }
        }
    }

    fn translate(&self, at: u64) -> u64 {
        self.table.translate_addr(VirtAddr::new(at)).expect("mapped").as_u64()
    }
}

// --- page_table_multiarch ------------------------------------------------------------------------------------

struct LongMode;

impl PagingMetaData for LongMode {
    const LEVELS: usize = 4;
    const PA_MAX_BITS: usize = 52;
    const VA_MAX_BITS: usize = 48;
    type VirtAddr = Va;
    // Its own flushes with INVLPG, which is not for a process.
    fn flush_tlb(_vaddr: Option<Va>) {}
}

struct Handler;

impl PagingHandler for Handler {
    fn alloc_frames(num: usize, _align: usize) -> Option<Pa> {
        (num == 1).then(|| Pa::from(alloc() as usize))
    }
    fn dealloc_frames(paddr: Pa, _num: usize) {
        free(paddr.as_usize() as u64);
    }
    fn phys_to_virt(paddr: Pa) -> Va {
        Va::from(paddr.as_usize())
    }
}

struct Multiarch {
    table: PageTable64<LongMode, X64PTE, Handler>,
    large: bool,
}

impl Multiarch {
    fn new(shape: Shape) -> Self {
        Self { table: PageTable64::try_new().expect("a frame"), large: shape.leaf == Level::TWO }
    }
}

impl Engine for Multiarch {
    fn name(&self) -> &'static str {
        "page_table_multiarch"
    }

    fn map(&mut self, at: u64, to: u64, count: u64) {
        let flags = MappingFlags::READ | MappingFlags::WRITE | MappingFlags::USER;
        let size = if self.large { Size::Size2M } else { Size::Size4K };
        let mut cursor = self.table.cursor();
        let there = |at_page: Va| Pa::from((to + (at_page.as_usize() as u64 - at)) as usize);
        cursor
            .map_region(Va::from(at as usize), there, count as usize * size as usize, flags, self.large)
            .expect("absent");
    }

    fn unmap(&mut self, at: u64, count: u64) {
        let size = if self.large { Size::Size2M } else { Size::Size4K };
        self.table.cursor().unmap_region(Va::from(at as usize), count as usize * size as usize).expect("mapped");
    }

    fn translate(&self, at: u64) -> u64 {
        self.table.query(Va::from(at as usize)).expect("mapped").0.as_usize() as u64
    }
}

// --- page-table-generic --------------------------------------------------------------------------------------

use page_table_generic as generic;

#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
struct Pte(u64);

const FRAME: u64 = 0x000f_ffff_ffff_f000;

impl generic::PageTableEntry for Pte {
    type PteConfig = u64;
    fn new_page(paddr: generic::PhysAddr, config: u64, is_huge: bool) -> Self {
        Self(paddr.as_usize() as u64 | config | u64::from(is_huge) << 7)
    }
    fn new_table(paddr: generic::PhysAddr) -> Self {
        Self(paddr.as_usize() as u64 | 0x27)
    }
    fn paddr(&self, _is_dir: bool) -> generic::PhysAddr {
        generic::PhysAddr::from_usize((self.0 & FRAME) as usize)
    }
    fn config(&self, _is_dir: bool) -> u64 {
        self.0 & !FRAME
    }
    fn present(&self) -> bool {
        self.0 & 1 != 0
    }
    fn huge(&self, is_dir: bool) -> bool {
        is_dir && self.0 & 1 << 7 != 0
    }
    fn unused(&self) -> bool {
        self.0 == 0
    }
    fn clear(&mut self) {
        self.0 = 0;
    }
}

#[derive(Clone, Copy, Debug)]
struct FourLevels;

impl generic::TableMeta for FourLevels {
    type P = Pte;
    const PAGE_SIZE: usize = 4096;
    const LEVEL_BITS: &[usize] = &[9, 9, 9, 9];
    const MAX_BLOCK_LEVEL: usize = 3;
    fn flush(_vaddr: Option<generic::VirtAddr>) {}
}

#[derive(Clone, Copy, Debug)]
struct Pool;

impl generic::FrameAllocator for Pool {
    fn alloc_frame(&self) -> Option<generic::PhysAddr> {
        Some(generic::PhysAddr::from_usize(alloc() as usize))
    }
    fn dealloc_frame(&self, frame: generic::PhysAddr) {
        free(frame.as_usize() as u64);
    }
    fn phys_to_virt(&self, paddr: generic::PhysAddr) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(paddr.as_usize())
    }
}

struct Generic {
    table: generic::PageTable<FourLevels, Pool>,
    large: bool,
}

impl Generic {
    fn new(shape: Shape) -> Self {
        Self { table: generic::PageTable::new(Pool).expect("a frame"), large: shape.leaf == Level::TWO }
    }

    fn bytes(&self, count: u64) -> usize {
        (count << if self.large { 21 } else { 12 }) as usize
    }
}

impl Engine for Generic {
    fn name(&self) -> &'static str {
        "page-table-generic"
    }

    fn map(&mut self, at: u64, to: u64, count: u64) {
        let config = generic::MapConfig {
            vaddr: generic::VirtAddr::from_usize(at as usize),
            paddr: generic::PhysAddr::from_usize(to as usize),
            size: self.bytes(count),
            pte: 0x67,
            allow_huge: self.large,
            flush: false,
        };
        self.table.map(&config).expect("absent");
    }

    fn unmap(&mut self, at: u64, count: u64) {
        let size = self.bytes(count);
        self.table.unmap(generic::VirtAddr::from_usize(at as usize), size).expect("mapped");
    }

    fn translate(&self, at: u64) -> u64 {
        self.table.translate_phys(generic::VirtAddr::from_usize(at as usize)).expect("mapped").as_usize() as u64
    }
}
