//! Registries by their real names, as the product meets them: in the stack's namespace, with no flag that says so.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

mod credentials;
mod faults;
mod hostile;
mod login;
mod push;
mod repositories;
mod stack_test;
mod tokens;
mod trust;

/// Docker's configuration with one password.
fn login(registry: &str, user: &str, password: &str) -> Value {
    json!({"auths": {registry: {"auth": BASE64.encode(format!("{user}:{password}"))}}})
}
