//! Rights of Twill's own accounts. The API server goes by a copy of all roles, which is a moment behind: who uses a
//! right before that is refused, and waits long before he asks again; who has lost one is still let through.

use anyhow::{Context, Result, ensure};
use twill_tests::{kubernetes::ApiServer, wait::wait_for};

use super::LONG;

/// Waits until the API server lets an account of `twill-system` do something (`is_given`), or does not any more:
/// `arguments` are those of `kubectl auth can-i`.
pub(crate) fn wait_right(
    api: &ApiServer,
    account: &str,
    arguments: &[&str],
    is_given: bool,
) -> Result<()> {
    let account = format!("--as=system:serviceaccount:twill-system:{account}");
    let asked = [&["auth", "can-i"], arguments, &[&account]].concat();
    let expected = if is_given { "yes" } else { "no" };
    wait_for(&format!("the right to {} to be {expected}", arguments.join(" ")), LONG, || {
        // No is an error for kubectl, and may have a reason behind it.
        let output = api.kubectl().output(&asked, "")?;
        let said = String::from_utf8(output.stdout).context("kubectl says no text")?;
        let complaints = String::from_utf8_lossy(&output.stderr);
        ensure!(said.split_whitespace().next() == Some(expected), "{said}{complaints}");
        Ok(())
    })
}

/// Waits until an account has what `conf/rbac` gives it: by its role for the cluster, and by that of its namespace.
pub(crate) fn wait_rights(api: &ApiServer, account: &str) -> Result<()> {
    wait_right(api, account, &["list", "ippools.projectcalico.org"], true)?;
    wait_right(api, account, &["create", "leases", "-n", "twill-system"], true)
}
