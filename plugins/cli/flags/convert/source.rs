//! The build context and named contexts.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use bareboat_core::{
    Class, Error,
    fetch::{GitReference, git_reference, without_password},
    request::{ContextSource, NamedContext},
    secret::Secret,
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
    if !path.exists() {
        match remote("build context", &text)? {
            Some(Remote::Git(reference)) => return Ok(ContextSource::Git(reference)),
            Some(Remote::Url(url)) => return Ok(ContextSource::Url(url)),
            None => {}
        }
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

/// A source that is fetched.
enum Remote {
    Git(Box<GitReference>),
    Url(Secret<String>),
}

/// `text` as BuildKit takes it: a Git repository, or an http(s) URL. `None`: a path.
fn remote(what: &str, text: &str) -> Result<Option<Remote>, Error> {
    let shown = without_password(text);
    let reference = git_reference::parse(text)
        .map_err(|error| Error::new(Class::Usage, format!("{what} {shown}: {error}")))?;
    if let Some(reference) = reference {
        return Ok(Some(Remote::Git(Box::new(reference))));
    }
    if text.starts_with("http://") || text.starts_with("https://") {
        return Ok(Some(Remote::Url(Secret::new(text.to_owned()))));
    }
    match text.contains("://") {
        true => Err(Error::new(Class::Usage, format!("{what} {shown} is not supported"))
            .hint("a directory, a Git repository or an http(s) URL")),
        false => Ok(None),
    }
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
        other_context(name, source)?
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

/// A directory, a Git repository or a URL.
fn other_context(name: &str, source: &str) -> Result<NamedContext, Error> {
    if !Path::new(source).exists() {
        if let Some("target" | "input") = source.split_once(':').map(|(scheme, _)| scheme) {
            let title = format!("--build-context {name}: {source} is not supported");
            return Err(Error::new(Class::Usage, title)
                .hint("targets of other builds belong to bake: build that one first, and name its image or layout"));
        }
        match remote(&format!("--build-context {name}:"), source)? {
            Some(Remote::Git(reference)) => return Ok(NamedContext::Git(reference)),
            Some(Remote::Url(url)) => return Ok(NamedContext::Url(url)),
            None => {}
        }
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
    fn what_is_missing_is_invalid_and_what_nobody_can_fetch_is_refused() {
        assert_eq!(of("/nonexistent").unwrap_err().class(), Class::Input);
        assert_eq!(of("/dev/null").unwrap_err().class(), Class::Input);
        assert_eq!(of("").unwrap_err().class(), Class::Usage);
        for url in ["s3://b/k", "ftp://h/x", "https://u:pw@h/x.git?nope=1"] {
            let error = of(url).unwrap_err();
            assert_eq!(error.class(), Class::Usage, "{url}");
            assert!(!error.title().contains("pw"), "{url}");
        }
    }

    #[test]
    fn repositories_and_urls() {
        for (text, remote) in [
            ("https://github.com/a/b.git#main:sub", "https://github.com/a/b.git"),
            ("git@github.com:a/b", "git@github.com:a/b"),
            ("github.com/a/b", "https://github.com/a/b"),
            ("ssh://git@h/a", "ssh://git@h/a"),
            ("git://h/a", "git://h/a"),
        ] {
            let ContextSource::Git(reference) = of(text).unwrap() else { panic!("{text}") };
            assert_eq!(reference.remote.url, remote);
            let named = named_context(&format!("a={text}")).unwrap().1;
            assert_eq!(named, NamedContext::Git(reference));
        }
        let url = "http://u:p@h/c.tgz?x=1";
        assert_eq!(of(url).unwrap(), ContextSource::Url(Secret::new(url.into())));
        let named = named_context(&format!("a={url}")).unwrap().1;
        assert_eq!(named, NamedContext::Url(Secret::new(url.into())));
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
            "a=s3://b/k",
            "a=target:b",
            "a=docker-image://",
            "a=oci-layout:///nonexistent",
        ] {
            assert!(named_context(text).is_err(), "{text}");
        }
    }
}
