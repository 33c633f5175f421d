//! Where credentials for registries are looked for: files, a variable, and what CI systems give their jobs.

use std::path::PathBuf;

use bareboat_core::secret::Secret;

use crate::flags::{Environment, RawRequest, table};

const FLAG: &str = "authfile";

/// All sources, in the order in which they are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CredentialSources {
    pub files: Vec<AuthFile>,
    /// The configuration itself (`DOCKER_AUTH_CONFIG`).
    pub text: Option<Secret<String>>,
    pub jobs: Vec<JobCredential>,
}

/// A file in the form of Docker's config.json or of containers' auth.json.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthFile {
    pub path: PathBuf,
    /// What named it; `None` for a usual place, where there may be no file.
    pub named_by: Option<&'static str>,
}

/// What a CI system gives its jobs for one registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobCredential {
    pub registry: String,
    /// The variables that it is made of.
    pub source: &'static str,
    pub username: String,
    pub password: Secret<String>,
}

pub fn sources(raw: &mut RawRequest, environment: &Environment) -> CredentialSources {
    let named = named_file(raw.take_one(FLAG).map(PathBuf::from), environment);
    CredentialSources {
        files: named.into_iter().chain(usual_files(environment)).collect(),
        text: environment.text("DOCKER_AUTH_CONFIG").map(|text| Secret::new(text.to_owned())),
        jobs: gitlab(environment)
            .into_iter()
            .chain(dependency_proxy(environment))
            .chain(github(environment))
            .collect(),
    }
}

fn named_file(typed: Option<PathBuf>, environment: &Environment) -> Option<AuthFile> {
    if let Some(path) = typed {
        return Some(AuthFile { path, named_by: Some("--authfile") });
    }
    let variable = table::flag(FLAG).and_then(|flag| flag.environment)?;
    let path = environment.get(variable)?.into();
    Some(AuthFile { path, named_by: Some(variable) })
}

/// Docker's file, then those of podman, buildah and skopeo.
fn usual_files(environment: &Environment) -> impl Iterator<Item = AuthFile> {
    let docker = environment.get("DOCKER_CONFIG").map(PathBuf::from);
    let docker = docker.or_else(|| environment.home().map(|home| home.join(".docker")));
    let runtime = environment.get("XDG_RUNTIME_DIR").map(PathBuf::from);
    let home = environment.home().map(|home| home.join(".config"));
    let containers = [runtime, home].into_iter().flatten();
    let containers = containers.map(|folder| folder.join("containers/auth.json"));
    let docker = docker.map(|folder| folder.join("config.json"));
    docker.into_iter().chain(containers).map(|path| AuthFile { path, named_by: None })
}

/// GitLab's registry, for the project of the job.
fn gitlab(environment: &Environment) -> Option<JobCredential> {
    let registry = environment.text("CI_REGISTRY")?.trim_end_matches('/').to_owned();
    let of = |source, username: &str, password: &str| JobCredential {
        registry,
        source,
        username: username.to_owned(),
        password: Secret::new(password.to_owned()),
    };
    match (environment.text("CI_REGISTRY_USER"), environment.text("CI_REGISTRY_PASSWORD")) {
        (Some(user), Some(password)) => {
            Some(of("CI_REGISTRY_USER and CI_REGISTRY_PASSWORD", user, password))
        }
        _ => Some(of("CI_JOB_TOKEN", "gitlab-ci-token", environment.text("CI_JOB_TOKEN")?)),
    }
}

/// GitLab's cache of Docker Hub, which is on the host of GitLab itself.
fn dependency_proxy(environment: &Environment) -> Vec<JobCredential> {
    let text = |name| environment.text(name).map(str::to_owned);
    let [Some(server), Some(username), Some(password)] =
        ["CI_DEPENDENCY_PROXY_SERVER", "CI_DEPENDENCY_PROXY_USER", "CI_DEPENDENCY_PROXY_PASSWORD"]
            .map(text)
    else {
        return Vec::new();
    };
    // GitLab writes the port always, people do not.
    let bare = server.strip_suffix(":443").map(str::to_owned);
    let of = |registry| JobCredential {
        registry,
        source: "CI_DEPENDENCY_PROXY_USER and CI_DEPENDENCY_PROXY_PASSWORD",
        username: username.clone(),
        password: Secret::new(password.clone()),
    };
    bare.into_iter().chain([server]).map(of).collect()
}

/// GitHub's registry, where the workflow gives its token to the step. Outside of a workflow, GITHUB_TOKEN is whoever's.
fn github(environment: &Environment) -> Option<JobCredential> {
    Some(JobCredential {
        registry: "ghcr.io".into(),
        source: "GITHUB_TOKEN",
        username: environment.text("GITHUB_ACTOR")?.to_owned(),
        password: Secret::new(environment.text("GITHUB_TOKEN")?.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn with(variables: &[(&str, &str)]) -> Environment {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Environment { variables, ..Environment::default() }
    }

    fn files(variables: &[(&str, &str)]) -> Vec<PathBuf> {
        usual_files(&with(variables)).map(|file| file.path).collect()
    }

    #[test]
    fn files_come_in_order() {
        let all = [("DOCKER_CONFIG", "/d"), ("XDG_RUNTIME_DIR", "/r"), ("HOME", "/h")];
        let containers = ["/r/containers/auth.json", "/h/.config/containers/auth.json"];
        let expected = ["/d/config.json", containers[0], containers[1]].map(PathBuf::from);
        assert_eq!(files(&all), expected);
        assert_eq!(files(&all[1..])[0], Path::new("/h/.docker/config.json"));
        assert_eq!(files(&[]), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_named_file_comes_from_the_flag_before_the_variable() {
        let environment = with(&[("REGISTRY_AUTH_FILE", "v.json")]);
        let found = named_file(Some("t.json".into()), &environment).unwrap();
        assert_eq!((found.path, found.named_by), ("t.json".into(), Some("--authfile")));
        let found = named_file(None, &environment).unwrap();
        assert_eq!((found.path, found.named_by), ("v.json".into(), Some("REGISTRY_AUTH_FILE")));
        assert_eq!(named_file(None, &with(&[("REGISTRY_AUTH_FILE", "")])), None);
    }

    fn shown(found: Option<JobCredential>) -> Option<String> {
        found.map(|found| {
            assert!(!format!("{found:?}").contains(found.password.expose()));
            format!("{} {}:{}", found.registry, found.username, found.password.expose())
        })
    }

    #[test]
    fn gitlab_jobs() {
        let registry = ("CI_REGISTRY", "r.example:5050");
        let token = ("CI_JOB_TOKEN", "hunter2");
        let (user, password) = (("CI_REGISTRY_USER", "u"), ("CI_REGISTRY_PASSWORD", "hunter3"));
        let of = |variables: &[(&str, &str)]| shown(gitlab(&with(variables)));
        assert_eq!(of(&[registry, token, user, password]).unwrap(), "r.example:5050 u:hunter3");
        let by_token = Some("r.example:5050 gitlab-ci-token:hunter2".to_owned());
        assert_eq!(of(&[registry, token]), by_token);
        assert_eq!(of(&[registry, token, user]), by_token);
        assert_eq!(of(&[registry]), None);
        assert_eq!(of(&[token, user, password]), None);
    }

    #[test]
    fn the_dependency_proxy_and_github() {
        let proxy = [
            ("CI_DEPENDENCY_PROXY_SERVER", "gitlab.example:443"),
            ("CI_DEPENDENCY_PROXY_USER", "u"),
            ("CI_DEPENDENCY_PROXY_PASSWORD", "hunter2"),
        ];
        let found = dependency_proxy(&with(&proxy)).into_iter();
        let found: Vec<_> = found.filter_map(|found| shown(Some(found))).collect();
        assert_eq!(found, ["gitlab.example u:hunter2", "gitlab.example:443 u:hunter2"]);
        assert!(dependency_proxy(&with(&proxy[..2])).is_empty());
        let github_is = [("GITHUB_ACTOR", "octocat"), ("GITHUB_TOKEN", "hunter2")];
        assert_eq!(shown(github(&with(&github_is))).unwrap(), "ghcr.io octocat:hunter2");
        assert_eq!(github(&with(&github_is[1..])), None);
    }
}
