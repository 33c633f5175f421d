//! Credentials for registries from files and variables, read where they are configured.

use std::{fs, io, io::Read, sync::Arc};

use bareboat_core::{
    Class, Error,
    registry::{
        Credential, CredentialKind, DockerConfigKeychain, Helpers, Keychain, StaticKeychain,
    },
    secret::Secret,
};

use crate::flags::{AuthFile, CredentialSources, JobCredential};

/// Far above any configuration of Docker's.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// What was found.
#[derive(Debug, Default)]
pub struct Credentials {
    /// Configurations in Docker's form, in order: their names for messages, and their bytes.
    pub configs: Vec<(String, Secret<Vec<u8>>)>,
    /// How many of them, at the front, were named for this call.
    pub named: usize,
    /// Asked after all others.
    pub jobs: Vec<JobCredential>,
}

/// Reads what `sources` names.
///
/// # Errors
/// A file that was named is missing; one that is there can't be read.
pub fn read(sources: &CredentialSources) -> Result<Credentials, Error> {
    let mut configs = Vec::new();
    for file in &sources.files {
        if let Some(bytes) = read_file(file)? {
            configs.push((file.path.display().to_string(), Secret::new(bytes)));
        }
    }
    let text = sources.text.as_ref().map(|text| Secret::new(text.expose().clone().into_bytes()));
    configs.extend(text.map(|bytes| ("DOCKER_AUTH_CONFIG".to_owned(), bytes)));
    let named = sources.files.iter().filter(|file| file.named_by.is_some()).count();
    Ok(Credentials { configs, named, jobs: sources.jobs.clone() })
}

fn read_file(file: &AuthFile) -> Result<Option<Vec<u8>>, Error> {
    let path = file.path.display();
    let wrong = |error: io::Error| match file.named_by {
        Some(named_by) => Error::new(Class::Usage, format!("{named_by} {path}: {error}"))
            .hint("it names a file in the form of Docker's config.json"),
        None => Error::new(Class::Usage, format!("the credentials in {path}: {error}"))
            .hint("it is read because it is there: correct it, or take it away"),
    };
    let opened = match fs::File::open(&file.path) {
        Err(error) if file.named_by.is_none() && is_missing(&error) => return Ok(None),
        opened => opened.map_err(wrong)?,
    };
    let mut bytes = Vec::new();
    opened.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(wrong)?;
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        return Err(wrong(io::Error::other("it is too large")));
    }
    // `podman logout` and others may leave an empty file at a usual place.
    Ok(Some(bytes).filter(|bytes| file.named_by.is_some() || !bytes.is_empty()))
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The configurations as keychains, in the same order.
///
/// # Errors
/// One of them is not in Docker's form.
pub fn parse(
    configs: &[(String, Secret<Vec<u8>>)],
    helpers: &Helpers,
) -> Result<Vec<DockerConfigKeychain>, Error> {
    let keychain = |(name, bytes): &(String, Secret<Vec<u8>>)| {
        DockerConfigKeychain::new(name, bytes.expose(), Some(helpers.clone()))
            .map_err(|error| Error::from_cause(Class::Usage, error))
    };
    configs.iter().map(keychain).collect()
}

/// What CI systems give their jobs, as keychains.
pub fn of_jobs(jobs: Vec<JobCredential>) -> impl Iterator<Item = Arc<dyn Keychain>> {
    jobs.into_iter().map(|job| -> Arc<dyn Keychain> {
        let JobCredential { registry, source, username, password } = job;
        let kind = CredentialKind::Password { username, password };
        let credential = Credential { source: source.to_owned(), kind };
        Arc::new(StaticKeychain::new(&registry, credential))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn file(path: &Path, named_by: Option<&'static str>) -> AuthFile {
        AuthFile { path: path.to_owned(), named_by }
    }

    #[test]
    fn a_file_that_was_named_must_be_there_and_others_need_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        assert_eq!(read_file(&file(&path, None)).unwrap(), None);
        assert_eq!(read_file(&file(&path.join("below"), None)).unwrap(), None);
        let missing = read_file(&file(&path, Some("--authfile"))).unwrap_err();
        assert!(missing.title().starts_with("--authfile"), "{missing:?}");
        fs::write(&path, "").unwrap();
        assert_eq!(read_file(&file(&path, None)).unwrap(), None);
        fs::write(&path, "{}").unwrap();
        assert_eq!(read_file(&file(&path, None)).unwrap(), Some(b"{}".to_vec()));
        let folder = read_file(&file(folder.path(), None)).unwrap_err();
        assert!(folder.title().contains("the credentials in"), "{folder:?}");
    }

    #[test]
    fn the_variable_comes_after_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, "{}").unwrap();
        let sources = CredentialSources {
            files: vec![file(&path, None)],
            text: Some(Secret::new("{}".into())),
            jobs: Vec::new(),
        };
        let names: Vec<_> = read(&sources).unwrap().configs.into_iter().map(|c| c.0).collect();
        assert_eq!(names, [path.display().to_string(), "DOCKER_AUTH_CONFIG".into()]);
    }
}
