//! Memory for a process that ends in milliseconds.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::UnsafeCell,
    ptr,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Bytes of the arena. Pages that nobody touches cost nothing.
const SIZE: usize = 1024 * 1024;

/// The largest piece that comes from the arena.
const LARGEST: usize = 128 * 1024;

/// An allocator that hands out an arena from its beginning to its end and takes nothing back; what
/// is large, and all once the arena is used up, is the system's business.
///
/// The system's allocator (musl's above all) spends more system calls and page faults on giving
/// back and getting again than such a process has to do otherwise.
pub struct ShortLived {
    arena: UnsafeCell<[u8; SIZE]>,
    /// Bytes handed out, from the arena's beginning.
    used: AtomicUsize,
}

// SAFETY: the arena is only reached through what `alloc` returns, and `used` grows by one atomic
// step for each piece, so that no two pieces overlap.
unsafe impl Sync for ShortLived {}

impl ShortLived {
    /// To be put into a `#[global_allocator]` static.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it is a static or nothing")]
    #[expect(clippy::large_stack_arrays, reason = "evaluated at compile time")]
    pub const fn new() -> Self {
        Self { arena: UnsafeCell::new([0; SIZE]), used: AtomicUsize::new(0) }
    }

    fn start(&self) -> *mut u8 {
        self.arena.get().cast()
    }

    /// A piece of the arena that was never handed out before, so it is all zeroes.
    fn take(&self, layout: Layout) -> Option<*mut u8> {
        if layout.size() > LARGEST {
            return None;
        }
        let base = self.start().addr();
        let at = |used: usize| (base + used).next_multiple_of(layout.align()) - base;
        let take = |used: usize| at(used).checked_add(layout.size()).filter(|end| *end <= SIZE);
        let used = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(self.start().wrapping_add(at(used)))
    }

    /// Lets the last piece grow where it is.
    fn extend(&self, piece: *mut u8, old: usize, new: usize) -> bool {
        let begin = piece.addr() - self.start().addr();
        let end = begin + new;
        new <= LARGEST
            && end <= SIZE
            && self
                .used
                .compare_exchange(begin + old, end, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    fn holds(&self, piece: *mut u8) -> bool {
        (self.start().addr()..self.start().addr() + SIZE).contains(&piece.addr())
    }
}

// SAFETY: a piece is either the system allocator's, with its guarantees, and goes back to it; or it
// lies in the arena, aligned, of at least the size asked for, and is handed out once.
unsafe impl GlobalAlloc for ShortLived {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            Some(piece) => piece,
            // SAFETY: the caller's promise for this function is the same.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            Some(piece) => piece,
            // SAFETY: the caller's promise for this function is the same.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        if !self.holds(piece) {
            // SAFETY: it is not of the arena, so it came from there, with this layout.
            unsafe { System.dealloc(piece, layout) };
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if !self.holds(piece) {
            // SAFETY: it is not of the arena, so it came from there, with this layout.
            return unsafe { System.realloc(piece, layout, new_size) };
        }
        if new_size <= layout.size() || self.extend(piece, layout.size(), new_size) {
            return piece;
        }
        // SAFETY: the caller promises that the new size is not zero and fits this alignment.
        let moved =
            unsafe { self.alloc(Layout::from_size_align_unchecked(new_size, layout.align())) };
        if !moved.is_null() {
            // SAFETY: both are of at least the old size, and no two pieces overlap.
            unsafe { ptr::copy_nonoverlapping(piece, moved, layout.size()) };
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static ALLOCATOR: ShortLived = ShortLived::new();

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    /// Many threads fill the arena and go on beyond it; no piece is part of another one.
    #[test]
    fn pieces_never_overlap() {
        let work = |mark: u8| {
            for round in 0..3000usize {
                let (old, new) = (layout(round % 97 + 1, 1 << (round % 7)), round % 331 + 1);
                // SAFETY: sizes are not zero, and each piece is written and read within its size.
                unsafe {
                    let piece = ALLOCATOR.alloc_zeroed(old);
                    assert_eq!(piece.addr() % old.align(), 0);
                    for at in 0..old.size() {
                        assert_eq!(piece.add(at).replace(mark), 0);
                    }
                    let piece = ALLOCATOR.realloc(piece, old, new);
                    assert_eq!(piece.addr() % old.align(), 0);
                    for at in 0..old.size().min(new) {
                        assert_eq!(*piece.add(at), mark);
                    }
                    ptr::write_bytes(piece, mark, new);
                    std::thread::yield_now();
                    for at in 0..new {
                        assert_eq!(*piece.add(at), mark);
                    }
                    ALLOCATOR.dealloc(piece, layout(new, old.align()));
                }
            }
        };
        std::thread::scope(|scope| {
            for mark in 1..=4 {
                scope.spawn(move || work(mark));
            }
        });
        assert!(ALLOCATOR.used.load(Ordering::Relaxed) > SIZE - LARGEST);
    }

    #[test]
    fn the_last_piece_grows_in_place_and_large_ones_are_the_systems() {
        static OWN: ShortLived = ShortLived::new();
        let own = &OWN;
        // SAFETY: sizes are not zero; nothing is read or written.
        unsafe {
            let first = own.alloc(layout(10, 8));
            assert_eq!(own.realloc(first, layout(10, 8), 1000), first);
            assert_eq!(own.realloc(first, layout(1000, 8), 10), first);
            let second = own.alloc(layout(10, 8));
            assert_ne!(own.realloc(first, layout(1000, 8), 2000), first);
            assert!(own.holds(second));
            let large = own.alloc(layout(LARGEST + 1, 8));
            assert!(!own.holds(large));
            own.dealloc(large, layout(LARGEST + 1, 8));
        }
    }
}
