//! The build context and named contexts.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use bareboat_core::{
    Class, Error,
    request::{ContextSource, NamedContext},
};

use crate::flags::Environment;

/// The CONTEXT argument.
pub fn context(typed: &OsStr, environment: &Environment) -> Result<ContextSource, Error> {
    if typed == "-" {
        refuse_terminal("the build context", environment)?;
        return Ok(ContextSource::Stdin);
    }
    if typed.is_empty() {
        return Err(Error::new(Class::Usage, "the build context is an empty name"));
    }
    let path = Path::new(typed);
    let text = typed.to_string_lossy();
    if is_remote(&text) && !path.exists() {
        return Err(Error::new(
            Class::Usage,
            format!("build context {text}: remote contexts are not supported"),
        )
        .hint(
            "fetch it first and name the directory, or pipe a tar into it and name the context -",
        ));
    }
    let found = fs::metadata(path).map_err(|error| missing(path, &error))?;
    match found {
        _ if found.is_dir() => Ok(ContextSource::Directory(path.to_owned())),
        _ if found.is_file() => Ok(ContextSource::TarFile(path.to_owned())),
        _ => Err(invalid(format!(
            "build context {}: neither a directory nor a file",
            path.display()
        ))),
    }
}

/// The Dockerfile of `-f`; `-` is standard input.
pub fn dockerfile(
    typed: PathBuf,
    context: &ContextSource,
    environment: &Environment,
) -> Result<PathBuf, Error> {
    if typed.as_os_str() != "-" {
        return Ok(typed);
    }
    if *context == ContextSource::Stdin {
        return Err(Error::new(
            Class::Usage,
            "both the Dockerfile and the context come from standard input",
        ));
    }
    refuse_terminal("the Dockerfile", environment)?;
    Ok(PathBuf::from("/dev/stdin"))
}

fn refuse_terminal(what: &str, environment: &Environment) -> Result<(), Error> {
    if environment.stdin_is_terminal {
        return Err(Error::new(Class::Usage, format!("{what} is not read from a terminal")));
    }
    Ok(())
}

/// What git, http and object store sources look like to `docker build`.
fn is_remote(text: &str) -> bool {
    text.contains("://") || text.starts_with("git@") || text.starts_with("github.com/")
}

fn missing(path: &Path, error: &io::Error) -> Error {
    invalid(format!("build context {}: {error}", path.display()))
        .hint("name the directory that the Dockerfile's COPY reads from, such as .")
}

fn invalid(title: String) -> Error {
    Error::new(Class::Input, title)
}

/// All `--build-context NAME=SOURCE`; later wins.
pub fn named_contexts(values: Vec<String>) -> Result<BTreeMap<String, NamedContext>, Error> {
    values.iter().map(|value| named_context(value)).collect()
}

fn named_context(text: &str) -> Result<(String, NamedContext), Error> {
    let pair = text.split_once('=').filter(|(name, source)| !name.is_empty() && !source.is_empty());
    let (name, source) = pair.ok_or_else(|| {
        Error::new(Class::Usage, format!("--build-context: {text:?} is not NAME=SOURCE"))
    })?;
    let source = if let Some(image) = source.strip_prefix("docker-image://") {
        image_context(name, image)?
    } else if let Some(layout) = source.strip_prefix("oci-layout://") {
        layout_context(name, layout)?
    } else {
        directory_context(name, source)?
    };
    Ok((name.to_owned(), source))
}

fn image_context(name: &str, image: &str) -> Result<NamedContext, Error> {
    if image.is_empty() {
        return Err(Error::new(
            Class::Usage,
            format!("--build-context {name}: docker-image:// names no image"),
        ));
    }
    Ok(NamedContext::Image(image.to_owned()))
}

/// `PATH[:TAG][@DIGEST]`: the tag is what follows a colon in the last part of the path.
fn layout_context(name: &str, text: &str) -> Result<NamedContext, Error> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.to_owned())),
        None => (text, None),
    };
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_owned())),
        _ => (rest, None),
    };
    let path = existing(name, path)?;
    if !path.join("index.json").is_file() {
        return Err(invalid(format!(
            "--build-context {name}: {} is no OCI layout: it has no index.json",
            path.display()
        )));
    }
    Ok(NamedContext::Layout { path, tag, digest })
}

fn directory_context(name: &str, source: &str) -> Result<NamedContext, Error> {
    let scheme = source.split_once(':').map(|(scheme, _)| scheme);
    let refused = is_remote(source) || matches!(scheme, Some("target" | "input"));
    if refused && !Path::new(source).exists() {
        return Err(Error::new(
            Class::Usage,
            format!("--build-context {name}: {source} is not supported"),
        )
        .hint("a directory, docker-image://REF or oci-layout://PATH[:TAG][@DIGEST]"));
    }
    existing(name, source).map(NamedContext::Directory)
}

fn existing(name: &str, path: &str) -> Result<PathBuf, Error> {
    let found = fs::metadata(path)
        .map_err(|error| invalid(format!("--build-context {name}: {path}: {error}")))?;
    if !found.is_dir() {
        return Err(invalid(format!("--build-context {name}: {path} is not a directory")));
    }
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(typed: &str) -> Result<ContextSource, Error> {
        context(typed.as_ref(), &Environment::default())
    }

    #[test]
    fn directories_files_and_standard_input() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.tar");
        fs::write(&file, b"").unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(of(path).unwrap(), ContextSource::Directory(path.into()));
        assert_eq!(of(file.to_str().unwrap()).unwrap(), ContextSource::TarFile(file));
        assert_eq!(of("-").unwrap(), ContextSource::Stdin);
    }

    #[test]
    fn what_is_missing_is_invalid_and_what_is_remote_is_refused() {
        assert_eq!(of("/nonexistent").unwrap_err().class(), Class::Input);
        assert_eq!(of("/dev/null").unwrap_err().class(), Class::Input);
        assert_eq!(of("").unwrap_err().class(), Class::Usage);
        for url in [
            "https://github.com/a/b.git#main",
            "git@github.com:a/b",
            "github.com/a/b",
            "s3://b/k",
            "http://h/c.tgz",
        ] {
            let error = of(url).unwrap_err();
            assert_eq!(error.class(), Class::Usage, "{url}");
            assert!(error.title().contains(url) && error.hint_text().is_some(), "{url}");
        }
    }

    #[test]
    fn standard_input_is_used_once_and_never_a_terminal() {
        let environment = Environment { stdin_is_terminal: true, ..Environment::default() };
        assert!(context("-".as_ref(), &environment).is_err());
        let directory = ContextSource::Directory(".".into());
        assert!(dockerfile("-".into(), &directory, &environment).is_err());
        assert!(dockerfile("-".into(), &ContextSource::Stdin, &Environment::default()).is_err());
        let read = dockerfile("-".into(), &directory, &Environment::default()).unwrap();
        assert_eq!(read, Path::new("/dev/stdin"));
        assert_eq!(dockerfile("a/D".into(), &directory, &environment).unwrap(), Path::new("a/D"));
    }

    #[test]
    fn named_contexts_take_their_forms() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let source = |text: String| named_context(&text).map(|(_, source)| source);
        assert_eq!(source(format!("a={path}")).unwrap(), NamedContext::Directory(path.into()));
        assert_eq!(
            source("a=docker-image://b:1".into()).unwrap(),
            NamedContext::Image("b:1".into())
        );
        assert!(
            source(format!("a=oci-layout://{path}")).unwrap_err().title().contains("index.json")
        );
        fs::write(folder.path().join("index.json"), b"{}").unwrap();
        let layout = |tag: Option<&str>, digest: Option<&str>| NamedContext::Layout {
            path: path.into(),
            tag: tag.map(Into::into),
            digest: digest.map(Into::into),
        };
        assert_eq!(source(format!("a=oci-layout://{path}")).unwrap(), layout(None, None));
        assert_eq!(source(format!("a=oci-layout://{path}:v1")).unwrap(), layout(Some("v1"), None));
        assert_eq!(
            source(format!("a=oci-layout://{path}@sha256:ab")).unwrap(),
            layout(None, Some("sha256:ab"))
        );
        assert_eq!(
            source(format!("a=oci-layout://{path}:v1@sha256:ab")).unwrap(),
            layout(Some("v1"), Some("sha256:ab"))
        );
    }

    #[test]
    fn named_contexts_refuse_the_rest() {
        for text in [
            "a",
            "=b",
            "a=",
            "a=/nonexistent",
            "a=/dev/null",
            "a=https://x",
            "a=target:b",
            "a=docker-image://",
            "a=oci-layout:///nonexistent",
        ] {
            assert!(named_context(text).is_err(), "{text}");
        }
    }
}
