use super::options::ClientOptions;
use std::sync::Arc;
pub(crate) fn tls() -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}
pub(crate) fn options() -> ClientOptions {
    ClientOptions::new(tls())
}
