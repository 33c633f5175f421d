//! Profiles of AWS's configuration files: where a profile's keys begin, and the roles on the way from there.

use aws_config::profile::ProfileSet;

use crate::{error::AwsError, files::Files};

/// Longer chains are a loop or a mistake.
const CHAIN_MAX: usize = 10;

/// A profile, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) name: String,
    pub(crate) base: Base,
    /// In the order of assuming them.
    pub(crate) roles: Vec<Role>,
}

/// Where a profile's keys begin.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Base {
    Keys { id: String, secret: String, token: Option<String> },
    Process(String),
    TokenFile { path: String, role: String, session: Option<String> },
    Variables,
    Container,
    Instance,
}

impl std::fmt::Debug for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A role to assume.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Role {
    pub(crate) arn: String,
    pub(crate) external_id: Option<String>,
    pub(crate) session: Option<String>,
    pub(crate) seconds: Option<i32>,
}

type Section = aws_config::profile::Profile;

/// The profile of `AWS_PROFILE`, else the default one; `None` where it says nothing of keys.
///
/// # Errors
/// `AWS_PROFILE` names none; or what the profile says can't be used.
pub(crate) fn selected(files: &Files) -> Result<Option<Profile>, AwsError> {
    let profiles = files.profiles.as_ref().map_err(AwsError::clone)?;
    let name = profiles.selected_profile();
    let Some(section) = profiles.get_profile(name) else {
        return match files.variables.get("AWS_PROFILE") {
            Some(_) => Err(wrong(name, "AWS_PROFILE names it, but it is in none of the files")),
            None => Ok(None),
        };
    };
    if !says_something(section) {
        return Ok(None);
    }
    let (base, roles) = resolve(profiles, section)?;
    Ok(Some(Profile { name: name.to_owned(), base, roles }))
}

fn says_something(section: &Section) -> bool {
    [
        "aws_access_key_id",
        "role_arn",
        "credential_process",
        "sso_session",
        "sso_start_url",
        "login_session",
    ]
    .iter()
    .any(|key| section.get(key).is_some())
}

fn resolve(profiles: &ProfileSet, first: &Section) -> Result<(Base, Vec<Role>), AwsError> {
    let (mut section, mut roles) = (first, Vec::new());
    for _ in 0..CHAIN_MAX {
        let base = match step(profiles, section, section.name() == first.name(), &mut roles)? {
            Step::Base(base) => base,
            Step::Source(source) => {
                section = source;
                continue;
            }
        };
        roles.reverse();
        return Ok((base, roles));
    }
    Err(wrong(first.name(), "its chain of source_profile has no end"))
}

/// Where a profile leads.
enum Step<'a> {
    Base(Base),
    Source(&'a Section),
}

/// Follows one profile of a chain; the role that it wants is added to `roles`.
fn step<'a>(
    profiles: &'a ProfileSet,
    section: &'a Section,
    is_first: bool,
    roles: &mut Vec<Role>,
) -> Result<Step<'a>, AwsError> {
    let Some(arn) = section.get("role_arn") else { return Ok(Step::Base(keys(section)?)) };
    if let Some(path) = section.get("web_identity_token_file") {
        let (path, role) = (path.to_owned(), arn.to_owned());
        let session = section.get("role_session_name").map(str::to_owned);
        return Ok(Step::Base(Base::TokenFile { path, role, session }));
    }
    let (profile, source) = (section.get("source_profile"), section.get("credential_source"));
    // A profile that others take their keys from may have both a role and keys.
    if !is_first && profile.is_none() && section.get("aws_access_key_id").is_some() {
        return Ok(Step::Base(keys(section)?));
    }
    roles.push(role(section, arn)?);
    match (profile, source) {
        (Some(_), Some(_)) => {
            Err(wrong(section.name(), "it has both source_profile and credential_source"))
        }
        (Some(source), None) if source == section.name() => Ok(Step::Base(keys(section)?)),
        (Some(source), None) => profiles.get_profile(source).map(Step::Source).ok_or_else(|| {
            wrong(section.name(), &format!("its source_profile {source:?} does not exist"))
        }),
        (None, Some(source)) => Ok(Step::Base(named_source(section, source)?)),
        (None, None) => Err(wrong(
            section.name(),
            "it has a role_arn, but neither source_profile nor credential_source",
        )),
    }
}

fn role(section: &Section, arn: &str) -> Result<Role, AwsError> {
    let seconds = section.get("duration_seconds").map(str::parse).transpose();
    Ok(Role {
        arn: arn.to_owned(),
        external_id: section.get("external_id").map(str::to_owned),
        session: section.get("role_session_name").map(str::to_owned),
        seconds: seconds.map_err(|_| wrong(section.name(), "its duration_seconds is no number"))?,
    })
}

fn keys(section: &Section) -> Result<Base, AwsError> {
    let value = |key| section.get(key).map(str::to_owned);
    match (value("aws_access_key_id"), value("aws_secret_access_key")) {
        (Some(id), Some(secret)) => {
            return Ok(Base::Keys { id, secret, token: value("aws_session_token") });
        }
        (Some(_), None) => return Err(wrong(section.name(), "it has no aws_secret_access_key")),
        (None, _) => {}
    }
    if let Some(command) = value("credential_process") {
        return Ok(Base::Process(command));
    }
    let interactive = ["sso_session", "sso_start_url", "login_session"];
    if interactive.iter().any(|key| section.get(key).is_some()) {
        return Err(AwsError::Source {
            provider: format!("the profile {:?}", section.name()),
            reason: "it logs in through a browser, which is not supported".into(),
            hint: Some(format!(
                "add a profile with credential_process = aws configure export-credentials --profile {}",
                section.name()
            )),
        });
    }
    Err(wrong(section.name(), "it has no keys"))
}

fn named_source(section: &Section, source: &str) -> Result<Base, AwsError> {
    match source {
        "Environment" => Ok(Base::Variables),
        "EcsContainer" => Ok(Base::Container),
        "Ec2InstanceMetadata" => Ok(Base::Instance),
        _ => Err(wrong(section.name(), &format!("its credential_source {source:?} is unknown"))),
    }
}

fn wrong(profile: &str, reason: &str) -> AwsError {
    AwsError::Source {
        provider: format!("the profile {profile:?}"),
        reason: reason.to_owned(),
        hint: Some("AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE name the files, AWS_PROFILE the profile".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::files::Variables;

    async fn resolved(config: &str, name: Option<&str>) -> Result<Option<Profile>, AwsError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        fs::write(&path, config).unwrap();
        let mut pairs = vec![("AWS_CONFIG_FILE".to_owned(), path.display().to_string())];
        pairs.extend(name.map(|name| ("AWS_PROFILE".to_owned(), name.to_owned())));
        selected(&Files::open(Variables::new(pairs)).await)
    }

    #[tokio::test]
    async fn bases() {
        let config = "[default]\nregion = x\n[profile k]\naws_access_key_id=i\naws_secret_access_key=s\n\
            [profile p]\ncredential_process = /bin/x y\n\
            [profile w]\nrole_arn=r\nweb_identity_token_file=/t\nrole_session_name=n\n\
            [profile e]\nrole_arn=r\ncredential_source=EcsContainer\n";
        let base = async |name| resolved(config, Some(name)).await.unwrap().unwrap().base;
        assert_eq!(resolved(config, None).await.unwrap(), None);
        let keys = Base::Keys { id: "i".into(), secret: "s".into(), token: None };
        assert!(base("k").await == keys);
        assert!(base("p").await == Base::Process("/bin/x y".into()));
        let session = Some("n".into());
        assert!(
            base("w").await == Base::TokenFile { path: "/t".into(), role: "r".into(), session }
        );
        assert!(base("e").await == Base::Container);
        assert_eq!(format!("{keys:?}"), "[redacted]");
    }

    #[tokio::test]
    async fn roles_are_assumed_from_the_base_upwards() {
        let config = "[profile a]\nrole_arn=A\nsource_profile=b\nexternal_id=x\n\
            [profile b]\nrole_arn=B\nsource_profile=c\nduration_seconds=900\n\
            [profile c]\naws_access_key_id=i\naws_secret_access_key=s\n\
            [profile self]\nrole_arn=S\nsource_profile=self\naws_access_key_id=i\naws_secret_access_key=s\n";
        let profile = resolved(config, Some("a")).await.unwrap().unwrap();
        let arns: Vec<&str> = profile.roles.iter().map(|role| role.arn.as_str()).collect();
        assert_eq!(arns, ["B", "A"]);
        assert_eq!(profile.roles[0].seconds, Some(900));
        assert_eq!(profile.roles[1].external_id.as_deref(), Some("x"));
        assert_eq!(resolved(config, Some("self")).await.unwrap().unwrap().roles.len(), 1);
    }

    #[tokio::test]
    async fn mistakes_are_named() {
        for (config, words) in [
            ("[profile a]\nrole_arn=A\nsource_profile=b\n", "\"b\" does not exist"),
            (
                "[profile a]\nrole_arn=A\nsource_profile=b\n[profile b]\nrole_arn=B\nsource_profile=a\n",
                "no end",
            ),
            ("[profile a]\nrole_arn=A\n", "neither"),
            ("[profile a]\nrole_arn=A\ncredential_source=Moon\n", "Moon"),
            ("[profile a]\naws_access_key_id=i\n", "aws_secret_access_key"),
            ("[profile a]\nsso_session=s\n", "browser"),
            ("[profile b]\nregion=x\n", "none of the files"),
        ] {
            let error = resolved(config, Some("a")).await.unwrap_err();
            assert!(error.to_string().contains(words), "{config}: {error}");
            assert!(error.hint().is_some());
        }
    }
}
