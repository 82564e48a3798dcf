//! A node without a daemon, and one that goes for good.

use std::{fs, sync::Mutex, time::Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use twill_tests::{kubernetes::Runtime, ping, programs, wait::wait_for};

use super::{
    LONG,
    site::{DOOMED as NEW, GONE_NODE, OLD, SELECTED, Site, UNSELECTED, lock},
};

/// Each daemon has said where its node is and that its network works; the controller is led.
pub(crate) fn nodes_say_where_they_are(site: &Mutex<Site>) -> Result<()> {
    let site = lock(site)?;
    for name in [SELECTED[0], SELECTED[1], UNSELECTED] {
        wait_for("what the daemon adds to its Node", LONG, || {
            let node = site.kubectl().json(&["get", "node", name])?;
            let annotations = &node["metadata"]["annotations"];
            let [v4, v6] = site.cluster.node(name)?.addresses();
            for (family, own) in [("IPv4", format!("{v4}/24")), ("IPv6", format!("{v6}/64"))] {
                let address = &annotations[format!("projectcalico.org/{family}Address")];
                ensure!(*address == own.as_str(), "{address} instead of {own}");
            }
            let unavailable = site.condition(name, "NetworkUnavailable")?;
            let is_up = unavailable["status"] == "False" && unavailable["reason"] == "TwillIsUp";
            ensure!(is_up, "{unavailable}");
            Ok(())
        })?;
    }
    wait_for("somebody to lead", LONG, || {
        let lease = ["get", "lease", "twill-controller", "-n", "twill-system"];
        let lease = site.kubectl().json(&lease)?;
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        ensure!(!holder.is_empty(), "nobody leads: {lease}");
        Ok(())
    })?;
    wait_for("the pool to be accepted", LONG, || {
        let pool = site.kubectl().json(&["get", "ippool", "app"])?;
        let conditions = pool["status"]["conditions"].as_array().into_iter().flatten();
        let is_accepted = |c: &Value| c["type"] == "Accepted" && c["status"] == "True";
        ensure!(conditions.into_iter().any(is_accepted), "{}", pool["status"]);
        Ok(())
    })
}

/// Called as the documentation has it, `twillctl node check` finds nothing that fails, and the network that the
/// runtime takes.
pub(crate) fn nodes_pass_their_checks(site: &Mutex<Site>) -> Result<()> {
    let site = lock(site)?;
    for name in [SELECTED[0], SELECTED[1], UNSELECTED] {
        let pod = site.daemon(name)?;
        let exec = ["exec", "-n", "twill-system", &pod, "-c", "twilld", "--"];
        let check = ["/usr/bin/twillctl", "node", "check"];
        let found = site.kubectl().run(&[&exec[..], &check].concat())?;
        let network = "the runtime takes /etc/cni/net.d/05-twill.conflist";
        ensure!(found.contains(network), "{name}: {found}");
    }
    Ok(())
}

/// Plugin and configuration are on two nodes, and no daemon ever was. One's containerd asks STATUS: the node is
/// not ready, and says why, until the daemon has come. The other's does not ask: its node is ready at once, and a
/// pod there waits for the daemon.
pub(crate) fn a_node_is_not_ready_before_its_first_daemon(site: &Mutex<Site>) -> Result<()> {
    let mut site = lock(site)?;
    // Without the image, the daemon's pod waits.
    site.cluster.add_nodes(&[(NEW, Runtime::Newest), (OLD, Runtime::Debian)], &[])?;
    site.kubectl().run(&["label", "node", OLD, "env=prod"])?;
    [NEW, OLD].into_iter().try_for_each(|node| install_without_daemon(&site, node))?;
    wait_for("the node whose containerd does not ask", LONG, || {
        let (is_ready, message, _) = site.node_ready(OLD)?;
        ensure!(is_ready, "{message}");
        Ok(())
    })?;
    site.deploy("app", 1, &format!("nodeSelector: {{kubernetes.io/hostname: {OLD}}}"))?;
    wait_for("the node to say what it lacks", LONG, || {
        let (is_ready, message, _) = site.node_ready(NEW)?;
        ensure!(!is_ready && message.contains("twilld.sock"), "{is_ready}: {message}");
        Ok(())
    })?;
    wait_for("the pod's ADD to wait for the daemon", LONG, || {
        let processes = ["-c", "cat /proc/[0-9]*/comm 2>/dev/null || true"];
        let processes = site.cluster.node(OLD)?.run("sh", &processes)?;
        ensure!(processes.lines().any(|name| name == "twill"), "{}", site.events()?);
        Ok(())
    })?;
    let pods = site.pods("app")?;
    ensure!(pods[0]["status"]["podIP"].is_null(), "{}", pods[0]["status"]);
    ensure!(site.node_ready(OLD)?.0, "the node has asked for STATUS");

    for node in [NEW, OLD] {
        site.cluster.node(node)?.import(&site.image)?;
    }
    wait_for("the node to be ready", LONG, || {
        let (is_ready, message, _) = site.node_ready(NEW)?;
        ensure!(is_ready, "{message}");
        Ok(())
    })?;
    site.wait_rollout()?;
    let pod = site.wait_ready("app", 1)?.remove(0);
    wait_for("the router to reach the pod", LONG, || {
        ping::reaches(site.cluster.tor().namespace(), pod.address)
    })
    .or_else(|error| Err(error.context(site.ways()?)))?;
    site.remove("app")?;
    site.cluster.cut_power(OLD)?;
    site.kubectl().run(&["delete", "node", OLD])?;
    site.wait_rollout()
}

/// What the init container of the daemon's pod does, by hand.
fn install_without_daemon(site: &Site, node: &str) -> Result<()> {
    let settings = site.cluster.directory().join("install.yaml");
    fs::write(&settings, "datastore: {type: file}\n")?;
    let (config, plugin) = (settings.to_string_lossy(), programs::directory()?);
    let conflist = programs::source("conf/cni/05-twill.conflist");
    let (plugin, conflist) = (plugin.to_string_lossy(), conflist.to_string_lossy());
    let places = ["--plugin-from", &plugin, "--conflist-from", &conflist];
    let install = ["--role", "install", "--config", &config];
    let install = [&install[..], &places].concat();
    site.cluster.node(node)?.run(programs::find("twilld")?, &install).map(drop)
}

/// A node loses its power and is deleted. The router loses its routes, and the controller frees its block once it
/// has been gone for long enough.
pub(crate) fn what_a_deleted_node_had_is_free(site: &Mutex<Site>) -> Result<()> {
    let mut site = lock(site)?;
    if site.cluster.node(NEW).is_err() {
        let image = site.image.clone();
        site.cluster.add_nodes(&[(NEW, Runtime::Newest)], &[image])?;
        site.wait_rollout()?;
    }
    site.kubectl().run(&["label", "node", NEW, "env=prod"])?;
    site.deploy("app", 1, &format!("nodeSelector: {{kubernetes.io/hostname: {NEW}}}"))?;
    site.wait_ready("app", 1)?;
    let route = |site: &Site| -> Result<Option<String>> {
        let routes = site.cluster.tor().bird().routes_from(NEW)?;
        Ok(routes.first().map(|route| route.prefix.clone()))
    };
    let block = wait_for("the router to know of the block", LONG, || {
        route(&site)?.ok_or_else(|| anyhow::anyhow!("it does not"))
    })?;
    let learned = |site: &Site| {
        let namespace = site.cluster.node(SELECTED[0])?.namespace();
        namespace.ip(&format!("route show {block} proto 116"))
    };
    wait_for("another node to know of the block", LONG, || {
        ensure!(!learned(&site)?.is_empty(), "it does not");
        Ok(())
    })?;
    site.cluster.cut_power(NEW)?;
    site.kubectl().run(&["delete", "deployment", "app"])?;
    site.kubectl().run(&["delete", "pods", "-l", "app=app", "--force", "--grace-period=0"])?;
    let deleted = Instant::now();
    site.kubectl().run(&["delete", "node", NEW])?;
    let claims = site.kubectl().run(&["get", "blockaffinities"])?;
    ensure!(claims.contains(&block), "{claims}");
    wait_for("the router to miss the node", LONG, || {
        let routes = site.cluster.tor().bird().routes_from(NEW)?;
        ensure!(routes.is_empty(), "{routes:?}");
        Ok(())
    })?;
    wait_for("the claim to be free", LONG + GONE_NODE, || {
        let claims = site.kubectl().json(&["get", "blockaffinities"])?;
        let mut claims = claims["items"].as_array().into_iter().flatten();
        let is_kept = claims.any(|claim| claim["spec"]["node"] == NEW);
        ensure!(!is_kept, "{NEW} has a claim");
        Ok(())
    })?;
    ensure!(deleted.elapsed() >= GONE_NODE, "its claim was free after {:?}", deleted.elapsed());
    // Those who are left go on.
    site.deploy("app", 2, super::addresses::ON_SELECTED)?;
    let pods = site.wait_ready("app", 2)?;
    wait_for("the pods to reach each other", LONG, || site.pings(&pods[0], &pods[1]))?;
    site.remove("app")
}
