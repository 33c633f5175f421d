//! Amazon ECR: roles, ID tokens, private names, and how a missing repository is made.

use std::{collections::BTreeMap, fs, io::Read};

use bareboat_core::{
    Class, Error,
    registry::{Repository, reference},
    request::{BuildRequest, Output},
};
use bareboat_ecr::{EcrHost, Encryption, Mutability, Options, RepositorySettings};

use super::{csv, usage};
use crate::flags::{Environment, RawRequest, table};

const CREATE: &str = "create-repository";
/// What ECR takes.
const LIFECYCLE_BYTES_MAX: u64 = 30_720;
const EXCEPTIONS_MAX: usize = 5;
const TAGS_MAX: usize = 50;

/// What says where keys come from.
pub fn options(raw: &mut RawRequest, environment: &Environment) -> Result<Options, Error> {
    let mut roles = raw.take_texts("aws-role-arn")?;
    let variable = table::flag("aws-role-arn").and_then(|flag| flag.environment);
    if roles.is_empty()
        && let Some(role) = variable.and_then(|name| environment.text(name))
    {
        roles.push(role.trim().to_owned());
    }
    roles.iter().try_for_each(|role| role_arn("aws-role-arn", role))?;
    Ok(Options {
        roles,
        external_id: raw.take_text("aws-external-id")?,
        session_name: raw.take_text("aws-role-session-name")?,
        registry_roles: registry_roles(raw)?,
        id_token_variable: raw.take_text("aws-id-token-var")?,
        aliases: aliases(raw)?,
        ..Options::default()
    })
}

/// What concerns pushes: where they go, and what is made for them.
pub fn pushes(
    raw: &mut RawRequest,
    request: &BuildRequest,
    options: &mut Options,
) -> Result<(), Error> {
    options.create = create(raw)?;
    let own = request.outputs.iter().filter_map(|output| match output {
        Output::Registry { names, .. } => Some(names),
        _ => None,
    });
    for names in own {
        let names = if names.is_empty() { &request.tags } else { names };
        // A name that is none is refused where the build begins.
        let names = names.iter().filter_map(|name| reference::parse(name).ok());
        options.destinations.extend(names.map(|name| Repository::from(&name)));
    }
    Ok(())
}

fn role_arn(flag: &str, role: &str) -> Result<(), Error> {
    let parts: Vec<&str> = role.splitn(6, ':').collect();
    match parts.as_slice() {
        ["arn", partition, "iam", "", account, name]
            if partition.starts_with("aws")
                && account.bytes().all(|byte| byte.is_ascii_digit())
                && name.starts_with("role/") =>
        {
            Ok(())
        }
        _ => Err(usage(&format!("--{flag}: {role:?} is not the ARN of a role"))
            .hint("for example arn:aws:iam::123456789012:role/ci")),
    }
}

fn registry_roles(raw: &mut RawRequest) -> Result<Vec<(String, String)>, Error> {
    const FLAG: &str = "aws-registry-role";
    let mut roles = Vec::new();
    for text in raw.take_texts(FLAG)? {
        let (host, role) = host_and(FLAG, "ARN", &text)?;
        role_arn(FLAG, &role)?;
        roles.push((host, role));
    }
    Ok(roles)
}

fn aliases(raw: &mut RawRequest) -> Result<Vec<(String, String)>, Error> {
    const FLAG: &str = "ecr-registry";
    let mut aliases = Vec::new();
    for text in raw.take_texts(FLAG)? {
        let (host, region) = host_and(FLAG, "REGION", &text)?;
        if EcrHost::alias(&region).is_none() {
            return Err(usage(&format!("--{FLAG} {host}: {region:?} is not an AWS Region"))
                .hint("for example us-east-1"));
        }
        aliases.push((host, region));
    }
    Ok(aliases)
}

fn host_and(flag: &str, what: &str, text: &str) -> Result<(String, String), Error> {
    let wrong = || usage(&format!("--{flag}: {text:?} is not HOST={what}"));
    let (host, value) = text.split_once('=').ok_or_else(wrong)?;
    let good = |c: char| c.is_ascii_alphanumeric() || ".-:".contains(c);
    if host.is_empty() || value.is_empty() || !host.chars().all(good) {
        return Err(wrong());
    }
    Ok((host.to_ascii_lowercase(), value.to_owned()))
}

fn create(raw: &mut RawRequest) -> Result<Option<RepositorySettings>, Error> {
    match raw.take_text(CREATE)?.as_deref() {
        None | Some("false") => Ok(None),
        Some("true") => Ok(Some(RepositorySettings::default())),
        Some(text) => settings(text).map(Some),
    }
}

fn settings(text: &str) -> Result<RepositorySettings, Error> {
    let mut settings = RepositorySettings::default();
    let (mut encryption, mut key) = (None, None);
    for (name, value) in csv::pairs(CREATE, text)? {
        match name.as_str() {
            "mutability" => settings.mutability = mutability(&value)?,
            "except" => settings.exceptions = exceptions(&value)?,
            "encryption" => encryption = Some(value.to_ascii_lowercase()),
            "kms-key" => key = Some(value),
            "scan" => settings.scan_on_push = csv::boolean(CREATE, "scan", &value)?,
            "lifecycle" => settings.lifecycle_policy = Some(lifecycle(&value)?),
            _ => tag(&name, value, text, &mut settings.tags)?,
        }
    }
    settings.encryption = self::encryption(encryption.as_deref(), key)?;
    Ok(settings)
}

fn mutability(value: &str) -> Result<Mutability, Error> {
    match value.to_ascii_lowercase().as_str() {
        "mutable" => Ok(Mutability::Mutable),
        "immutable" => Ok(Mutability::Immutable),
        _ => Err(wrong(&format!("mutability={value}")).hint("mutable or immutable")),
    }
}

/// Names with `*`, separated by `|`.
fn exceptions(value: &str) -> Result<Vec<String>, Error> {
    let patterns: Vec<String> = value.split('|').map(|part| part.trim().to_owned()).collect();
    let good = |pattern: &String| {
        !pattern.is_empty()
            && pattern.len() <= 128
            && pattern.chars().all(|c| c.is_ascii_alphanumeric() || "._*-".contains(c))
    };
    if !patterns.iter().all(good) || patterns.len() > EXCEPTIONS_MAX {
        let hint = "at most five tags, * stands for any characters: except=latest|dev-*";
        return Err(wrong(&format!("except={value}")).hint(hint));
    }
    Ok(patterns)
}

fn encryption(kind: Option<&str>, key: Option<String>) -> Result<Encryption, Error> {
    match (kind, key) {
        (None, None) => Ok(Encryption::Default),
        (Some("aes256"), None) => Ok(Encryption::Aes256),
        // A key says that it is KMS's.
        (Some("kms") | None, key) => Ok(Encryption::Kms { key }),
        (Some("kms-dsse" | "kms_dsse"), key) => Ok(Encryption::KmsDsse { key }),
        (Some("aes256"), Some(_)) => {
            Err(usage("--create-repository: encryption=aes256 has no kms-key"))
        }
        (Some(kind), _) => {
            Err(wrong(&format!("encryption={kind}")).hint("aes256, kms or kms-dsse"))
        }
    }
}

fn tag(
    name: &str,
    value: String,
    text: &str,
    tags: &mut BTreeMap<String, String>,
) -> Result<(), Error> {
    let typed = name.strip_prefix("tag.").filter(|key| !key.is_empty());
    let Some(lower) = typed else {
        let hint = "mutability, except, encryption, kms-key, scan, tag.KEY or lifecycle";
        return Err(wrong(name).hint(hint));
    };
    // Keys of fields are read in lower case; those of tags are not.
    let written = text.split(',').filter_map(|field| {
        let field = field.trim().trim_matches('"');
        field.split_once('=').map_or(field, |(key, _)| key).get(4..)
    });
    let key = written.into_iter().find(|key| key.to_lowercase() == lower).unwrap_or(lower);
    tags.insert(key.to_owned(), value);
    match tags.len() > TAGS_MAX {
        true => Err(usage("--create-repository: more than 50 tags")),
        false => Ok(()),
    }
}

fn lifecycle(path: &str) -> Result<String, Error> {
    let failed = |why: String| usage(&format!("--create-repository: lifecycle={path}: {why}"));
    let file = fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut policy = String::new();
    let mut limited = file.take(LIFECYCLE_BYTES_MAX + 1);
    limited.read_to_string(&mut policy).map_err(|error| failed(error.to_string()))?;
    if policy.len() as u64 > LIFECYCLE_BYTES_MAX {
        return Err(failed(format!("it is larger than {LIFECYCLE_BYTES_MAX} bytes")));
    }
    serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&policy)
        .map_err(|error| failed(format!("it is not a JSON object: {error}")))?;
    Ok(policy)
}

fn wrong(what: &str) -> Error {
    Error::new(Class::Usage, format!("--create-repository: {what} is not known"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_described() {
        let made = settings(
            "mutability=IMMUTABLE,except=latest|dev-*,kms-key=arn:k,scan=true,tag.Team=a b,\"tag.x=1,2\"",
        )
        .unwrap();
        assert_eq!(made.mutability, Mutability::Immutable);
        assert_eq!(made.exceptions, ["latest", "dev-*"]);
        assert_eq!(made.encryption, Encryption::Kms { key: Some("arn:k".into()) });
        assert!(made.scan_on_push && made.lifecycle_policy.is_none());
        assert_eq!(made.tags.get("Team").map(String::as_str), Some("a b"));
        assert_eq!(made.tags.get("x").map(String::as_str), Some("1,2"));
    }

    #[test]
    fn mistakes_are_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display().to_string();
        for (text, words) in [
            ("mutability=sometimes", "mutability=sometimes"),
            ("except=a|", "except"),
            ("except=a b", "except"),
            ("except=1|2|3|4|5|6", "except"),
            ("encryption=rot13", "rot13"),
            ("encryption=aes256,kms-key=k", "kms-key"),
            ("colour=red", "colour"),
            ("tag.=x", "tag."),
            ("scan=perhaps", "perhaps"),
            ("lifecycle=/nonexistent", "/nonexistent"),
            (&format!("lifecycle={path}"), "JSON"),
        ] {
            let error = settings(text).unwrap_err();
            assert_eq!(error.class(), Class::Usage);
            assert!(error.title().contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn roles_are_arns() {
        assert!(role_arn("x", "arn:aws-us-gov:iam::123456789012:role/path/name").is_ok());
        for bad in ["", "role", "arn:aws:iam::1:user/x", "arn:aws:s3:::x", "arn:x:iam::1:role/y"] {
            assert!(role_arn("x", bad).unwrap_err().hint_text().is_some(), "{bad}");
        }
    }

    #[test]
    fn hosts_and_values() {
        assert_eq!(host_and("f", "X", "Reg.Example:5=a=b").unwrap().1, "a=b");
        for bad in ["", "=x", "x=", "x", "a/b=x", "u@h=x"] {
            assert!(host_and("f", "X", bad).is_err(), "{bad}");
        }
    }
}
