//! What the suites share: running the binary, reading what it made, forging what it must survive.

pub mod build;
pub mod canary;
pub mod fake_registry;
pub mod files;
pub mod forge;
pub mod gate;
pub mod http;
pub mod layout;
pub mod oci;
pub mod peers;
pub mod places;
pub mod process;
pub mod stack;
pub mod store;
pub mod tar_forge;
pub mod tree;

pub use build::{Build, Outcome, binary};
pub use canary::Canary;
pub use fake_registry::FakeRegistry;
pub use files::FileServer;
pub use forge::ImageForge;
pub use gate::Gate;
pub use layout::Layout;
pub use peers::Peers;
pub use stack::Stack;
pub use tar_forge::{Member, TarForge};
pub use tree::{Kind, Tree};
