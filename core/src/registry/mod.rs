//! Registries: an asynchronous client for the OCI distribution-spec, with our own transport.
//!
//! Names are `oci-distribution`'s [`Reference`]; everything that goes over the wire is decided here: which tries are
//! repeated, where redirects may lead, who gets a credential, which documents are believed.

mod address;
pub mod auth;
mod blob;
mod client;
mod connect;
mod diagnose;
pub mod error;
mod fetch;
mod hooks;
mod host;
pub mod manifest;
mod names;
mod options;
mod pattern;
mod push_right;
pub mod reference;
pub(crate) mod retry;
mod select;
mod source;
pub mod strict_json;
mod transport;
mod upload;

pub use auth::{
    docker_config::{DockerConfigKeychain, Helpers},
    keychain::{
        Anonymous, BoxFuture, ChainKeychain, Credential, CredentialKind, Keychain, KeychainError,
        StaticKeychain,
    },
};
pub use blob::BlobStream;
pub use client::{Client, ClientStats};
pub use connect::service_client;
pub use diagnose::Diagnosis;
pub use error::{ConnectFailure, Refusal, RefusalKind, RegistryError};
pub use fetch::Resolved;
pub use hooks::RegistryHooks;
pub use manifest::{Descriptor, FetchedManifest, ImageIndex, ImageManifest, Manifest};
pub use names::{NameError, Names};
pub use options::{ClientOptions, Limits, Proxies, TlsIdentity};
pub use reference::{PinnedReference, Reference, ReferenceError, Repository};
pub use select::{SelectError, select_platform};
pub use upload::{BlobSource, Progress, UploadOutcome};

pub(crate) use address::Reach;
pub(crate) use blob::{Body, check_range};
pub(crate) use connect::Http;
pub(crate) use error::printable;
pub(crate) use host::{same_origin, shown};
pub(crate) use transport::{Answer, execute};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
