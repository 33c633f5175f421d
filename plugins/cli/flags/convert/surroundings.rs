//! What a request takes from the environment: state directory, proxies, epoch.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use bareboat_core::{
    Class, Error,
    execute::sandbox::{HostRequest, existing_state},
    secret::Secret,
};

use crate::flags::Environment;

/// Proxies for registry requests, as curl reads them: lower case first, `ALL_PROXY` where a scheme has none of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    pub http: Option<Secret<String>>,
    pub https: Option<Secret<String>>,
    /// Hosts, domains and networks that are reached without a proxy, separated by commas.
    pub no_proxy: Option<String>,
}

/// 9999-12-31T23:59:59Z, the last second that RFC 3339 can write.
const EPOCH_SECONDS_MAX: i64 = 253_402_300_799;

/// Volumes of CI systems: GitLab, GitHub, Tekton (and who followed kaniko's habit). Build contexts are below them.
const WORK_VOLUMES: [&str; 4] = ["/builds", "/__w", "/workspace", "/tekton/home"];

/// Volumes of CI systems that other processes of the job use while a step is executed.
const VOLUMES_OF_OTHERS: [&str; 7] =
    ["/builds", "/__w", "/__e", "/__t", "/github", "/tekton", "/kaniko"];

/// Where the state shall lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateDirectory {
    /// What was typed, or the variable of the flag table: absolute.
    pub named: Option<PathBuf>,
    /// The user's data directory, where there is one.
    pub usual: Option<PathBuf>,
}

impl StateDirectory {
    /// The directory of a command that only looks at a state that is there.
    pub fn existing(&self) -> Result<PathBuf, Error> {
        existing_state(&self.request()).ok_or_else(no_state_directory)
    }

    /// What a host is asked for.
    pub fn request(&self) -> HostRequest {
        HostRequest {
            named: self.named.clone(),
            usual: self.usual.clone(),
            work_volumes: WORK_VOLUMES.map(PathBuf::from).into(),
            owned: VOLUMES_OF_OTHERS.map(PathBuf::from).into(),
            ..HostRequest::default()
        }
    }
}

/// What the command line and the environment say of the state directory.
pub fn state_directory(
    typed: Option<PathBuf>,
    environment: &Environment,
) -> Result<StateDirectory, Error> {
    let variable = crate::flags::table::flag("state-dir").and_then(|flag| flag.environment);
    let named = typed.or_else(|| environment.get(variable?).map(PathBuf::from));
    let absolute = |path: PathBuf| {
        std::path::absolute(&path)
            .map_err(|error| usage(format!("state directory {}: {error}", path.display())))
    };
    Ok(StateDirectory {
        named: named.map(absolute).transpose()?,
        usual: usual_state_directory(environment),
    })
}

fn usual_state_directory(environment: &Environment) -> Option<PathBuf> {
    if environment.root {
        return Some(PathBuf::from("/var/lib/bareboat"));
    }
    let data =
        environment.get("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let data = data.or_else(|| environment.home().map(|home| home.join(".local/share")));
    data.map(|data| data.join("bareboat"))
}

/// Nothing was named, and there is no place of the user's own.
pub fn no_state_directory() -> Error {
    usage("no state directory: neither HOME nor XDG_DATA_HOME is set".to_owned())
        .hint("name one with --state-dir or BAREBOAT_STATE_DIR")
}

/// Where Docker and the containers tools keep the certificates of single registries (`certs.d`).
pub fn certificate_folders(environment: &Environment) -> Vec<PathBuf> {
    let home = environment.home().map(|home| home.join(".config/containers/certs.d"));
    let system = ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from);
    home.into_iter().chain(system).collect()
}

/// The proxies of registry requests.
pub fn proxies(environment: &Environment) -> Proxies {
    let either = |name: &str| {
        let lower = environment.text(&name.to_lowercase());
        lower.or_else(|| environment.text(name)).map(str::to_owned)
    };
    let all = either("ALL_PROXY");
    let of = |name: &str| either(name).or_else(|| all.clone()).map(Secret::new);
    Proxies { http: of("HTTP_PROXY"), https: of("HTTPS_PROXY"), no_proxy: either("NO_PROXY") }
}

/// SOURCE_DATE_EPOCH: the build arg if given (empty: none), else the environment's, which becomes the build arg.
pub fn source_date_epoch(
    build_args: &mut BTreeMap<String, String>,
    environment: &Environment,
) -> Result<Option<i64>, Error> {
    const NAME: &str = "SOURCE_DATE_EPOCH";
    if !build_args.contains_key(NAME) {
        let Some(value) = environment.get(NAME) else { return Ok(None) };
        build_args.insert(NAME.to_owned(), value.to_string_lossy().into_owned());
    }
    let text = build_args[NAME].as_str();
    if text.is_empty() {
        return Ok(None);
    }
    let seconds = text.parse().ok().filter(|seconds| (0..=EPOCH_SECONDS_MAX).contains(seconds));
    seconds.map(Some).ok_or_else(|| {
        usage(format!("{NAME}: {text:?} is not a number of seconds since 1970"))
            .hint("for example $(git log -1 --pretty=%ct)")
    })
}

/// A file to be written later: its folder must exist now.
pub fn writable_file(flag: &str, typed: Option<PathBuf>) -> Result<Option<PathBuf>, Error> {
    let Some(path) = typed else { return Ok(None) };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if path.is_dir() {
        return Err(usage(format!("--{flag}: {} is a directory", path.display())));
    }
    if !folder.is_dir() {
        return Err(usage(format!("--{flag}: the directory {} does not exist", folder.display())));
    }
    Ok(Some(path))
}

fn usage(title: String) -> Error {
    Error::new(Class::Usage, title)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Environment {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Environment { variables, ..Environment::default() }
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_state_directory_is_found_in_order() {
        let of = |typed: Option<&str>, variables: &[(&str, &str)]| {
            let found = state_directory(typed.map(Into::into), &with(variables)).unwrap();
            found.named.or(found.usual)
        };
        let all = [("BAREBOAT_STATE_DIR", "/v"), ("XDG_DATA_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(of(Some("/t"), &all).unwrap(), Path::new("/t"));
        assert_eq!(of(None, &all).unwrap(), Path::new("/v"));
        assert_eq!(of(None, &all[1..]).unwrap(), Path::new("/x/bareboat"));
        assert_eq!(of(None, &all[2..]).unwrap(), Path::new("/h/.local/share/bareboat"));
        assert_eq!(
            of(None, &[("XDG_DATA_HOME", "rel"), ("HOME", "/h")]).unwrap(),
            Path::new("/h/.local/share/bareboat")
        );
        assert_eq!(of(None, &[]), None);
        assert!(no_state_directory().hint_text().unwrap().contains("--state-dir"));
        assert!(of(Some("rel"), &[]).unwrap().is_absolute());
        let root = Environment { root: true, ..with(&all[1..]) };
        let found = state_directory(None, &root).unwrap();
        assert_eq!((found.named, found.usual), (None, Some("/var/lib/bareboat".into())));
    }

    #[test]
    fn registry_proxies_prefer_lower_case() {
        let found = proxies(&with(&[
            ("HTTP_PROXY", "http://upper"),
            ("http_proxy", "http://lower"),
            ("ALL_PROXY", "http://all"),
            ("NO_PROXY", "a,b"),
        ]));
        assert_eq!(found.http.as_ref().unwrap().expose(), "http://lower");
        assert_eq!(found.https.as_ref().unwrap().expose(), "http://all");
        assert_eq!(found.no_proxy.as_deref(), Some("a,b"));
        assert!(!format!("{found:?}").contains("lower"));
    }

    #[test]
    fn the_epoch_comes_from_the_build_arg_first() {
        let environment = with(&[("SOURCE_DATE_EPOCH", "5")]);
        let mut args = map(&[("SOURCE_DATE_EPOCH", "7")]);
        assert_eq!(source_date_epoch(&mut args, &environment).unwrap(), Some(7));
        let mut args = map(&[("SOURCE_DATE_EPOCH", "")]);
        assert_eq!(source_date_epoch(&mut args, &environment).unwrap(), None);
        let mut args = map(&[]);
        assert_eq!(source_date_epoch(&mut args, &environment).unwrap(), Some(5));
        assert_eq!(args, map(&[("SOURCE_DATE_EPOCH", "5")]));
        assert_eq!(
            source_date_epoch(&mut map(&[]), &with(&[("SOURCE_DATE_EPOCH", "")])).unwrap(),
            None
        );
        for bad in ["-1", "1.5", "soon", "253402300800", "99999999999999999999"] {
            assert!(
                source_date_epoch(&mut map(&[("SOURCE_DATE_EPOCH", bad)]), &environment).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn files_to_write_need_their_folder() {
        let of = |path: &str| writable_file("iidfile", Some(path.into()));
        assert!(of("here").is_ok());
        assert!(of("/nonexistent/x").unwrap_err().title().contains("--iidfile"));
        assert!(of("/").is_err());
        assert_eq!(writable_file("iidfile", None).unwrap(), None);
    }
}
