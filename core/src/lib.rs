//! The builder behind bareboat: a Dockerfile and a request in, an OCI image out.
//!
//! Core prints nothing and reads no environment: events flow out through a [`event::Reporter`], and everything that a
//! build depends on flows in through a [`request::BuildRequest`].

pub mod build;
pub mod cache;
pub mod check;
pub mod context;
pub mod digest;
pub mod dockerfile;
pub mod error;
pub mod event;
pub mod execute;
pub mod fetch;
pub mod image;
pub mod layer;
pub mod output;
pub mod plan;
pub mod preview;
pub mod push;
pub mod registry;
pub mod request;
pub mod resolve;
pub mod rootfs;
pub mod secret;
pub mod snapshot;
pub mod solve;
pub mod store;
pub mod sys;
#[cfg(test)]
mod tables;
pub mod time;
pub mod transfer;
pub mod tree;

pub use error::{Class, Error};
pub use execute::sandbox::helper_main;
