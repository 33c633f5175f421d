//! The client against a registry that misbehaves.

mod auth;
mod pull;
mod redirects;
mod upload;
