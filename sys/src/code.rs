//! How much of its own code a process keeps in memory.

use std::{fs, io};

/// Unmaps the pages of this program's code that are in memory; answers how many octets of address
/// space that is. What runs after that is mapped again, a few pages at a time, from the system's page
/// cache, where it stays.
///
/// For a daemon whose start runs code that never runs again: by itself the kernel keeps all of it
/// mapped, and counts it as the daemon's memory, until some other program is short of it.
///
/// # Errors
/// `/proc` cannot be read, or what it says not be understood.
pub fn let_go_of_code() -> io::Result<usize> {
    let program = fs::read_link("/proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut gone = 0;
    for line in maps.lines().filter(|line| program.to_str().is_some_and(|p| line.ends_with(p))) {
        let Some((start, end)) = code(line) else { continue };
        // SAFETY: the mapping is of a file, and private, and was never writable: code has no relocations.
        // So its pages are the file's own, and the next access reads them again. The file of a program
        // that runs cannot be written (ETXTBSY).
        match unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) }
        {
            0 => gone += end - start,
            _ => return Err(io::Error::last_os_error()),
        }
    }
    Ok(gone)
}

/// From where to where a line of `/proc/self/maps` has code that cannot be written.
fn code(line: &str) -> Option<(usize, usize)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    rest.starts_with("r-xp ").then_some((address(start)?, address(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KiB of files that are mapped and in memory.
    fn resident() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn code_goes_and_comes_back() {
        let before = resident();
        let gone = let_go_of_code().unwrap();
        let after = resident();
        assert!(gone > 0);
        // Other tests run meanwhile, but not all of the code.
        assert!(after < before, "{before} KiB before, {after} KiB after");
        assert_eq!(let_go_of_code().unwrap(), gone);
    }

    #[test]
    fn only_code_is_meant() {
        let line = "55d0a1c00000-55d0a1d00000 r-xp 00100000 fe:00 1234    /usr/bin/twilld";
        assert_eq!(code(line), Some((0x55d0_a1c0_0000, 0x55d0_a1d0_0000)));
        for other in ["r--p", "rw-p", "r-xs", "rwxp"] {
            assert_eq!(code(&line.replace("r-xp", other)), None, "{other}");
        }
        assert_eq!(code("nonsense"), None);
    }
}
