//! OCI documents: platform, config, manifest, index (image-spec 1.1).

pub mod platform;
