//! The integration tests: the binary against real peers. Start them with tests/run, which installs and starts those.

mod peers_test;
mod support;
