//! Which certificates registries are trusted by: the system's, those of `--ca-file`, and an embedded set where there is
//! no system set.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use bareboat_core::{Class, Error};
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::flags::Environment;

/// Proxies that look into traffic to AWS have their certificate in this variable's file.
const AWS_BUNDLE: &str = "AWS_CA_BUNDLE";
/// Of a directory of broken certificates, how many are named.
const ERRORS_MAX: usize = 3;

/// The TLS configuration of registry requests: ring, TLS 1.2 and 1.3, no client certificate.
pub fn tls(roots: RootCertStore) -> anyhow::Result<ClientConfig> {
    let builder = builder().context("set up TLS")?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The beginning of every TLS configuration.
pub fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()
}

/// What is trusted: the system's certificates and those of the files.
///
/// Errors: class usage for a CA file that cannot be read or has no certificate.
pub fn roots(ca_files: &[PathBuf], environment: &Environment) -> Result<RootCertStore, Error> {
    let mut roots = system_roots(environment);
    for path in ca_files {
        add_named(&mut roots, "--ca-file", path)?;
    }
    if let Some(path) = environment.get(AWS_BUNDLE) {
        add_named(&mut roots, AWS_BUNDLE, Path::new(path))?;
    }
    Ok(roots)
}

/// The system's certificates, else the embedded ones. Where SSL_CERT_FILE or SSL_CERT_DIR replace the system's, nothing
/// stands in for what they lack: whoever set them narrowed the trust.
fn system_roots(environment: &Environment) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    let named =
        ["SSL_CERT_FILE", "SSL_CERT_DIR"].iter().any(|name| environment.get(name).is_some());
    if named {
        for error in found.errors.iter().take(ERRORS_MAX) {
            tracing::warn!("SSL_CERT_FILE or SSL_CERT_DIR: {error}");
        }
    } else if roots.is_empty() {
        tracing::info!("no certificates on this system: the embedded Mozilla set is trusted");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

fn add_named(roots: &mut RootCertStore, named_by: &str, path: &Path) -> Result<(), Error> {
    add_file(roots, path).map_err(|why| {
        Error::new(Class::Usage, format!("{named_by} {}: {why}", path.display()))
            .hint("a file of certificates in PEM form (-----BEGIN CERTIFICATE-----)")
    })
}

/// Adds every certificate of a PEM file.
///
/// Errors: why that can't be done, without the file's name.
pub fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The certificates of a PEM file, at least one.
///
/// Errors: why they can't be had, without the file's name.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    if all.is_empty() { Err("it has no certificate".to_owned()) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// ISRG Root X2, a public certificate.
    const PEM: &str = "-----BEGIN CERTIFICATE-----
MIICGzCCAaGgAwIBAgIQQdKd0XLq7qeAwSxs6S+HUjAKBggqhkjOPQQDAzBPMQsw
CQYDVQQGEwJVUzEpMCcGA1UEChMgSW50ZXJuZXQgU2VjdXJpdHkgUmVzZWFyY2gg
R3JvdXAxFTATBgNVBAMTDElTUkcgUm9vdCBYMjAeFw0yMDA5MDQwMDAwMDBaFw00
MDA5MTcxNjAwMDBaME8xCzAJBgNVBAYTAlVTMSkwJwYDVQQKEyBJbnRlcm5ldCBT
ZWN1cml0eSBSZXNlYXJjaCBHcm91cDEVMBMGA1UEAxMMSVNSRyBSb290IFgyMHYw
EAYHKoZIzj0CAQYFK4EEACIDYgAEzZvVn4CDCuwJSvMWSj5cz3es3mcFDR0HttwW
+1qLFNvicWDEukWVEYmO6gbf9yoWHKS5xcUy4APgHoIYOIvXRdgKam7mAHf7AlF9
ItgKbppbd9/w+kHsOdx1ymgHDB/qo0IwQDAOBgNVHQ8BAf8EBAMCAQYwDwYDVR0T
AQH/BAUwAwEB/zAdBgNVHQ4EFgQUfEKWrt5LSDv6kviejM9ti6lyN5UwCgYIKoZI
zj0EAwMDaAAwZQIwe3lORlCEwkSHRhtFcP9Ymd70/aTSVaYgLXTWNLxBo1BfASdW
tL4ndQavEi51mI38AjEAi/V3bNTIZargCyzuFJ0nN6T5U6VR5CmD1/iQMVtCnwr1
/q4AaOeMSQ+2b1tbFfLn
-----END CERTIFICATE-----
";

    #[test]
    fn a_ca_file_is_added() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), format!("# a comment\n{PEM}{PEM}")).unwrap();
        let mut roots = RootCertStore::empty();
        add_file(&mut roots, file.path()).unwrap();
        assert_eq!(roots.len(), 2);
    }

    #[test]
    fn a_ca_file_without_a_certificate_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let refused = |path: &Path| {
            let error = add_named(&mut RootCertStore::empty(), AWS_BUNDLE, path).unwrap_err();
            assert_eq!(error.class(), Class::Usage);
            assert!(error.title().contains(path.to_str().unwrap()), "{error}");
            assert!(error.title().contains(AWS_BUNDLE), "{error}");
        };
        refused(&path);
        refused(folder.path());
        let broken = PEM.replace("MIICGzCC", "AAAAAAAA");
        for content in ["", "nonsense", broken.as_str(), &PEM[..300]] {
            fs::write(&path, content).unwrap();
            refused(&path);
        }
    }
}
