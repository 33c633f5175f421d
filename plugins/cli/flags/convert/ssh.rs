//! `--ssh ID[=SOCKET|KEY[,KEY…]]`.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use bareboat_core::{Class, Error, request::SshSource};

use crate::flags::Environment;

/// All `--ssh`, by id.
pub fn sources(
    values: &[String],
    environment: &Environment,
) -> Result<BTreeMap<String, SshSource>, Error> {
    let mut sources = BTreeMap::new();
    for value in values {
        let (id, source) = source(value, environment)?;
        if sources.contains_key(&id) {
            return Err(usage(format!("--ssh: {id} twice")));
        }
        sources.insert(id, source);
    }
    Ok(sources)
}

/// As buildx: an id alone is the agent of SSH_AUTH_SOCK; a path is an agent's socket, or else a file with a key.
fn source(text: &str, environment: &Environment) -> Result<(String, SshSource), Error> {
    let (id, paths) = text.split_once('=').unwrap_or((text, ""));
    if id.is_empty() {
        return Err(usage(format!("--ssh: {text:?} has no id")).hint("name it: --ssh default"));
    }
    let source = match paths {
        "" => own_agent(id, environment)?,
        paths => named(id, paths)?,
    };
    Ok((id.to_owned(), source))
}

fn own_agent(id: &str, environment: &Environment) -> Result<SshSource, Error> {
    let socket = environment.get("SSH_AUTH_SOCK").ok_or_else(|| {
        let hint = format!("start an agent, or name a key: --ssh {id}=FILE");
        usage(format!("--ssh {id}: there is no agent: SSH_AUTH_SOCK is not set")).hint(hint)
    })?;
    let socket = PathBuf::from(socket);
    match is_socket(id, &socket)? {
        true => Ok(SshSource::Agent(absolute(&socket)?)),
        false => {
            Err(usage(format!("--ssh {id}: SSH_AUTH_SOCK={} is not a socket", socket.display())))
        }
    }
}

fn named(id: &str, paths: &str) -> Result<SshSource, Error> {
    let (mut sockets, mut keys) = (Vec::new(), Vec::new());
    for path in paths.split(',').map(Path::new) {
        let list = if is_socket(id, path)? { &mut sockets } else { &mut keys };
        list.push(absolute(path)?);
    }
    match (sockets.pop(), keys.is_empty()) {
        (None, _) => Ok(SshSource::Keys(keys)),
        (Some(socket), true) if sockets.is_empty() => Ok(SshSource::Agent(socket)),
        (Some(_), true) => Err(usage(format!("--ssh {id}: more than one agent's socket"))),
        (Some(_), false) => Err(usage(format!("--ssh {id}: both an agent's socket and keys"))),
    }
}

fn is_socket(id: &str, path: &Path) -> Result<bool, Error> {
    let shown = path.display();
    let found =
        fs::metadata(path).map_err(|error| usage(format!("--ssh {id}: {shown}: {error}")))?;
    match found.is_dir() {
        true => Err(usage(format!("--ssh {id}: {shown} is a directory"))),
        false => Ok(found.file_type().is_socket()),
    }
}

/// git is started elsewhere.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|error| usage(format!("--ssh: {}: {error}", path.display())))
}

fn usage(title: String) -> Error {
    Error::new(Class::Usage, title)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn sockets_keys_and_the_own_agent() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let _listener = UnixListener::bind(path("agent")).unwrap();
        fs::write(path("key"), "").unwrap();
        let text = |name: &str| path(name).display().to_string();
        let (agent, key) = (text("agent"), text("key"));
        let mut environment = Environment::default();
        let of = |text: String, environment: &Environment| source(&text, environment);
        assert!(of("default".into(), &environment).unwrap_err().title().contains("SSH_AUTH_SOCK"));
        environment.variables.insert("SSH_AUTH_SOCK".into(), agent.clone().into());
        let socket = SshSource::Agent(path("agent"));
        assert_eq!(of("default".into(), &environment).unwrap(), ("default".into(), socket.clone()));
        assert_eq!(of("x=".into(), &environment).unwrap().1, socket);
        assert_eq!(of(format!("x={agent}"), &environment).unwrap().1, socket);
        let keys = SshSource::Keys(vec![path("key"), path("key")]);
        assert_eq!(of(format!("x={key},{key}"), &environment).unwrap().1, keys);
        for bad in [
            "=x".to_owned(),
            String::new(),
            "a=/nonexistent".into(),
            "a=/".into(),
            format!("a={agent},{key}"),
            format!("a={agent},{agent}"),
            format!("a={key},"),
        ] {
            assert_eq!(of(bad.clone(), &environment).unwrap_err().class(), Class::Usage, "{bad}");
        }
        let twice = ["default".to_owned(), "default".to_owned()];
        assert!(sources(&twice, &environment).is_err());
        environment.variables.insert("SSH_AUTH_SOCK".into(), key.into());
        assert!(of("default".into(), &environment).is_err());
    }
}
