//! Arguments in two steps: a dumb [`RawRequest`] of what was typed, then one conversion into what is meant.

mod convert;
mod environment;
mod parser;
mod raw;
pub mod table;

pub use convert::{
    AuthFile, Build, Check, CredentialSources, Invocation, JobCredential, Plan, Progress,
    RegistryOptions, Task, Transfer, TransferRequest, convert, no_state_directory,
};
pub use environment::Environment;
pub use parser::parse;
pub use raw::RawRequest;
