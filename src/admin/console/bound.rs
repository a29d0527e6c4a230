//! Memory that sessions of the console have together.

use tokio::sync::{Semaphore, SemaphorePermit};

use super::super::views::LimitView;

/// A bound for all sessions of a process. Users who give no orders have three quarters of it
/// together, so that an operator finds room.
#[derive(Debug)]
pub(super) struct Bound {
    kibibytes: usize,
    all: Semaphore,
    readers: Semaphore,
}

/// Given back when it is dropped.
#[derive(Debug)]
pub(super) struct Room<'a> {
    _of_all: SemaphorePermit<'a>,
    _of_readers: Option<SemaphorePermit<'a>>,
}

impl Bound {
    pub(super) const fn new(mebibytes: usize) -> Self {
        let kibibytes = mebibytes * 1024;
        Self {
            kibibytes,
            all: Semaphore::const_new(kibibytes),
            readers: Semaphore::const_new(kibibytes / 4 * 3),
        }
    }

    /// `None`: there is none left.
    pub(super) fn room_for(&self, bytes: usize, is_operator: bool) -> Option<Room<'_>> {
        let permits = permits(bytes);
        let of_readers = if is_operator {
            None
        } else {
            Some(self.readers.try_acquire_many(permits).ok()?)
        };
        Some(Room {
            _of_all: self.all.try_acquire_many(permits).ok()?,
            _of_readers: of_readers,
        })
    }

    pub(super) fn limit(&self, name: &str) -> LimitView {
        let left = self.all.available_permits();
        LimitView::new(name, "router", "bytes")
            .exactly(self.kibibytes * 1024)
            .used(self.kibibytes.saturating_sub(left) * 1024)
    }
}

/// One for each KiB, also for one that has begun.
pub(super) fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const KIB: usize = 1024;

    #[test]
    fn readers_leave_a_quarter_to_operators() {
        let bound = Bound::new(1);
        let readers = bound.room_for(700 * KIB, false).unwrap();
        assert!(bound.room_for(100 * KIB, false).is_none(), "768 KiB are theirs");
        let operator = bound.room_for(300 * KIB, true).unwrap();
        assert!(bound.room_for(30 * KIB, true).is_none(), "all is taken");
        assert!(
            bound.room_for(30 * KIB, false).is_none(),
            "also what readers may have"
        );
        assert_eq!(bound.limit("x").used, Some(1000 * 1024));
        drop((readers, operator));
        assert!(bound.room_for(768 * KIB, false).is_some());
        assert!(bound.room_for(1024 * KIB, true).is_some());
        assert_eq!(bound.limit("x").used, Some(0));
        assert!(bound.room_for(usize::MAX, true).is_none());
    }
}
