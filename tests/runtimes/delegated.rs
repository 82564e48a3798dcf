//! The newest reference plugins with addresses from `twill-ipam`.

use anyhow::{Result, ensure};
use serde_json::json;
use twill_tests::{cni, ping, wait::wait_for};

use crate::{LONG, tool::Site};

/// Unlike Debian's it knows STATUS, and passes it on; GC is libcni's own DELs to it.
pub(crate) fn the_newest_ptp_works_with_every_verb() -> Result<()> {
    let under_ptp = |grace: u64| {
        move |list: &mut serde_json::Value| {
            let run_dir = list["plugins"][0]["runDir"].clone();
            let ipam = json!({
                "type": "twill-ipam",
                "mode": "daemon",
                "runDir": run_dir,
                "statusGraceSeconds": grace,
            });
            list["plugins"] = json!([{"type": "ptp", "ipam": ipam}]);
        }
    };
    let mut site = Site::new(under_ptp(120))?;
    site.call("status", "/unused".as_ref())?;
    let ((one, first), (two, second)) = (site.add("one")?, site.add("two")?);
    ensure!(first["cniVersion"] == "1.1.0", "{first}");
    let (here, there) = (cni::addresses(&first)?[0], cni::addresses(&second)?[0]);
    ping::reaches(&one, there)?;
    ping::reaches(&two, here)?;
    ping::reaches(site.node()?, here)?;
    for pod in [&one, &two] {
        site.call("check", pod.path())?;
    }
    ensure!(site.used()? == 2, "{} addresses are in use", site.used()?);
    // libcni calls DEL for all that it knows, and then a GC that ptp passes on to nobody.
    site.call("gc", one.path())?;
    ensure!(site.used()? == 0, "{} addresses are in use", site.used()?);

    site.lab.node_mut("node1")?.kill9()?;
    site.call("status", "/unused".as_ref())?;
    site.configure(under_ptp(1))?;
    let error =
        wait_for("the grace to end", LONG, || match site.call("status", "/unused".as_ref()) {
            Ok(_) => anyhow::bail!("it is ready still"),
            Err(error) => Ok(error.to_string()),
        })?;
    ensure!(error.contains("twilld.sock"), "{error}");
    Ok(())
}
