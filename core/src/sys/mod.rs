//! The only room for `unsafe` and raw system calls. What rustix has is wrapped only where a fallback or a rule is added.
#![allow(unsafe_code)]

pub mod credentials;
pub mod fs;
pub mod landlock;
pub mod mount;
pub mod namespace;
pub mod network;
pub mod private_root;
pub mod process;
pub mod remove;
pub mod resolve;
pub mod seccomp;
pub mod xattr;
