//! The client against a registry that misbehaves.

mod auth;
mod proxy;
mod pull;
mod redirects;
mod upload;
