//! `--secret id=ID[,src=PATH|,env=NAME][,type=file|env]`.

use std::{collections::BTreeMap, fs, os::unix::ffi::OsStrExt, path::PathBuf};

use bareboat_core::{Class, Error, request::SecretSource, secret::Secret};

use super::csv;
use crate::flags::Environment;

/// A secret's largest size (BuildKit's own limit).
const SECRET_BYTES_MAX: u64 = 500 * 1024;

/// All `--secret`, by id.
pub fn secrets(
    values: &[String],
    environment: &Environment,
) -> Result<BTreeMap<String, SecretSource>, Error> {
    let mut secrets = BTreeMap::new();
    for value in values {
        let (id, source) = secret(value, environment)?;
        if secrets.contains_key(&id) {
            return Err(usage(format!("--secret: id={id} twice")));
        }
        secrets.insert(id, source);
    }
    Ok(secrets)
}

#[derive(Default)]
struct Typed {
    id: Option<String>,
    file: Option<String>,
    variable: Option<String>,
    kind: Option<String>,
}

fn secret(text: &str, environment: &Environment) -> Result<(String, SecretSource), Error> {
    let mut typed = Typed::default();
    for (key, value) in csv::pairs("secret", text)? {
        let slot = match key.as_str() {
            "id" => &mut typed.id,
            "src" | "source" => &mut typed.file,
            "env" => &mut typed.variable,
            "type" => &mut typed.kind,
            _ => return Err(usage(format!("--secret: the key {key} is not known"))),
        };
        if slot.replace(value).is_some() {
            return Err(usage(format!("--secret: {key} twice")));
        }
    }
    resolve(typed, environment)
}

/// As BuildKit: with neither a file nor a variable the id names a variable if there is one, else a file; with
/// `type=env` the source names a variable.
fn resolve(typed: Typed, environment: &Environment) -> Result<(String, SecretSource), Error> {
    let id = typed.id.filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| usage("--secret: no id=".to_owned()))?;
    let (file, variable) = match typed.kind.as_deref() {
        Some("env") if typed.variable.is_none() => (None, typed.file),
        None | Some("env" | "file") => (typed.file, typed.variable),
        Some(kind) => {
            return Err(usage(format!("--secret id={id}: type={kind} is neither file nor env")));
        }
    };
    let source = match (file, variable) {
        (Some(_), Some(_)) => {
            return Err(usage(format!("--secret id={id}: both a file and a variable")));
        }
        (Some(file), None) => from_file(&id, file)?,
        (None, Some(variable)) => from_variable(&id, &variable, environment)?,
        (None, None) if typed.kind.as_deref() != Some("file") && environment.raw(&id).is_some() => {
            from_variable(&id, &id, environment)?
        }
        (None, None) if typed.kind.as_deref() == Some("env") => {
            from_variable(&id, &id, environment)?
        }
        (None, None) => from_file(&id, id.clone())?,
    };
    Ok((id, source))
}

fn from_variable(id: &str, name: &str, environment: &Environment) -> Result<SecretSource, Error> {
    let value = environment.raw(name).ok_or_else(|| {
        usage(format!("--secret id={id}: the environment variable {name} is not set"))
    })?;
    check_size(id, value.len() as u64)?;
    Ok(SecretSource::Value(Secret::new(value.as_bytes().to_vec())))
}

fn from_file(id: &str, path: String) -> Result<SecretSource, Error> {
    let found = fs::metadata(&path);
    let found = found.map_err(|error| usage(format!("--secret id={id}: {path}: {error}")))?;
    if found.is_dir() {
        return Err(usage(format!("--secret id={id}: {path} is a directory")));
    }
    check_size(id, found.len())?;
    Ok(SecretSource::File(PathBuf::from(path)))
}

fn check_size(id: &str, bytes: u64) -> Result<(), Error> {
    if bytes > SECRET_BYTES_MAX {
        return Err(usage(format!(
            "--secret id={id}: {bytes} bytes are more than {SECRET_BYTES_MAX}"
        )));
    }
    Ok(())
}

fn usage(title: String) -> Error {
    Error::new(Class::Usage, title)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(String, SecretSource), Error> {
        let mut environment = Environment::default();
        environment.variables.insert("TOKEN".into(), "s3cret".into());
        secret(text, &environment)
    }

    fn value(text: &str) -> SecretSource {
        parsed(text).unwrap().1
    }

    #[test]
    fn every_form_of_a_source() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let of_file = SecretSource::File(path.into());
        let of_variable = SecretSource::Value(Secret::new(b"s3cret".to_vec()));
        assert_eq!(value(&format!("id=a,src={path}")), of_file);
        assert_eq!(value(&format!("id=a,source={path},type=file")), of_file);
        assert_eq!(value(&format!("id={path}")), of_file);
        assert_eq!(value("id=a,env=TOKEN"), of_variable);
        assert_eq!(value("type=env,id=a,src=TOKEN"), of_variable);
        assert_eq!(value("id=TOKEN"), of_variable);
        assert_eq!(value("id=TOKEN,type=env"), of_variable);
    }

    #[test]
    fn faults_are_named_and_never_show_a_value() {
        for text in [
            "src=x",
            "id=,src=x",
            "id=a,src=/nonexistent/x",
            "id=a,env=GONE",
            "id=a,src=/",
            "id=a,foo=b",
            "id=a,type=vault,src=x",
            "id=a,src=x,env=TOKEN",
            "id=a,src=x,source=y",
            "id=TOKEN,type=file",
            "id=a,type=env",
            "token",
        ] {
            let error = parsed(text).unwrap_err();
            assert_eq!(error.class(), Class::Usage, "{text}");
            assert!(!error.to_string().contains("s3cret"), "{text}");
        }
    }

    #[test]
    fn an_id_is_given_once() {
        let mut environment = Environment::default();
        environment.variables.insert("T".into(), "x".into());
        let twice = ["id=T".to_owned(), "id=T".to_owned()];
        assert!(secrets(&twice, &environment).unwrap_err().title().contains("twice"));
    }

    #[test]
    fn a_huge_secret_is_refused() {
        let mut environment = Environment::default();
        environment.variables.insert("T".into(), "x".repeat(600_000).into());
        assert!(secret("id=T", &environment).is_err());
    }
}
