//! Everything that has a path, opened or read at the start.
//!
//! **The seam**: after [`Files::open`] nothing in this crate opens a path. The builder may change its root while a step's
//! tree stands at `/`; from then on a path names something of the image. Token files that are replaced while the build
//! runs (projected service account tokens) are read again through a handle of their directory. The one exception is
//! `credential_process` of a profile, which runs a program and can be asked only while no tree stands there.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    fs::File,
    io::Read,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use aws_config::profile::{self, ProfileSet};
use aws_types::os_shim_internal::{Env, Fs};
use rustix::fs::{Mode, OFlags};

use crate::error::AwsError;

/// Kubernetes' and GitHub's tokens are about 2 KiB.
const TOKEN_BYTES_MAX: u64 = 64 << 10;
const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// The variables that AWS's own tools read, as they were when the build began.
#[derive(Clone, Debug, Default)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    pub fn new(all: impl IntoIterator<Item = (String, String)>) -> Self {
        Variables(all.into_iter().collect())
    }

    /// A variable that is set and not blank, trimmed.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    pub fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    pub(crate) fn to_env(&self) -> Env {
        Env::from(self.0.clone().into_iter().collect::<HashMap<_, _>>())
    }
}

/// The AWS configuration of this host.
#[derive(Debug)]
pub struct Files {
    pub(crate) variables: Variables,
    pub(crate) env: Env,
    /// Holds the configuration files' bytes; it knows no other file.
    pub(crate) fs: Fs,
    /// A file that can't be parsed is told when a profile is wanted.
    pub(crate) profiles: Result<ProfileSet, AwsError>,
    /// By the path that names them.
    tokens: BTreeMap<PathBuf, Result<TokenFile, String>>,
}

impl Files {
    /// Reads the configuration files and opens the directories of token files.
    /// One that can't be read counts as absent, as in the SDK.
    pub async fn open(variables: Variables) -> Self {
        let env = variables.to_env();
        let fs = Fs::from_raw_map(config_files(&variables));
        let profiles = profile::load(&fs, &env, &Default::default(), None).await;
        let profiles = profiles.map_err(|error| AwsError::ConfigFile(error.to_string()));
        let mut files = Files { variables, env, fs, profiles, tokens: BTreeMap::new() };
        files.open_tokens();
        files
    }

    fn open_tokens(&mut self) {
        let named = ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"];
        let mut paths: Vec<PathBuf> =
            named.iter().filter_map(|name| self.variables.get(name)).map(PathBuf::from).collect();
        if let Ok(set) = &self.profiles {
            let profiles = set.profiles().filter_map(|name| set.get_profile(name));
            let named = profiles.filter_map(|profile| profile.get("web_identity_token_file"));
            paths.extend(named.map(PathBuf::from));
        }
        for path in paths {
            let opened = TokenFile::open(&path);
            self.tokens.insert(path, opened);
        }
    }

    /// The token in the file `path`, as it is now, without the white space around it.
    ///
    /// # Errors
    /// Says why it can't be read.
    pub(crate) fn token(&self, path: &str) -> Result<String, String> {
        match self.tokens.get(Path::new(path)) {
            Some(Ok(file)) => file.read().map_err(|error| format!("{path}: {error}")),
            Some(Err(error)) => Err(format!("{path}: {error}")),
            None => Err(format!("{path}: it was not there when the build began")),
        }
    }
}

fn config_files(variables: &Variables) -> HashMap<OsString, Vec<u8>> {
    let mut found = HashMap::new();
    for (variable, default) in [
        ("AWS_CONFIG_FILE", "~/.aws/config"),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
    ] {
        let path = variables.get(variable).unwrap_or(default);
        let path = match (path.strip_prefix("~/"), variables.get("HOME")) {
            (Some(rest), Some(home)) => Path::new(home).join(rest),
            (Some(_), None) => continue,
            (None, _) => PathBuf::from(path),
        };
        match read_limited(File::open(&path), CONFIG_BYTES_MAX) {
            Ok(bytes) => {
                found.insert(path.into_os_string(), bytes);
            }
            Err(error) => tracing::debug!(path = %path.display(), %error, "no AWS configuration"),
        }
    }
    found
}

fn read_limited(file: std::io::Result<File>, max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file?.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(std::io::Error::other("it is too large"));
    }
    Ok(bytes)
}

/// A file that is replaced from time to time.
#[derive(Debug)]
struct TokenFile {
    directory: OwnedFd,
    name: OsString,
}

impl TokenFile {
    fn open(path: &Path) -> Result<Self, String> {
        let name = path.file_name().ok_or("it is not the name of a file")?.to_owned();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent.unwrap_or(Path::new(".")), flags, Mode::empty());
        let directory = directory.map_err(|error| error.to_string())?;
        Ok(TokenFile { directory, name })
    }

    fn read(&self) -> Result<String, String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&self.directory, &self.name, flags, Mode::empty());
        let file = file.map(File::from).map_err(std::io::Error::from);
        let bytes = read_limited(file, TOKEN_BYTES_MAX).map_err(|error| error.to_string())?;
        let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
        let text = text.trim();
        if text.is_empty() {
            return Err("it is empty".into());
        }
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        Variables::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[tokio::test]
    async fn a_token_that_is_replaced_is_read_again_even_when_its_path_leads_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = folder.path().join("tokens");
        fs::create_dir_all(tokens.join("..1")).unwrap();
        fs::write(tokens.join("..1/token"), "first\n").unwrap();
        // As Kubernetes lays projected tokens out.
        symlink("..1", tokens.join("..data")).unwrap();
        symlink("..data/token", tokens.join("token")).unwrap();
        let path = tokens.join("token").display().to_string();
        let files = variables(&[("AWS_WEB_IDENTITY_TOKEN_FILE", &path)]);
        let files = Files::open(files).await;
        assert_eq!(files.token(&path).unwrap(), "first");
        fs::create_dir(tokens.join("..2")).unwrap();
        fs::write(tokens.join("..2/token"), " second \n").unwrap();
        fs::remove_file(tokens.join("..data")).unwrap();
        symlink("..2", tokens.join("..data")).unwrap();
        // What an image could put in its place.
        fs::rename(&tokens, folder.path().join("moved")).unwrap();
        fs::create_dir(&tokens).unwrap();
        fs::write(tokens.join("token"), "the image's").unwrap();
        assert_eq!(files.token(&path).unwrap(), "second");
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_token_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(path("empty"), "\n").unwrap();
        fs::write(path("large"), vec![b'x'; 65 << 10]).unwrap();
        for (name, words) in [("empty", "empty"), ("large", "too large"), ("none", "No such file")]
        {
            let files = variables(&[("AWS_WEB_IDENTITY_TOKEN_FILE", &path(name))]);
            let error = Files::open(files).await.token(&path(name)).unwrap_err();
            assert!(error.contains(words) && error.contains(name), "{error}");
        }
        let files = variables(&[("AWS_WEB_IDENTITY_TOKEN_FILE", &path("none/token"))]);
        let files = Files::open(files).await;
        assert!(files.token(&path("none/token")).is_err());
        assert!(files.token("/etc/hostname").unwrap_err().contains("when the build began"));
    }

    #[tokio::test]
    async fn configuration_is_read_once_from_where_the_variables_say() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join(".aws")).unwrap();
        fs::write(home.path().join(".aws/config"), "[profile a]\nregion = x\n").unwrap();
        fs::write(home.path().join("other"), "[b]\naws_access_key_id = k\n").unwrap();
        let home = home.path().display().to_string();
        let pairs = [("HOME", home.as_str()), ("AWS_SHARED_CREDENTIALS_FILE", "~/other")];
        let files = Files::open(variables(&pairs)).await;
        assert!(files.profiles.as_ref().unwrap().get_profile("a").is_some());
        assert!(files.profiles.as_ref().unwrap().get_profile("b").is_some());
        fs::write(format!("{home}/.aws/config"), "[broken").unwrap();
        assert!(files.profiles.as_ref().unwrap().get_profile("a").is_some());
        let error = Files::open(variables(&pairs)).await.profiles.unwrap_err().to_string();
        assert!(error.contains("config"), "{error}");
    }

    #[test]
    fn blank_variables_are_none() {
        let variables = variables(&[("A", " "), ("B", " b "), ("C", "TRUE")]);
        assert_eq!((variables.get("A"), variables.get("B")), (None, Some("b")));
        assert!(variables.is_true("C") && !variables.is_true("B"));
    }
}
