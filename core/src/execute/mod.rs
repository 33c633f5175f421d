//! What each instruction does to a file tree.

pub mod add;
pub mod copy;
pub mod sandbox;
pub mod ssh;
pub mod users;
pub mod workdir;

mod target;
#[cfg(test)]
mod testing;
