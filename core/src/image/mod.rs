//! OCI documents: platform, config, manifest, and a whole image as it leaves the build.

pub mod annotations;
pub mod config;
pub mod layout;
pub mod manifest;
pub mod platform;

pub use config::{ContainerConfig, HealthConfig, History, ImageConfig};
pub use manifest::{Artifact, Image};
