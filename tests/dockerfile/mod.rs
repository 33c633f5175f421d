//! Dockerfiles as people write them every day. What each instruction does in detail is the golden cases' business.

mod contexts;
mod everyday;
mod ssh;
mod stages;
