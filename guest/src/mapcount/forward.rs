//! Schemes that are made of others, and leave the answers to one of them.

/// What `$scheme` answers of the part of the state that `$part` makes a target.
macro_rules! answers_of {
    ($scheme:ident, $part:ident) => {
        fn said_mapped(pages: u64) -> Answer<u64> {
            $scheme::said_mapped(pages)
        }
        fn said_huge(pages: u64) -> Answer<u64> {
            $scheme::said_huge(pages)
        }
        fn mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
            $scheme::mapped(&Self::$part(t))
        }
        fn one_leaf<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
            $scheme::one_leaf(&Self::$part(t))
        }
        fn maybe_shared<M: Memory>(t: &Target<'_, M>, owner: u32) -> Answer<bool> {
            $scheme::maybe_shared(&Self::$part(t), owner)
        }
        fn may_reuse<M: Memory>(t: &Target<'_, M>, owner: u32, refs: u64) -> Answer<bool> {
            $scheme::may_reuse(&Self::$part(t), owner, refs)
        }
        fn page_count<M: Memory>(t: &Target<'_, M>, page: u64) -> Answer<u64> {
            $scheme::page_count(&Self::$part(t), page)
        }
        fn exclusive<M: Memory>(t: &Target<'_, M>, page: u64, owner: u32) -> Answer<bool> {
            $scheme::exclusive(&Self::$part(t), page, owner)
        }
        fn charge<M: Memory>(t: &Target<'_, M>, page: u64) -> Answer<Share> {
            $scheme::charge(&Self::$part(t), page)
        }
        fn mapped_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
            $scheme::mapped_pages(&Self::$part(t))
        }
        fn huge_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
            $scheme::huge_pages(&Self::$part(t))
        }
        fn partially_mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
            $scheme::partially_mapped(&Self::$part(t))
        }
        fn leaves<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
            $scheme::leaves(&Self::$part(t))
        }
        fn early_stop<M: Memory>(t: &Target<'_, M>) -> Answer<Countdown> {
            $scheme::early_stop(&Self::$part(t))
        }
        fn by_level<M: Memory>(t: &Target<'_, M>) -> Answer<ByLevel> {
            $scheme::by_level(&Self::$part(t))
        }
        fn total<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
            $scheme::total(&Self::$part(t))
        }
    };
}

pub(super) use answers_of;
