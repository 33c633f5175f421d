//! Registries that are met with certificates of their own: by flags, and by the folders where Docker and the containers
//! tools keep them (`certs.d/HOST[:PORT]/{*.crt,*.cert,*.key}`).

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bareboat_core::{Class, Error, registry::TlsIdentity};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};

use crate::{flags::RegistryOptions, trust};

/// What is special about one registry.
#[derive(Clone, Debug, Default)]
struct Special {
    authorities: Vec<PathBuf>,
    /// Certificate and key.
    clients: Vec<(PathBuf, PathBuf)>,
    unverified: bool,
}

/// The registries that are not met with `roots` alone; those named with a port come first.
///
/// Errors: class usage for a flag's file that can't be used. What is wrong in a folder is told when its registry is needed.
pub fn identities(
    options: &RegistryOptions,
    roots: &RootCertStore,
) -> Result<Vec<TlsIdentity>, Error> {
    let mut all = of_folders(&options.certificate_folders);
    for (host, special) in of_flags(options) {
        // A file that is named must be usable.
        configuration(&special, roots).map_err(|why| wrong_file(&host, &why))?;
        let known = all.entry(host).or_insert_with(|| Ok(Special::default()));
        *known = known.clone().map(|found| found.and(special));
    }
    let mut identities: Vec<TlsIdentity> = all
        .into_iter()
        .map(|(host, special)| {
            let tls = special.and_then(|special| configuration(&special, roots));
            let tls = tls.map_err(|why| format!("the certificates for {host}: {why}"));
            TlsIdentity { host, tls }
        })
        .collect();
    identities
        .sort_by_key(|identity| !identity.host.rsplit(']').next().unwrap_or("").contains(':'));
    Ok(identities)
}

fn wrong_file(host: &str, why: &str) -> Error {
    Error::new(Class::Usage, format!("the certificates for {host}: {why}")).hint(
        "--registry-certificate and --registry-client-cert take files in PEM form (-----BEGIN CERTIFICATE-----)",
    )
}

fn of_flags(options: &RegistryOptions) -> BTreeMap<String, Special> {
    let mut all: BTreeMap<String, Special> = BTreeMap::new();
    for (host, path) in &options.certificates {
        all.entry(host.clone()).or_default().authorities.push(path.clone());
    }
    for (host, certificate, key) in &options.client_certificates {
        let pair = (certificate.clone(), key.clone());
        all.entry(host.clone()).or_default().clients.push(pair);
    }
    for host in &options.unverified {
        all.entry(host.clone()).or_default().unverified = true;
    }
    all
}

impl Special {
    fn and(mut self, other: Special) -> Special {
        self.authorities.extend(other.authorities);
        // What was typed goes before what was found.
        self.clients.splice(0..0, other.clients);
        self.unverified |= other.unverified;
        self
    }
}

/// By registry; of a registry that several folders know the first counts.
fn of_folders(folders: &[PathBuf]) -> BTreeMap<String, Result<Special, String>> {
    let mut all = BTreeMap::new();
    for folder in folders {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::debug!(folder = %folder.display(), %error, "passed over");
                }
                continue;
            }
        };
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
            if let Some(host) = path.file_name().and_then(|name| name.to_str()) {
                all.entry(host.to_ascii_lowercase()).or_insert_with(|| of_folder(&path));
            }
        }
    }
    all
}

fn of_folder(folder: &Path) -> Result<Special, String> {
    let wrong = |error: io::Error| format!("{}: {error}", folder.display());
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).map_err(wrong)? {
        files.push(entry.map_err(wrong)?.path());
    }
    files.sort();
    let mut special = Special::default();
    for path in &files {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => special.authorities.push(path.clone()),
            Some("cert") => special.clients.push((path.clone(), beside(path, "key", &files)?)),
            Some("key") => drop(beside(path, "cert", &files)?),
            _ => {}
        }
    }
    Ok(special)
}

/// The other half of a client certificate.
fn beside(path: &Path, extension: &str, files: &[PathBuf]) -> Result<PathBuf, String> {
    let other = path.with_extension(extension);
    if files.contains(&other) {
        return Ok(other);
    }
    Err(format!("{} is missing beside {}", other.display(), path.display()))
}

fn configuration(special: &Special, roots: &RootCertStore) -> Result<ClientConfig, String> {
    let named = |path: &Path, why: String| format!("{}: {why}", path.display());
    let mut roots = roots.clone();
    for path in &special.authorities {
        trust::add_file(&mut roots, path).map_err(|why| named(path, why))?;
    }
    let builder = trust::builder().map_err(|error| error.to_string())?;
    let provider = builder.crypto_provider().clone();
    let mut keys = Vec::new();
    for (certificate, key) in &special.clients {
        let chain = trust::certificates(certificate).map_err(|why| named(certificate, why))?;
        let private =
            PrivateKeyDer::from_pem_file(key).map_err(|error| named(key, error.to_string()))?;
        let pair = CertifiedKey::from_der(chain, private, &provider);
        keys.push(Arc::new(pair.map_err(|error| named(certificate, error.to_string()))?));
    }
    let builder = match special.unverified {
        true => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
        }
        false => builder.with_root_certificates(roots),
    };
    Ok(builder.with_client_cert_resolver(Arc::new(Clients(keys))))
}

/// The first client certificate whose key the registry can check.
#[derive(Debug)]
struct Clients(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Clients {
    fn resolve(
        &self,
        _authorities: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|pair| pair.key.choose_scheme(schemes).is_some()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// `--skip-tls-verify-registry`: any certificate will do; that the other side holds its key is still checked.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(options: &RegistryOptions) -> Vec<(String, Option<String>)> {
        let all = identities(options, &RootCertStore::empty()).unwrap();
        all.into_iter().map(|one| (one.host, one.tls.err())).collect()
    }

    #[test]
    fn a_broken_folder_is_told_only_for_its_registry() {
        let folder = tempfile::tempdir().unwrap();
        for (host, file) in
            [("A.test", "client.cert"), ("b.test:5000", "ca.crt"), ("c.test", "x.key")]
        {
            fs::create_dir(folder.path().join(host)).unwrap();
            fs::write(folder.path().join(host).join(file), "nonsense").unwrap();
        }
        fs::create_dir(folder.path().join("empty.test")).unwrap();
        let options = RegistryOptions {
            certificate_folders: vec!["/nonexistent".into(), folder.path().to_owned()],
            unverified: vec!["d.test".into()],
            ..RegistryOptions::default()
        };
        let found = hosts(&options);
        let names: Vec<&str> = found.iter().map(|(host, _)| host.as_str()).collect();
        assert_eq!(names, ["b.test:5000", "a.test", "c.test", "d.test", "empty.test"]);
        let why = |at: usize| found[at].1.clone().unwrap();
        assert!(why(0).contains("b.test:5000") && why(0).contains("ca.crt: it has no certificate"));
        assert!(why(1).contains("client.key is missing beside"), "{}", why(1));
        assert!(why(2).contains("x.cert is missing beside"), "{}", why(2));
        assert_eq!((&found[3].1, &found[4].1), (&None, &None));
    }

    #[test]
    fn a_named_file_must_be_usable() {
        let options = RegistryOptions {
            certificates: vec![("a.test".into(), "/nonexistent.pem".into())],
            ..RegistryOptions::default()
        };
        let error = identities(&options, &RootCertStore::empty()).unwrap_err();
        assert_eq!(error.class(), Class::Usage);
        assert!(error.title().contains("/nonexistent.pem"), "{error}");
    }
}
