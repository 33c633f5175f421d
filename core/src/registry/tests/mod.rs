//! The client against a registry that misbehaves.

mod auth;
mod hooks;
mod proxy;
mod pull;
mod redirects;
mod upload;
