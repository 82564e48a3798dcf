//! How much memory the C library's allocator keeps for itself.

/// So large pieces come from the kernel each for itself, and go back to it. By itself the C library moves
/// this up to 32 MiB, and a table that has grown leaves a hole of half its size behind.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 256 * 1024;

/// Has all threads share one heap, and large pieces given back: for a process of few threads that lives
/// long. By itself the C library has a heap for each thread, and what one of them frees another cannot
/// use. To be called before threads begin. Elsewhere than with glibc it does nothing.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets two numbers, under the allocator's lock, and no memory is touched.
    unsafe {
        // It can only fail for numbers that it does not know, and then nothing has changed.
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::CStr, ptr, sync::Barrier, thread};

    use super::*;

    /// How many heaps there are.
    fn heaps() -> usize {
        let (mut text, mut length) = (ptr::null_mut(), 0);
        // SAFETY: the stream is open until it is closed, and then `text` is a string, to be freed.
        unsafe {
            let stream = libc::open_memstream(&raw mut text, &raw mut length);
            assert!(!stream.is_null());
            assert_eq!(libc::malloc_info(0, stream), 0);
            assert_eq!(libc::fclose(stream), 0);
            let count = CStr::from_ptr(text).to_str().unwrap().matches("<heap nr=").count();
            libc::free(text.cast());
            count
        }
    }

    #[test]
    fn threads_share_a_heap() {
        share_heap();
        let before = heaps();
        let together = Barrier::new(16);
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let piece = vec![1_u8; 100_000];
                    together.wait();
                    assert_eq!(piece.iter().map(|one| usize::from(*one)).sum::<usize>(), 100_000);
                });
            }
        });
        assert!(before >= 1);
        assert_eq!(heaps(), before);
    }
}
