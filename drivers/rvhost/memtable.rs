// SPDX-License-Identifier: GPL-2.0
//! The memory table, as one immutable snapshot that the queues share.

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    kext::usermem::in_user_range,
    vcore::{
        addr::{
            Hva,
            Seg, //
        },
        map::{
            self,
            Region, //
        },
    },
};

/// A memory table.
pub(crate) struct MemTable {
    regions: KVec<Region>,
    in_user_range: bool,
}

impl MemTable {
    /// A table of `regions`.
    pub(crate) fn new(mut regions: KVec<Region>) -> Result<Arc<Self>> {
        // Of all of them, also those that lie hidden under others.
        let in_user_range = regions.iter().all(|r| {
            // A region of 2^64 bytes saturates, and is out of range as it should be.
            let len = (r.last - r.first).saturating_add(1);
            in_user_range(Seg {
                at: Hva(r.hva),
                len,
            })
        });
        let kept = map::normalize(&mut regions);
        regions.truncate(kept);
        let table = Self {
            regions,
            in_user_range,
        };
        Ok(Arc::new(table, GFP_KERNEL)?)
    }

    /// The regions, for lookups.
    #[inline]
    pub(crate) fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Whether all regions lie where user memory may be.
    pub(crate) fn in_user_range(&self) -> bool {
        self.in_user_range
    }
}
