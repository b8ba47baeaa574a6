//! Addresses, frames, orders and levels as types, and all arithmetic on them.
//!
//! Names are from the viewpoint of the manager: [`Gva`] is a tenant's virtual address, [`Pfn`] a frame of
//! the machine memory that the manager owns.

use core::fmt;

/// Bytes in a base page, log2.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a base page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Entries in one page table of any format Quire knows.
pub const ENTRIES: usize = 512;
/// First address above the lower canonical half of 4-level paging (SDM vol. 3, 4.5): tenants live below it.
pub const GVA_END: u64 = 1 << 47;

/// A tenant's virtual address in the lower canonical half.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gva(u64);

impl Gva {
    /// The address `raw`, which must not exceed [`GVA_END`] (the end itself may end a range).
    ///
    /// # Panics
    /// When `raw` is above [`GVA_END`].
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        assert!(raw <= GVA_END, "address above the tenant's half");
        Self(raw)
    }

    /// The address `raw`, or `None` above [`GVA_END`].
    #[must_use]
    pub const fn try_new(raw: u64) -> Option<Self> {
        if raw <= GVA_END { Some(Self(raw)) } else { None }
    }

    /// The address as a number.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The number of the page this address lies in.
    #[must_use]
    pub const fn page(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }

    /// The address of page number `page`.
    ///
    /// # Panics
    /// When the page lies above [`GVA_END`].
    #[must_use]
    #[inline]
    pub const fn from_page(page: u64) -> Self {
        Self::new(page << PAGE_SHIFT)
    }

    /// `pages` pages further on.
    ///
    /// # Panics
    /// When the result is above [`GVA_END`].
    #[must_use]
    #[inline]
    pub const fn add_pages(self, pages: u64) -> Self {
        Self::new(self.0 + (pages << PAGE_SHIFT))
    }

    /// Pages from `start` up to here.
    #[must_use]
    pub const fn pages_from(self, start: Self) -> u64 {
        (self.0 - start.0) >> PAGE_SHIFT
    }

    /// Whether the address starts a page.
    #[must_use]
    pub const fn is_page_aligned(self) -> bool {
        self.0 & (PAGE_SIZE - 1) == 0
    }
}

impl fmt::Debug for Gva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gva({:#x})", self.0)
    }
}

impl fmt::Display for Gva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A frame number: 4 KiB of machine memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(u64);

impl Pfn {
    /// Frame number `raw`; at most 2^40 (52 bits of physical address).
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The frame number.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Physical address of the frame's first byte.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0 << PAGE_SHIFT
    }

    /// The frame that holds physical address `address`.
    #[must_use]
    pub const fn from_address(address: u64) -> Self {
        Self(address >> PAGE_SHIFT)
    }

    /// `frames` frames further on.
    #[must_use]
    pub const fn add(self, frames: u64) -> Self {
        Self(self.0 + frames)
    }

    /// The first frame of the naturally aligned block of `order` that holds this frame.
    #[must_use]
    pub const fn align_down(self, order: Order) -> Self {
        Self(self.0 & !(order.pages() - 1))
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pfn({:#x})", self.0)
    }
}

/// log2 of the number of base pages in a folio or a leaf, 0 to [`Order::MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order(u8);

impl Order {
    /// One base page.
    pub const BASE: Self = Self(0);
    /// What a leaf of level 2 maps: 2 MiB.
    pub const HUGE: Self = Self(9);
    /// 1 GiB.
    pub const GIGANTIC: Self = Self(18);
    /// What a leaf of level 3 maps: 1 GiB. The largest folio.
    pub const MAX: Self = Self(18);

    /// The order, which must be at most 18.
    ///
    /// # Panics
    /// When `order` is above 18.
    #[must_use]
    #[inline]
    pub const fn new(order: u8) -> Self {
        assert!(order <= Self::MAX.0, "order above 18");
        Self(order)
    }

    /// The order, or `None` above 18.
    #[must_use]
    pub const fn try_new(order: u8) -> Option<Self> {
        if order <= Self::MAX.0 { Some(Self(order)) } else { None }
    }

    /// The order as a number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Base pages in a block of this order.
    #[must_use]
    pub const fn pages(self) -> u64 {
        1 << self.0
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Order({})", self.0)
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Level of a page table, counted from the table of 4 KiB leaves: 1 to 5.
// Held as what a walk wants at every step, its page shift.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u8);

impl Level {
    /// The table of 4 KiB leaves.
    pub const ONE: Self = Self::new(1);
    /// The table of 2 MiB leaves.
    pub const TWO: Self = Self::new(2);
    /// The table of 1 GiB leaves.
    pub const THREE: Self = Self::new(3);

    /// Level 1 to 5.
    ///
    /// # Panics
    /// Outside that range.
    #[must_use]
    pub const fn new(level: u8) -> Self {
        assert!(level >= 1 && level <= 5, "level outside 1..=5");
        Self(9 * (level - 1))
    }

    /// The level as a number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0 / 9 + 1
    }

    /// The next level towards the leaves, or `None` at level 1.
    #[must_use]
    pub const fn below(self) -> Option<Self> {
        if self.0 == 0 { None } else { Some(Self(self.0 - 9)) }
    }

    /// log2 of the base pages that one entry at this level spans: 0, 9, 18, 27, 36.
    #[must_use]
    pub const fn page_shift(self) -> u32 {
        self.0 as u32
    }

    /// Base pages that one entry at this level spans.
    #[must_use]
    pub const fn entry_pages(self) -> u64 {
        1 << self.page_shift()
    }

    /// Base pages that a whole table at this level spans.
    #[must_use]
    pub const fn table_pages(self) -> u64 {
        1 << (self.page_shift() + 9)
    }

    /// Index of page number `page` in a table of this level.
    #[must_use]
    pub const fn index(self, page: u64) -> usize {
        (page >> self.page_shift()) as usize & (ENTRIES - 1)
    }

    /// The order of a leaf at this level.
    ///
    /// # Panics
    /// Above level 3, where no format has leaves.
    #[must_use]
    #[inline]
    pub const fn leaf_order(self) -> Order {
        Order::new(self.page_shift() as u8)
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Level({})", self.get())
    }
}

const _: () = assert!(Level::TWO.leaf_order().get() == Order::HUGE.get());
const _: () = assert!(Level::THREE.leaf_order().get() == Order::MAX.get());
const _: () = assert!(Level::new(4).index((GVA_END - 1) >> PAGE_SHIFT) == 255);
