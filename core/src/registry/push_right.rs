//! Whether a repository may be pushed to, found out by opening an upload before anything is built.

use std::sync::PoisonError;

use reqwest::{Method, StatusCode};
use url::Url;

use super::{
    auth::Access,
    client::{Client, Endpoint, Shared},
    error::{RefusalKind, RegistryError},
    host::shown,
    reference::Repository,
    transport::Target,
    upload::session,
};

/// A registry that is down shall not hold up the other checks.
const TRIES: u32 = 2;

impl Client {
    /// Opens an upload in `repository`, which the first blob that is sent there uses. A repository that is missing, and
    /// that the registry's provider is to create, is created.
    ///
    /// # Errors
    /// The registry's refusal: no such repository, no right, no credentials; or it can't be reached.
    pub async fn check_push(&self, repository: &Repository) -> Result<(), RegistryError> {
        let Err(error) = self.open_upload(repository).await else { return Ok(()) };
        let missing = matches!(error, RegistryError::UploadClosed { .. })
            || error.kind() == Some(RefusalKind::NameUnknown);
        // It may take a moment until the registry knows it; the first blob waits for that.
        if missing && self.create_repository(repository).await? {
            return Ok(());
        }
        Err(self.advised(repository, error).await)
    }

    async fn open_upload(&self, repository: &Repository) -> Result<(), RegistryError> {
        let endpoint = self.shared.endpoint(repository)?;
        let access = Access::push(&endpoint.repository);
        let mut call = endpoint.call(Method::POST, "blobs/uploads/", access, self.limits());
        call.tries = TRIES;
        let answer = match self.shared.send(&call).await {
            Ok(answer) => answer,
            Err(RegistryError::Broken { .. }) => {
                return Err(RegistryError::UploadClosed {
                    registry: endpoint.host.name.clone(),
                    repository: endpoint.repository.clone(),
                });
            }
            Err(error) => return Err(error),
        };
        if answer.response.status() != StatusCode::ACCEPTED {
            let status = answer.response.status();
            let reason = format!("unexpected status {status} to the start of an upload");
            return Err(RegistryError::Answer { url: shown(&answer.url), reason });
        }
        let session = session(&self.shared, &endpoint, &answer)?;
        let mut sessions = self.shared.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.insert(session_key(&endpoint), session);
        Ok(())
    }

    /// Ends the uploads that [`check_push`](Client::check_push) opened and no blob has used. What fails is left to the
    /// registry, which ends such uploads itself after a while.
    pub async fn cancel_unused_uploads(&self) {
        let sessions = std::mem::take(
            &mut *self.shared.sessions.lock().unwrap_or_else(PoisonError::into_inner),
        );
        let cancel = sessions.into_iter().map(|((registry, name), url)| async move {
            let endpoint = self.shared.endpoint(&Repository { registry, name })?;
            let access = Access::push(&endpoint.repository);
            let mut call = endpoint.call(Method::DELETE, "", access, self.limits()).once();
            call.target = Target::Url(url);
            self.shared.send(&call).await.map(drop)
        });
        for canceled in futures_util::future::join_all(cancel).await {
            if let Err(error) = canceled {
                tracing::debug!(%error, "an upload was not canceled");
            }
        }
    }
}

impl Shared {
    /// An upload that is open already, for one blob.
    pub(super) fn take_session(&self, endpoint: &Endpoint) -> Option<Url> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.remove(&session_key(endpoint))
    }
}

fn session_key(endpoint: &Endpoint) -> (String, String) {
    (endpoint.host.name.clone(), endpoint.repository.clone())
}
