//! Exchanges in temporary directories, with real mounts in a mount namespace of each test. They run as root.

mod crash;
mod delayer;
mod moves;
mod random;
mod tools;
mod volumes;
