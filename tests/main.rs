//! The integration tests: the binary against real peers. Start them with tests/run, which installs and starts those.

mod architecture;
mod cache;
mod cli;
mod conformance;
mod crash;
mod dockerfile;
mod ecr;
mod flatten;
mod hostile;
mod image;
mod output;
mod peers_test;
mod places;
mod plan;
mod preflight;
mod registry;
mod reproducible;
mod static_binary;
mod support;
