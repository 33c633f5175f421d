//! Registries by their real names, as the product meets them: in the stack's namespace, with no flag that says so.

mod login;
mod push;
mod repositories;
mod stack_test;
