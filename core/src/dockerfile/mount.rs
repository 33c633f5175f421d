//! `RUN --mount`: one line of CSV with `key=value` fields, read in order. `size` and `required` are judged by the type
//! seen so far, so `type` has to come before them.

use thiserror::Error;

use super::{check, suggest, words::WordError};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MountType {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

const TYPES: [(&str, MountType); 5] = [
    ("bind", MountType::Bind),
    ("cache", MountType::Cache),
    ("tmpfs", MountType::Tmpfs),
    ("secret", MountType::Secret),
    ("ssh", MountType::Ssh),
];

impl MountType {
    pub fn as_str(self) -> &'static str {
        match self {
            MountType::Bind => "bind",
            MountType::Cache => "cache",
            MountType::Tmpfs => "tmpfs",
            MountType::Secret => "secret",
            MountType::Ssh => "ssh",
        }
    }

    fn may_be_required(self) -> bool {
        matches!(self, MountType::Secret | MountType::Ssh)
    }
}

/// How steps that run at once share a cache mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Sharing {
    #[default]
    Shared,
    Private,
    Locked,
}

const SHARINGS: [(&str, Sharing); 3] =
    [("shared", Sharing::Shared), ("private", Sharing::Private), ("locked", Sharing::Locked)];

impl Sharing {
    pub fn as_str(self) -> &'static str {
        match self {
            Sharing::Shared => "shared",
            Sharing::Private => "private",
            Sharing::Locked => "locked",
        }
    }
}

/// One mount of a RUN. Empty strings count as not given, but for `env`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    pub kind: MountType,
    pub from: Option<String>,
    pub source: Option<String>,
    /// Not given: the working directory, or the type's default.
    pub target: Option<String>,
    /// As asked for, or the type's default: false for cache and tmpfs.
    pub read_only: bool,
    /// Of tmpfs; 0 where not given.
    pub size_bytes: u64,
    pub id: Option<String>,
    /// Of a cache, where given.
    pub sharing: Option<Sharing>,
    /// Of a secret or ssh.
    pub required: bool,
    /// Of a secret: the variable to set. An empty name asks for the default one.
    pub env: Option<String>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MountError {
    #[error("failed to parse csv mounts: {0}")]
    Csv(&'static str),
    #[error("invalid field '{0}' must be a key=value pair")]
    NotAPair(String),
    #[error("unexpected key '{key}' in '{field}'")]
    UnknownKey { key: String, field: String },
    #[error("unexpected key '{key}' for mount type '{}'", kind.as_str())]
    KeyOfAnotherType { key: String, kind: MountType },
    #[error("invalid value for {key}: {value}")]
    Value { key: String, value: String },
    #[error("invalid value {value} for {key}")]
    Number { key: String, value: String },
    #[error("unsupported mount type {0:?}")]
    Type(String),
    #[error("unsupported sharing value {0:?}")]
    Sharing(String),
    #[error("'from' doesn't support variable expansion, define alias stage instead")]
    FromVariable,
    #[error("{key} not allowed for {:?} type mounts", kind.as_str())]
    NotAllowed { key: &'static str, kind: MountType },
    #[error("secret mount should not have a from")]
    SecretFrom,
    #[error("secret mount should not define sharing")]
    SecretSharing,
    #[error("invalid secret mount. one of source, target required")]
    SecretUnnamed,
    #[error("both source and id can't be set")]
    SecretNamedTwice,
    #[error("ssh does not support source")]
    SshSource,
    #[error("invalid cache sharing set for {} mount", .0.as_str())]
    SharingOfAnotherType(MountType),
    #[error(transparent)]
    Word(#[from] WordError),
}

impl MountError {
    /// What to do next, where there is something to say.
    pub fn hint(&self) -> Option<String> {
        let near = |given: &str, options: &[&'static str]| {
            suggest::nearest(given, options).map(|near| format!("did you mean {near}?"))
        };
        match self {
            MountError::UnknownKey { key, .. } => near(key, &KEYS),
            MountError::Type(given) => near(given, &TYPES.map(|(name, _)| name)),
            MountError::Sharing(given) => near(given, &SHARINGS.map(|(name, _)| name)),
            MountError::KeyOfAnotherType { key, kind: MountType::Bind } => {
                Some(format!("put type= before {key}; without it the type is bind"))
            }
            _ => None,
        }
    }
}

/// What can be said of a `--mount` value before anything is expanded: its CSV, and that `from` has no variable.
pub(super) fn check(value: &str) -> Result<(), MountError> {
    for field in fields(value)? {
        let Some((key, value)) = field.split_once('=') else { continue };
        let variable = value.find('$').is_some_and(|at| at + 1 != value.len());
        if key.eq_ignore_ascii_case("from") && variable {
            return Err(MountError::FromVariable);
        }
    }
    Ok(())
}

/// Reads the value of one `--mount`. Each field's value goes through `expand` after the fields were split, so a value
/// with a comma stays one; `from` can't hold a variable, which the parser has seen to already.
///
/// # Errors
/// BuildKit's, in its order: fields first, then what does not go together.
pub fn parse(
    value: &str,
    expand: &dyn Fn(&str) -> Result<String, WordError>,
) -> Result<Mount, MountError> {
    let mut reader = Reader::default();
    for field in fields(value)? {
        match field.split_once('=') {
            Some((key, value)) => reader.pair(&field, &key.to_lowercase(), expand(value)?)?,
            None => reader.word(&field, &field.to_lowercase())?,
        }
    }
    reader.finish()
}

#[derive(Default)]
struct Reader {
    mount: Mount,
    read_only: Option<bool>,
}

impl Reader {
    /// A field without a value.
    fn word(&mut self, field: &str, key: &str) -> Result<(), MountError> {
        match key {
            "readonly" | "ro" => self.read_only = Some(true),
            "readwrite" | "rw" => self.read_only = Some(false),
            "required" => self.require(key, true)?,
            _ => return Err(MountError::NotAPair(field.to_owned())),
        }
        Ok(())
    }

    fn pair(&mut self, field: &str, key: &str, value: String) -> Result<(), MountError> {
        let mount = &mut self.mount;
        match key {
            "type" => mount.kind = one_of(&TYPES, &value).ok_or(MountError::Type(value))?,
            "from" => mount.from = given(value),
            "source" | "src" => mount.source = given(value),
            "target" | "dst" | "destination" => mount.target = given(value),
            "readonly" | "ro" => self.read_only = Some(boolean(key, value)?),
            "readwrite" | "rw" => self.read_only = Some(!boolean(key, value)?),
            "required" => {
                self.require(key, true)?;
                self.mount.required = boolean(key, value)?;
            }
            "size" => self.size(key, value)?,
            "id" => mount.id = given(value),
            "sharing" => {
                mount.sharing = Some(one_of(&SHARINGS, &value).ok_or(MountError::Sharing(value))?)
            }
            "mode" => mount.mode = Some(number(key, value, 8)?),
            "uid" => mount.uid = Some(number(key, value, 10)?),
            "gid" => mount.gid = Some(number(key, value, 10)?),
            "env" => mount.env = Some(value),
            _ => {
                return Err(MountError::UnknownKey {
                    key: key.to_owned(),
                    field: field.to_owned(),
                });
            }
        }
        Ok(())
    }

    fn require(&mut self, key: &str, required: bool) -> Result<(), MountError> {
        if !self.mount.kind.may_be_required() {
            return Err(MountError::KeyOfAnotherType {
                key: key.to_owned(),
                kind: self.mount.kind,
            });
        }
        self.mount.required = required;
        Ok(())
    }

    fn size(&mut self, key: &str, value: String) -> Result<(), MountError> {
        if self.mount.kind != MountType::Tmpfs {
            return Err(MountError::KeyOfAnotherType {
                key: key.to_owned(),
                kind: self.mount.kind,
            });
        }
        self.mount.size_bytes =
            bytes(&value).ok_or_else(|| MountError::Value { key: key.to_owned(), value })?;
        Ok(())
    }

    fn finish(self) -> Result<Mount, MountError> {
        let mut mount = self.mount;
        let kind = mount.kind;
        if matches!(kind, MountType::Bind | MountType::Tmpfs) {
            let given = [("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)];
            if let Some((key, _)) = given.into_iter().find(|(_, value)| value.is_some()) {
                return Err(MountError::NotAllowed { key, kind });
            }
        }
        mount.read_only =
            self.read_only.unwrap_or(!matches!(kind, MountType::Cache | MountType::Tmpfs));
        if kind == MountType::Secret {
            secret(&mount)?;
        }
        if kind == MountType::Ssh && mount.source.is_some() {
            return Err(MountError::SshSource);
        }
        if mount.sharing.is_some() && kind != MountType::Cache {
            return Err(MountError::SharingOfAnotherType(kind));
        }
        Ok(mount)
    }
}

fn secret(mount: &Mount) -> Result<(), MountError> {
    if mount.from.is_some() {
        return Err(MountError::SecretFrom);
    }
    if mount.sharing.is_some() {
        return Err(MountError::SecretSharing);
    }
    match (&mount.source, &mount.id) {
        (Some(_), Some(_)) => Err(MountError::SecretNamedTwice),
        (None, None) if mount.target.is_none() => Err(MountError::SecretUnnamed),
        _ => Ok(()),
    }
}

fn given(value: String) -> Option<String> {
    (!value.is_empty()).then_some(value)
}

fn one_of<T: std::marker::Copy>(options: &[(&str, T)], value: &str) -> Option<T> {
    let lower = value.to_lowercase();
    options.iter().find(|(name, _)| *name == lower).map(|(_, option)| *option)
}

fn boolean(key: &str, value: String) -> Result<bool, MountError> {
    check::boolean(&value).ok_or(MountError::Value { key: key.to_owned(), value })
}

fn number(key: &str, value: String, radix: u32) -> Result<u32, MountError> {
    let digits = value.chars().all(|c| c.is_digit(radix));
    let number = digits.then(|| u32::from_str_radix(&value, radix).ok()).flatten();
    number.ok_or(MountError::Number { key: key.to_owned(), value })
}

/// A size such as `64m`, `1.5 GiB` or `4096`, in bytes; units are powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let last = text.rfind(|c: char| c.is_ascii_digit() || matches!(c, '.' | ' '))?;
    let (number, unit) = text.split_at(last + 1);
    let number: f64 = number.strip_suffix(' ').unwrap_or(number).parse().ok()?;
    let unit = unit.to_ascii_lowercase();
    let (power, rest) = match unit.chars().next() {
        None | Some('b') => (0, &unit[..]),
        Some(c) => (1 + "kmgtp".find(c)? as i32, &unit[1..]),
    };
    let suffixes: &[&str] = if power == 0 { &["", "b"] } else { &["", "b", "ib"] };
    let size = number * 1024f64.powi(power);
    (suffixes.contains(&rest) && (0.0..i64::MAX as f64).contains(&size)).then_some(size as u64)
}

/// The fields of one line of CSV.
fn fields(line: &str) -> Result<Vec<String>, MountError> {
    let line = line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() {
        return Err(MountError::Csv("EOF"));
    }
    let mut fields = Vec::new();
    let mut rest = Some(line);
    while let Some(text) = rest {
        let (field, after) = match text.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => plain_field(text)?,
        };
        fields.push(field);
        rest = after;
    }
    Ok(fields)
}

/// A field, and what follows the comma behind it.
type Field<'t> = (String, Option<&'t str>);

fn plain_field(text: &str) -> Result<Field<'_>, MountError> {
    let (field, rest) =
        text.split_once(',').map_or((text, None), |(field, rest)| (field, Some(rest)));
    if field.contains('"') {
        return Err(MountError::Csv("bare \" in non-quoted field"));
    }
    Ok((field.to_owned(), rest))
}

/// After the opening quote; a doubled quote is one.
fn quoted_field(text: &str) -> Result<Field<'_>, MountError> {
    const UNBALANCED: MountError = MountError::Csv("extraneous or missing \" in quoted-field");
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (part, after) = rest.split_once('"').ok_or(UNBALANCED)?;
        field.push_str(part);
        match after.chars().next() {
            None => return Ok((field, None)),
            Some(',') => return Ok((field, Some(&after[1..]))),
            Some('"') => field.push('"'),
            Some(_) => return Err(UNBALANCED),
        }
        rest = &after[1..];
    }
}

#[cfg(test)]
mod tests;
