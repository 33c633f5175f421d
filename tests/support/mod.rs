//! What the suites share: running the binary, reading what it made, forging what it must survive.

pub mod build;
pub mod canary;
pub mod fake_registry;
pub mod forge;
pub mod http;
pub mod layout;
pub mod oci;
pub mod peers;
pub mod process;
pub mod tar_forge;
pub mod tree;

pub use build::{Build, Outcome};
pub use canary::Canary;
pub use fake_registry::FakeRegistry;
pub use forge::ImageForge;
pub use layout::Layout;
pub use peers::Peers;
pub use tar_forge::{Member, TarForge};
pub use tree::{Entry, Kind, Tree};
