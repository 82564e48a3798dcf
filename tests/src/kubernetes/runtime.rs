//! containerd of two releases: where its programs are, and what they are told.

use std::path::PathBuf;

use anyhow::Result;

use crate::programs;

/// The containerd of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// 2.4, which `tests/go/containerd` names: speaks CNI 1.1.0, and asks the plugin for STATUS each time
    /// that the kubelet asks it.
    Newest,
    /// 1.6, the package of Debian 12, as nodes have it that are old: speaks CNI up to 1.0.0, and takes the
    /// network for ready as soon as there is a configuration.
    Debian,
}

impl Runtime {
    /// The daemon's program; its shim is beside it.
    pub(super) fn daemon(self) -> Result<PathBuf> {
        match self {
            Self::Newest => programs::go_tool("containerd", "containerd"),
            Self::Debian => Ok("/usr/bin/containerd".into()),
        }
    }

    /// The client of the same release.
    pub(super) fn ctr(self) -> Result<PathBuf> {
        match self {
            Self::Newest => programs::go_tool("containerd", "ctr"),
            Self::Debian => Ok("/usr/bin/ctr".into()),
        }
    }

    /// The client's arguments to take images out of an archive: where they are not unpacked by the client,
    /// the daemon wants to be told of each snapshotter's platform.
    pub(super) fn import(self) -> &'static [&'static str] {
        match self {
            Self::Newest => &["images", "import", "--local", "--snapshotter", "overlayfs"],
            Self::Debian => &["images", "import", "--snapshotter", "overlayfs"],
        }
    }

    /// The daemon's configuration: as on a node, but that nobody here may make a process less likely to be
    /// killed when memory is short, and that there is no AppArmor.
    pub(super) fn configuration(self) -> String {
        let (version, rest) = match self {
            Self::Newest => (3, NEWEST),
            Self::Debian => (2, DEBIAN),
        };
        format!("version = {version}\n{COMMON}{rest}")
    }
}

/// It tells how long the network's plugin takes.
const COMMON: &str = r#"root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]
[grpc]
address = "/run/containerd/containerd.sock"
[metrics]
address = "127.0.0.1:1338"
"#;

const NEWEST: &str = r#"[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "localhost/pause:test"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"
"#;

const DEBIAN: &str = r#"[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:test"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
"#;
