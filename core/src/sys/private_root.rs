//! placeholder of the lead's branch until the real one is merged
pub fn is_entered() -> bool {
    false
}
