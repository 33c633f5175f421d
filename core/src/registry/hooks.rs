//! What a registry can do beyond the distribution-spec: a port that adapters implement.

use std::fmt;

use super::{BoxFuture, KeychainError, RegistryError, Repository};

/// Speaks for the registries of one provider: what their answers mean, and what their own API can do.
pub trait RegistryHooks: Send + Sync {
    /// Whether `registry` (canonical) is one of the provider's. For others nothing else is called.
    ///
    /// What a pull from one of them means: a tag is asked for by GET, because a HEAD does not fill a pull-through cache,
    /// and so is the tag of a reference that has a digest too; the first import may take minutes.
    fn knows(&self, registry: &str) -> bool;

    /// The registry said that `repository` is missing. Returns whether it exists now, and asking again makes sense;
    /// `false` where it is not to be created. Called by several uploads at once.
    ///
    /// # Errors
    /// It was to be created and that failed.
    fn create_repository<'a>(
        &'a self,
        repository: &'a Repository,
    ) -> BoxFuture<'a, Result<bool, KeychainError>>;

    /// Whether `tag` in `repository` can't be moved to other content, as far as that can be found out.
    fn keeps_tag<'a>(&'a self, repository: &'a Repository, tag: &'a str) -> BoxFuture<'a, bool>;

    /// What to do about `error`, which ends a pull or a push; `None` where nothing better than the general hint is known.
    fn advise<'a>(
        &'a self,
        repository: &'a Repository,
        error: &'a RegistryError,
    ) -> BoxFuture<'a, Option<String>>;
}

impl fmt::Debug for dyn RegistryHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistryHooks")
    }
}
