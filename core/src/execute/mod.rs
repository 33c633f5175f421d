//! Executing a plan's steps.

pub mod sandbox;
