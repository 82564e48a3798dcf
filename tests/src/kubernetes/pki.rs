//! Keys and certificates of a cluster, made by openssl. They live as long as the test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::process::run;

/// How long certificates are valid, days.
const DAYS: &str = "2";

/// A certificate authority and what it signed, in a directory.
#[derive(Debug)]
pub(super) struct Pki {
    directory: PathBuf,
}

/// Where a certificate and its key are.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Pki {
    /// Makes a certificate authority, and the key that service accounts' tokens are signed with.
    pub(super) fn create(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let pki = Self { directory };
        let arguments = ["req", "-x509", "-days", DAYS, "-subj", "/CN=twill-tests"];
        let authority = pki.authority();
        pki.openssl(
            Command::new("openssl")
                .args(arguments)
                .args(NEW_KEY)
                .arg("-keyout")
                .arg(&authority.key)
                .arg("-out")
                .arg(&authority.certificate),
        )?;
        let curve = ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"];
        pki.openssl(Command::new("openssl").args(curve).arg(pki.token_key()))?;
        Ok(pki)
    }

    /// The authority itself.
    pub(super) fn authority(&self) -> Identity {
        self.identity("ca")
    }

    /// The key for tokens.
    pub(super) fn token_key(&self) -> PathBuf {
        self.directory.join("token.key")
    }

    /// A certificate for a server at these names and addresses (`DNS:localhost,IP:127.0.0.1`).
    pub(super) fn server(&self, name: &str, places: &str) -> Result<Identity> {
        let subject = format!("/CN={name}");
        let extension = format!("subjectAltName={places}\nextendedKeyUsage=serverAuth\n");
        self.sign(name, &subject, &extension)
    }

    /// A certificate for a user of these groups.
    pub(super) fn client(&self, name: &str, groups: &[&str]) -> Result<Identity> {
        let groups: String = groups.iter().map(|group| format!("/O={group}")).collect();
        let subject = format!("{groups}/CN={name}");
        self.sign(&name.replace(':', "-"), &subject, "extendedKeyUsage=clientAuth\n")
    }

    fn identity(&self, name: &str) -> Identity {
        Identity {
            certificate: self.directory.join(format!("{name}.crt")),
            key: self.directory.join(format!("{name}.key")),
        }
    }

    fn sign(&self, name: &str, subject: &str, extension: &str) -> Result<Identity> {
        let (identity, authority) = (self.identity(name), self.authority());
        let request = self.directory.join(format!("{name}.csr"));
        let extensions = self.directory.join(format!("{name}.ext"));
        fs::write(&extensions, extension)
            .with_context(|| format!("cannot write {}", extensions.display()))?;
        self.openssl(
            Command::new("openssl")
                .args(["req", "-subj", subject])
                .args(NEW_KEY)
                .arg("-keyout")
                .arg(&identity.key)
                .arg("-out")
                .arg(&request),
        )?;
        self.openssl(
            Command::new("openssl")
                .args(["x509", "-req", "-days", DAYS, "-CAcreateserial"])
                .arg("-in")
                .arg(&request)
                .arg("-extfile")
                .arg(&extensions)
                .arg("-CA")
                .arg(&authority.certificate)
                .arg("-CAkey")
                .arg(&authority.key)
                .arg("-out")
                .arg(&identity.certificate),
        )?;
        Ok(identity)
    }

    fn openssl(&self, command: &mut Command) -> Result<()> {
        run(command.current_dir(&self.directory))
            .map(drop)
            .context("openssl failed. Install it by\n    hack/install-tools kubernetes")
    }
}

/// A new key without a passphrase, on a curve that takes no time to make.
const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

/// Whoever has this file is this user of the API server at `server`.
pub(super) fn kubeconfig(
    path: &Path,
    server: &str,
    authority: &Identity,
    user: &Identity,
) -> Result<()> {
    let text = format!(
        "apiVersion: v1\nkind: Config\n\
         clusters: [{{name: test, cluster: {{server: \"{server}\", certificate-authority: {}}}}}]\n\
         users: [{{name: user, user: {{client-certificate: {}, client-key: {}}}}}]\n\
         contexts: [{{name: test, context: {{cluster: test, user: user}}}}]\n\
         current-context: test\n",
        authority.certificate.display(),
        user.certificate.display(),
        user.key.display(),
    );
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
