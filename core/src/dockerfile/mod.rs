//! PARSE: bytes -> Dockerfile and diagnostics with spans. Pure: no I/O here (invariant 1).

pub mod ast;
