//! What the runtime says in the environment and on standard input.

use std::{
    env,
    ffi::OsString,
    fmt, io,
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use twill_rpc::message::PodRef;

use crate::{error::Error, version::Version};

/// The most that standard input may hold.
const MAX_STDIN: usize = 16 << 20;

/// What this program is in this call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persona {
    /// The main plugin: makes the interface.
    Main,
    /// An IPAM plugin that another main plugin executes.
    Ipam,
}

impl Persona {
    /// By the name of the file that was executed.
    pub(crate) fn from_program() -> Self {
        let program = env::args_os().next().unwrap_or_default();
        match Path::new(&program).file_name() {
            Some(name) if name == "twill-ipam" => Self::Ipam,
            _ => Self::Main,
        }
    }
}

/// What the runtime wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// VERSION, which needs neither variables nor a valid configuration.
    Versions,
    /// Any other verb.
    Verb(Command),
}

impl Asked {
    /// Reads `CNI_COMMAND`.
    pub(crate) fn from_env() -> Result<Self, Error> {
        match utf8("CNI_COMMAND", env::var_os("CNI_COMMAND").unwrap_or_default())?.as_str() {
            "" => Err(Error::MissingVariables(vec!["CNI_COMMAND"])),
            "ADD" => Ok(Self::Verb(Command::Add)),
            "DEL" => Ok(Self::Verb(Command::Del)),
            "CHECK" => Ok(Self::Verb(Command::Check)),
            "GC" => Ok(Self::Verb(Command::Gc)),
            "STATUS" => Ok(Self::Verb(Command::Status)),
            "VERSION" => Ok(Self::Versions),
            other => Err(Error::UnknownCommand(other.to_owned())),
        }
    }
}

/// The verbs that a configuration is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
}

impl Command {
    /// As in `CNI_COMMAND`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }

    /// Whether it is about one interface of one container.
    pub(crate) const fn has_attachment(self) -> bool {
        match self {
            Self::Add | Self::Del | Self::Check => true,
            Self::Gc | Self::Status => false,
        }
    }

    /// Whether a configuration of this version may be called with the verb.
    pub(crate) fn allowed_in(self, version: Version) -> Result<(), Error> {
        let since = match self {
            Self::Add | Self::Del => Version::V0_1_0,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        };
        if version >= since {
            Ok(())
        } else {
            Err(Error::VerbTooNew { verb: self.name(), version, since })
        }
    }

    /// The variables without which the verb cannot work. `CNI_PATH` is in none of the lists: it is
    /// for those who execute other plugins.
    const fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Self::Gc | Self::Status => &[],
        }
    }
}

/// The variables that say what to attach.
#[derive(Debug)]
pub(crate) struct Variables {
    pub(crate) container_id: String,
    /// Empty where the runtime gives none.
    pub(crate) netns: String,
    pub(crate) ifname: String,
    args: String,
    /// `CNI_PATH`: where other plugins are.
    pub(crate) path: String,
    /// `CNI_NETNS_OVERRIDE`: the pod's namespace may be the plugin's own.
    pub(crate) own_netns_allowed: bool,
}

impl Variables {
    /// Reads them, and says all that are missing at once. What the verb does not act on may be of any bytes.
    pub(crate) fn from_env(command: Command) -> Result<Self, Error> {
        Self::read(command, env::var_os)
    }

    fn read(
        command: Command,
        variable: impl Fn(&'static str) -> Option<OsString>,
    ) -> Result<Self, Error> {
        let lossy = |name| variable(name).unwrap_or_default().to_string_lossy().into_owned();
        let variable = |name| utf8(name, variable(name).unwrap_or_default());
        let mut missing = Vec::new();
        for name in command.required() {
            if variable(name)?.is_empty() {
                missing.push(*name);
            }
        }
        if !missing.is_empty() {
            return Err(Error::MissingVariables(missing));
        }
        Ok(Self {
            container_id: variable("CNI_CONTAINERID")?,
            netns: variable("CNI_NETNS")?,
            ifname: variable("CNI_IFNAME")?,
            args: match command {
                Command::Add => variable("CNI_ARGS")?,
                _ => lossy("CNI_ARGS"),
            },
            path: lossy("CNI_PATH"),
            own_netns_allowed: is_true(&lossy("CNI_NETNS_OVERRIDE")),
        })
    }

    /// Whether the values can be what they are meant to be.
    pub(crate) fn validate(&self, command: Command) -> Result<(), Error> {
        if !is_identifier(&self.container_id) {
            return Err(Error::InvalidVariable {
                wrong: "invalid characters in containerID",
                name: "CNI_CONTAINERID",
                value: self.container_id.clone(),
                right: "a letter or digit, then letters, digits, `_`, `.`, `-`",
            });
        }
        let wrong = match self.ifname.as_str() {
            "." | ".." => "interface name is . or ..",
            name if name.len() > 15 => "interface name is too long",
            name if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) => {
                "interface name contains / or : or whitespace characters"
            }
            // libcni lets it pass, so a DEL has to succeed.
            name if name.contains('%') && command == Command::Add => {
                "interface name contains %, for which the kernel puts a number"
            }
            _ => return Ok(()),
        };
        Err(Error::InvalidVariable {
            wrong,
            name: "CNI_IFNAME",
            value: self.ifname.clone(),
            right: "1 to 15 bytes without `/`, `:`, `%` and whitespace",
        })
    }

    /// Reads `CNI_ARGS`.
    pub(crate) fn args(&self) -> Result<Args, Error> {
        Args::parse(&self.args)
    }
}

impl fmt::Display for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// `CNI_ARGS`, as far as this plugin knows its keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) pod: Option<PodRef>,
    /// An address that the user wants.
    pub(crate) ip: Option<String>,
    /// A hardware address that the user wants.
    pub(crate) mac: Option<String>,
}

impl Args {
    fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |wrong| Error::InvalidVariable {
            wrong,
            name: "CNI_ARGS",
            value: text.to_owned(),
            right: "KEY=VALUE pairs joined by `;`, and IgnoreUnknown=1 if there are keys of others",
        };
        let mut args = Self::default();
        let (mut namespace, mut name, mut uid) = (None, None, None);
        let (mut ignore_unknown, mut unknown) = (false, false);
        for pair in text.split(';').filter(|_| !text.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .filter(|(_, value)| !value.contains('='))
                .ok_or_else(|| invalid("CNI_ARGS holds a pair without exactly one `=`"))?;
            match key {
                "IgnoreUnknown" => ignore_unknown = is_true(value),
                "K8S_POD_NAMESPACE" => namespace = Some(value.to_owned()),
                "K8S_POD_NAME" => name = Some(value.to_owned()),
                "K8S_POD_UID" => uid = Some(value.to_owned()).filter(|uid| !uid.is_empty()),
                "K8S_POD_INFRA_CONTAINER_ID" => {}
                "IP" => args.ip = Some(value.to_owned()),
                "MAC" => args.mac = Some(value.to_owned()),
                _ => unknown = true,
            }
        }
        // The order of the pairs means nothing: containerd writes them in a random one.
        if unknown && !ignore_unknown {
            return Err(invalid("CNI_ARGS holds a key that is not known here"));
        }
        args.pod = namespace.zip(name).map(|(namespace, name)| PodRef { namespace, name, uid });
        Ok(args)
    }
}

/// The pattern that the specification gives for container ids and network names.
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn is_true(text: &str) -> bool {
    text == "1" || text.eq_ignore_ascii_case("true")
}

fn utf8(name: &'static str, value: OsString) -> Result<String, Error> {
    value.into_string().map_err(|value| Error::InvalidVariable {
        wrong: "a variable is not UTF-8",
        name,
        value: value.to_string_lossy().into_owned(),
        right: "UTF-8",
    })
}

/// Reads standard input to its end, for at most `patience`: a caller that forgets to close it must
/// not hang the plugin, and with it the runtime's lock.
pub(crate) fn read_stdin(patience: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + patience;
    let stdin = io::stdin();
    let mut config = Vec::with_capacity(4096);
    // Most configurations are shorter, and each page that is touched costs time.
    let mut chunk = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        match nix::unistd::read(stdin.as_fd(), &mut chunk) {
            Ok(0) => return Ok(config),
            Ok(count) if config.len() + count <= MAX_STDIN => {
                config.extend_from_slice(&chunk[..count]);
            }
            Ok(_) => return Err(io::ErrorKind::FileTooLarge.into()),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn only_what_a_verb_acts_on_has_to_be_utf8() {
        let read = |command, wrong: &'static str| {
            Variables::read(command, |name| match name {
                name if name == wrong => Some(OsString::from_vec(b"K8S=\xff".to_vec())),
                "CNI_CONTAINERID" => Some("c1".into()),
                "CNI_IFNAME" => Some("eth0".into()),
                "CNI_NETNS" => Some("/run/netns/c1".into()),
                _ => None,
            })
        };
        let all = [Command::Add, Command::Del, Command::Check, Command::Gc, Command::Status];
        for command in all {
            for ignored in ["CNI_PATH", "CNI_NETNS_OVERRIDE"] {
                assert!(read(command, ignored).is_ok(), "{command:?} and {ignored}");
            }
            assert_eq!(read(command, "CNI_ARGS").is_ok(), command != Command::Add, "{command:?}");
            assert!(read(command, "CNI_CONTAINERID").is_err(), "{command:?}");
        }
    }

    #[test]
    fn args_are_read_in_any_order() {
        let with = |uid: Option<&str>| {
            let uid = uid.map(str::to_owned);
            Some(PodRef { namespace: "dev".into(), name: "web-0".into(), uid })
        };
        for (text, uid) in [
            ("IgnoreUnknown=1;K8S_POD_NAMESPACE=dev;K8S_POD_NAME=web-0;FUTURE=x", None),
            ("FUTURE=x;K8S_POD_NAME=web-0;IgnoreUnknown=true;K8S_POD_NAMESPACE=dev", None),
            ("K8S_POD_UID=1;K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=dev", Some("1")),
            ("K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=dev;K8S_POD_UID=", None),
        ] {
            assert_eq!(Args::parse(text).unwrap().pod, with(uid), "{text}");
        }
        assert_eq!(Args::parse("").unwrap(), Args::default());
        assert_eq!(Args::parse("IP=10.0.0.5").unwrap().ip.as_deref(), Some("10.0.0.5"));
        for text in ["FUTURE=x", "IgnoreUnknown=0;FUTURE=x", "ip=1", "IP", "IP=a=b", ";", "IP=1;"] {
            assert!(Args::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn identifiers() {
        for text in ["a", "0", "cnitool-77383ca0", "A.b_c-d"] {
            assert!(is_identifier(text), "{text}");
        }
        for text in ["", "-a", ".a", "a b", "a/b", "ä", "a;b"] {
            assert!(!is_identifier(text), "{text}");
        }
    }
}
