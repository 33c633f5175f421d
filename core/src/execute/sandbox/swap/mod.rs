//! The `swap` rung: RUN at the container's own root, where nothing can be mounted.

pub mod exchange;
