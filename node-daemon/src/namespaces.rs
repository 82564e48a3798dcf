//! Whether this process can tell pods' network namespaces apart.

use tokio::sync::watch;
use twill_sys::{Netns, NetnsError};
use twill_types::error_chain;

use crate::problems;

/// Asks for the number of the own namespace, as it is asked for those of pods, and tells if that cannot be had: a
/// kernel neither gains the ioctl nor a process a capability later on.
pub(crate) fn look() -> watch::Receiver<Vec<String>> {
    let (problems, told) = watch::channel(Vec::new());
    let own = Netns::current().and_then(|own| own.cookie());
    problems::tell(&problems, problem(own).into_iter().collect());
    told
}

/// A kernel that has no such numbers at all (before 5.14) is no fault: then paths count alone.
fn problem(own: Result<Option<u64>, NetnsError>) -> Option<String> {
    let error = own.err()?;
    Some(format!(
        "pods' network namespaces cannot be told apart ({}): addresses that other main plugins than `twill` got are \
         never freed without a DEL, and a pod whose link on the node was deleted counts as gone. Add SYS_ADMIN to \
         the capabilities of the daemon (node.capabilities of the Helm chart), or use Linux 6.18 or newer, which \
         needs none for it",
        error_chain(&error)
    ))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn who_may_not_tell_namespaces_apart_says_so() {
        assert_eq!(problem(Ok(Some(7))), None);
        assert_eq!(problem(Ok(None)), None, "nobody can there");
        let refused = NetnsError::Enter(io::Error::from_raw_os_error(1));
        let said = problem(Err(refused)).unwrap();
        assert!(said.contains("CAP_SYS_ADMIN is needed") && said.contains("6.18"), "{said}");
    }

    #[test]
    fn root_can_tell_them_apart() {
        assert_eq!(*look().borrow(), [""; 0]);
    }
}
