//! What a registry says to this client, for `bareboat doctor`.

use super::{
    client::Client,
    error::{RefusalKind, RegistryError},
    reference::{Reference, Repository},
};
use crate::digest::Digest;

/// How a registry answers to a reference.
#[derive(Debug)]
pub struct Diagnosis {
    /// Where the credentials come from that would be shown; `None`: anonymous. Never their value.
    pub credentials: Result<Option<String>, RegistryError>,
    /// The digest that the reference has there; `None` where the registry answers, but has no such image.
    pub answer: Result<Option<Digest>, RegistryError>,
}

impl Client {
    /// Looks for credentials, and asks for the reference's manifest.
    pub async fn diagnose(&self, reference: &Reference) -> Result<Diagnosis, RegistryError> {
        let endpoint = self.shared.endpoint(&Repository::from(reference))?;
        let found =
            self.shared.keychain.credential(&endpoint.host.name, &endpoint.repository).await;
        let credentials = found.map(|found| found.map(|credential| credential.source));
        let answer = match self.resolve(reference).await {
            Ok(resolved) => Ok(Some(resolved.digest)),
            Err(error) => match error.kind() {
                Some(
                    RefusalKind::NotFound | RefusalKind::ManifestUnknown | RefusalKind::NameUnknown,
                ) => Ok(None),
                _ => Err(error),
            },
        };
        Ok(Diagnosis { credentials: credentials.map_err(RegistryError::from), answer })
    }
}
