//! Certificates for tests of TLS: an authority, and a server and a client that it signed.

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// PEM files: `ca.pem`, `server.pem`, `server.key`, `client.pem` and `client.key`.
pub struct Certificates(tempfile::TempDir);

impl Certificates {
    /// # Errors
    /// Whatever prevents keys or files.
    pub fn make(server_name: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, dir.path().display().to_string());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(dir.path().join("ca.pem"), authority.pem())?;
        for (file, name) in [("server", server_name), ("client", "lbd")] {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(vec![name.to_owned()])?;
            params.distinguished_name.push(DnType::CommonName, name);
            let certificate = params.signed_by(&key, &authority)?;
            fs::write(dir.path().join(format!("{file}.pem")), certificate.pem())?;
            fs::write(dir.path().join(format!("{file}.key")), key.serialize_pem())?;
        }
        Ok(Self(dir))
    }

    /// Those that the examples of docs/store.md stand for, made once in a process.
    ///
    /// # Errors
    /// As [`Certificates::make`].
    pub fn of_the_examples() -> Result<&'static Self> {
        static MADE: OnceLock<Result<Certificates, String>> = OnceLock::new();
        let made = MADE.get_or_init(|| Self::make("redis.example").map_err(|error| format!("{error:#}")));
        made.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// The files of authority and client under the names that the examples have, in the directory of a configuration.
    ///
    /// # Errors
    /// Whatever prevents files.
    pub fn copy_to(&self, dir: &Path) -> Result<()> {
        for (name, as_name) in
            [("ca.pem", "redis-ca.pem"), ("client.pem", "lbd.pem"), ("client.key", "lbd.key")]
        {
            let to = dir.join(as_name);
            fs::copy(self.path(name), &to).with_context(|| format!("making {}", to.display()))?;
            fs::set_permissions(&to, Permissions::from_mode(0o600))?;
        }
        Ok(())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What a redis-server needs to speak TLS on this port, and to ask for a client's certificate.
    pub fn redis_settings(&self, port: u16) -> [(&'static str, String); 5] {
        let file = |name| self.path(name).display().to_string();
        [
            ("tls-port", port.to_string()),
            ("tls-cert-file", file("server.pem")),
            ("tls-key-file", file("server.key")),
            ("tls-ca-cert-file", file("ca.pem")),
            ("tls-auth-clients", "yes".into()),
        ]
    }
}
