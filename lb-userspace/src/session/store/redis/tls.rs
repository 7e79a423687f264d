//! TLS to the servers: whom to believe, and how to be known to them. The files are read for each connection, so certificates
//! can be renewed while this process runs; connections are few and long.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsConnector;

/// How to know the servers, and how to be known to them. Good for all nodes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RedisTls {
    /// PEM file with the certificates of the authorities that sign the servers' certificates. `None`: those that this host
    /// trusts.
    pub ca_file: Option<PathBuf>,
    /// PEM file with this client's certificate and those between it and its authority, for servers that ask for one
    /// (`tls-auth-clients`).
    pub cert_file: Option<PathBuf>,
    /// PEM file with the key of `cert_file`, PKCS #8, PKCS #1 or SEC 1.
    pub key_file: Option<PathBuf>,
    /// The name, or IP address, that the servers' certificates must have. `None`: the host in each node's URL, and the
    /// addresses by which a cluster names the others.
    pub server_name: Option<String>,
}

impl RedisTls {
    /// Whether these make sense where TLS is in use or not.
    ///
    /// # Errors
    /// Names the option, or the file and what is wrong with it.
    pub(crate) fn check(&self, used: bool) -> Result<(), String> {
        let given = [
            ("ca_file", self.ca_file.is_some()),
            ("cert_file", self.cert_file.is_some()),
            ("key_file", self.key_file.is_some()),
            ("server_name", self.server_name.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((name, _)) if !used => {
                return Err(format!("{name} is for TLS, and the nodes are redis://: write rediss://"));
            }
            _ if !used => return Ok(()),
            _ => {}
        }
        if let Some(name) = &self.server_name {
            server_name(name)?;
        }
        self.load().map(drop)
    }

    /// Reads the files.
    ///
    /// # Errors
    /// Names the option and the file.
    pub(super) fn load(&self) -> Result<TlsConnector, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS: {error}"))?
            .with_root_certificates(self.roots()?);
        let config = match (&self.cert_file, &self.key_file) {
            (None, None) => config.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let chain = certificates("cert_file", cert)?;
                // Of a file with a key in it, nothing but its name is told.
                let key_der = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| format!("key_file {}: {}", key.display(), why(&error)))?;
                config.with_client_auth_cert(chain, key_der).map_err(|error| {
                    format!("cert_file {} and key_file {}: {error}", cert.display(), key.display())
                })?
            }
            (Some(_), None) => return Err("cert_file is there and key_file is not: name both".into()),
            (None, Some(_)) => return Err("key_file is there and cert_file is not: name both".into()),
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }

    fn roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        let Some(path) = &self.ca_file else {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
                return Err(format!("this host trusts no authority{why}: name one with ca_file"));
            }
            return Ok(roots);
        };
        for certificate in certificates("ca_file", path)? {
            roots.add(certificate).map_err(|error| format!("ca_file {}: {error}", path.display()))?;
        }
        Ok(roots)
    }

    /// What the certificate of a server must be for.
    ///
    /// # Errors
    /// A host that no certificate can be for.
    pub(super) fn name_of(&self, host: &str) -> Result<ServerName<'static>, String> {
        server_name(self.server_name.as_deref().unwrap_or(host))
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(name.to_owned())
        .map_err(|_| format!("server_name {name:?} is no host name and no IP address"))
}

fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let told = |error| format!("{option} {}: {}", path.display(), why(&error));
    let found = CertificateDer::pem_file_iter(path).map_err(told)?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(told)?;
    match found.is_empty() {
        true => Err(format!("{option} {} has no certificate in PEM form", path.display())),
        false => Ok(found),
    }
}

/// Without what stands in the file.
fn why(error: &rustls::pki_types::pem::Error) -> String {
    use rustls::pki_types::pem::Error;
    match error {
        Error::Io(error) => error.to_string(),
        Error::NoItemsFound => "nothing of that kind is in it in PEM form".into(),
        _ => "it is not in PEM form".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        let missing = Some(dir.path().join("missing"));
        let none = RedisTls::default();
        let name = |name: &str| RedisTls { server_name: Some(name.into()), ..RedisTls::default() };
        let rubbish = "-----BEGIN PRIVATE KEY-----\nsecret!\n-----END PRIVATE KEY-----\n";
        for (tls, used, why) in [
            (name("h"), false, "server_name is for TLS"),
            (name("a b"), true, "server_name \"a b\" is no host name"),
            (RedisTls { ca_file: missing.clone(), ..none.clone() }, true, "ca_file"),
            (RedisTls { ca_file: file("empty", ""), ..none.clone() }, true, "has no certificate in PEM form"),
            (RedisTls { ca_file: file("other", rubbish), ..none.clone() }, true, "ca_file"),
            (RedisTls { cert_file: missing.clone(), ..none.clone() }, true, "key_file is not: name both"),
            (RedisTls { key_file: missing.clone(), ..none.clone() }, true, "cert_file is not: name both"),
        ] {
            let error = tls.check(used).unwrap_err();
            assert!(error.contains(why) && !error.contains("secret!"), "{error}");
        }
        assert_eq!(none.check(false), Ok(()));
    }
}
