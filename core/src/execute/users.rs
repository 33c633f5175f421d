//! Users and groups as an image's own files name them (dockerfile-and-buildkit.md 2.8 and 2.10). libc's look-ups are
//! never used.

use std::io;

use crate::{
    context::{ContentsError, SnapshotContents, read_content, trim_space},
    tree::{EntryPath, ResolveError, SmallFile, Snapshot},
};

/// As BuildKit reads these files.
const FILE_BYTES_MAX: u64 = 10 << 20;
const PASSWD_LINE_BYTES_MAX: usize = 64 * 1024;
const GROUP_LINE_BYTES_MAX: usize = 1 << 20;
/// The OCI runtime specification's readers take no more.
const ID_MAX: u32 = i32::MAX as u32;

const PASSWD: &[u8] = b"etc/passwd";
const GROUP: &[u8] = b"etc/group";

#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    UnknownGroup(String),
    #[error("uid or gid {0} is not between 0 and 2147483647")]
    Id(String),
    #[error("{0} is not a regular file")]
    NotAFile(EntryPath),
    #[error("{0} is larger than 10 MiB")]
    Large(EntryPath),
    #[error("a line of {0} is too long")]
    LongLine(&'static str),
    #[error("the line of {name} in {file} has no valid id")]
    MalformedLine { file: &'static str, name: String },
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("{0} cannot be read")]
    Read(EntryPath, #[source] io::Error),
    #[error("{0} cannot be had")]
    Contents(EntryPath, #[source] ContentsError),
}

/// A snapshot whose passwd and group files can be read.
#[derive(Clone, Copy)]
pub struct Parent<'a> {
    pub snapshot: &'a Snapshot,
    pub contents: &'a dyn SnapshotContents,
}

impl Parent<'_> {
    /// `etc/passwd`; `None` where there is none.
    pub fn passwd(&self) -> Result<Option<Vec<u8>>, UserError> {
        self.read(PASSWD)
    }

    /// `etc/group`; `None` where there is none.
    pub fn group(&self) -> Result<Option<Vec<u8>>, UserError> {
        self.read(GROUP)
    }

    fn read(&self, path: &[u8]) -> Result<Option<Vec<u8>>, UserError> {
        let path = EntryPath::clean(path).map_err(ResolveError::from)?;
        let entry = match self.snapshot.small_file(&path)? {
            SmallFile::Missing => return Ok(None),
            SmallFile::NotAFile => return Err(UserError::NotAFile(path)),
            SmallFile::Bytes(bytes) => return Ok(Some(bytes.to_vec())),
            SmallFile::Elsewhere(entry) => entry,
        };
        let contents = self.contents.contents(&[(entry.layer, entry.row)]);
        let contents = contents.map_err(|error| UserError::Contents(path.clone(), error))?;
        let content = contents.first().ok_or_else(|| {
            UserError::Read(path.clone(), io::Error::from(io::ErrorKind::NotFound))
        })?;
        let bytes = read_content(content, FILE_BYTES_MAX)
            .map_err(|error| UserError::Read(path.clone(), error))?;
        bytes.map(Some).ok_or(UserError::Large(path))
    }
}

/// Who owns what a step makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// One half of an owner string.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Id(u32),
    Name(String),
}

/// An owner as `--chown` and USER write it, not looked up yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerSpec {
    user: Name,
    group: Option<Name>,
}

impl OwnerSpec {
    /// `user`, `user:group`, `:group` or `user:`; an empty half and `root` are 0.
    pub fn parse(spec: &str) -> Result<Self, UserError> {
        let (user, group) = match spec.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (spec, None),
        };
        Ok(OwnerSpec { user: parse_half(user)?, group: group.map(parse_half).transpose()? })
    }

    /// Whether it can only be looked up in an image.
    pub fn is_named(&self) -> bool {
        matches!(self.user, Name::Name(_)) || matches!(self.group, Some(Name::Name(_)))
    }

    /// Looks names up in the parent: a number alone is uid and gid, a name brings its passwd gid, an unknown user is 0:0,
    /// an unknown group leaves the gid.
    pub fn look_up(&self, parent: &Parent<'_>) -> Result<Owner, UserError> {
        let mut owner = match &self.user {
            Name::Id(id) => Owner { uid: *id, gid: *id },
            Name::Name(name) => match parent.passwd()? {
                Some(passwd) => owner_of_user(&passwd, name)?.unwrap_or_default(),
                None => Owner::default(),
            },
        };
        match &self.group {
            Some(Name::Id(id)) => owner.gid = *id,
            Some(Name::Name(name)) => {
                let group = parent.group()?.unwrap_or_default();
                owner.gid = gid_of_group(&group, name)?.unwrap_or(owner.gid);
            }
            None => {}
        }
        Ok(owner)
    }
}

fn parse_half(text: &str) -> Result<Name, UserError> {
    match text {
        "" | "root" => Ok(Name::Id(0)),
        _ => Ok(match number(text)? {
            Some(id) => Name::Id(id),
            None => Name::Name(text.to_owned()),
        }),
    }
}

/// A decimal number, perhaps signed; `None` for what is a name. Numbers that are no id are refused.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    let id = text.parse::<i64>().ok().and_then(|number| u32::try_from(number).ok());
    match id.filter(|id| *id <= ID_MAX) {
        Some(id) => Ok(Some(id)),
        None => Err(UserError::Id(text.chars().take(40).collect())),
    }
}

/// The lines of such a file that say something, each as its fields.
fn entries<'a>(
    file: &'a [u8],
    name: &'static str,
    line_bytes_max: usize,
) -> impl Iterator<Item = Result<Vec<&'a [u8]>, UserError>> {
    let lines = file.split(|byte| *byte == b'\n').map(move |line| match line.len() {
        length if length >= line_bytes_max => Err(UserError::LongLine(name)),
        _ => Ok(trim_space(line)),
    });
    let lines =
        lines.filter(|line| line.as_ref().is_ok_and(|line| !line.is_empty()) || line.is_err());
    lines.map(|line| Ok(line?.split(|byte| *byte == b':').collect()))
}

fn passwd_entries(file: &[u8]) -> impl Iterator<Item = Result<Vec<&[u8]>, UserError>> {
    entries(file, "/etc/passwd", PASSWD_LINE_BYTES_MAX)
}

fn group_entries(file: &[u8]) -> impl Iterator<Item = Result<Vec<&[u8]>, UserError>> {
    entries(file, "/etc/group", GROUP_LINE_BYTES_MAX)
        .filter(|entry| !entry.as_ref().is_ok_and(|fields| fields[0].starts_with(b"#")))
}

/// The number in one field of a line that was asked for.
fn field_id(fields: &[&[u8]], at: usize, file: &'static str) -> Result<u32, UserError> {
    let text = fields.get(at).and_then(|field| std::str::from_utf8(field).ok());
    text.and_then(|text| number(text).ok().flatten()).ok_or_else(|| UserError::MalformedLine {
        file,
        name: fields[0].escape_ascii().to_string().chars().take(80).collect(),
    })
}

fn owner_of_user(passwd: &[u8], name: &str) -> Result<Option<Owner>, UserError> {
    let found = find(passwd_entries(passwd), |fields| fields[0] == name.as_bytes())?;
    found.map(|fields| user_owner(&fields)).transpose()
}

fn user_owner(fields: &[&[u8]]) -> Result<Owner, UserError> {
    let id = |at| field_id(fields, at, "/etc/passwd");
    Ok(Owner { uid: id(2)?, gid: id(3)? })
}

fn gid_of_group(group: &[u8], name: &str) -> Result<Option<u32>, UserError> {
    let found = find(group_entries(group), |fields| fields[0] == name.as_bytes())?;
    found.map(|fields| field_id(&fields, 2, "/etc/group")).transpose()
}

/// The first entry that fits. Faults after it do not count.
fn find<'a>(
    entries: impl Iterator<Item = Result<Vec<&'a [u8]>, UserError>>,
    fits: impl Fn(&[&[u8]]) -> bool,
) -> Result<Option<Vec<&'a [u8]>>, UserError> {
    for entry in entries {
        let fields = entry?;
        if fits(&fields) {
            return Ok(Some(fields));
        }
    }
    Ok(None)
}

/// Whom a RUN's process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunUser {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups; the gid is always among them.
    pub groups: Vec<u32>,
    /// HOME where the environment has none: `/` for a uid that passwd does not have, perhaps empty.
    pub home: Vec<u8>,
}

/// Looks up a RUN's USER (section 2.10): a missing name is an error, a number that passwd does not have gets gid 0.
/// An empty string is root. Groups of a user count only where no group was given.
pub fn run_user(
    spec: &str,
    passwd: Option<&[u8]>,
    group: Option<&[u8]>,
) -> Result<RunUser, UserError> {
    let mut parts = spec.split(':');
    let user = parts.next().filter(|user| !user.is_empty()).unwrap_or("0");
    let group_name = parts.next().filter(|group| !group.is_empty());
    let (passwd, group) = (passwd.unwrap_or_default(), group.unwrap_or_default());
    if let Some((uid, gid)) = group_name.and_then(|group| two_numbers(user, group)) {
        return Ok(RunUser { uid, gid, groups: vec![gid], home: home(passwd, uid)? });
    }
    let (uid, primary, name) = process_user(user, passwd)?;
    let (gid, mut groups) = match group_name {
        Some(name) => (process_group(name, group)?, Vec::new()),
        None => (primary, memberships(group, name)?),
    };
    if !groups.contains(&gid) {
        groups.insert(0, gid);
    }
    Ok(RunUser { uid, gid, groups, home: home(passwd, uid)? })
}

/// Two numbers (`root` is one) are taken as they are, whatever the files say.
fn two_numbers(user: &str, group: &str) -> Option<(u32, u32)> {
    let id = |text| if text == "root" { Some(0) } else { number(text).ok().flatten() };
    Some((id(user)?, id(group)?))
}

/// uid, primary gid, and the name where passwd has one.
fn process_user<'a>(
    user: &str,
    passwd: &'a [u8],
) -> Result<(u32, u32, Option<&'a [u8]>), UserError> {
    let id = number(user)?;
    let found = find(passwd_entries(passwd), |fields| match id {
        Some(id) => field_id(fields, 2, "/etc/passwd").is_ok_and(|uid| uid == id),
        None => fields[0] == user.as_bytes(),
    })?;
    match (found, id) {
        (Some(fields), _) => {
            let owner = user_owner(&fields)?;
            Ok((owner.uid, owner.gid, Some(fields[0])))
        }
        (None, Some(id)) => Ok((id, 0, None)),
        (None, None) => Err(UserError::UnknownUser(user.to_owned())),
    }
}

fn process_group(name: &str, group: &[u8]) -> Result<u32, UserError> {
    if let Some(id) = number(name)? {
        return Ok(id);
    }
    match gid_of_group(group, name)? {
        Some(gid) => Ok(gid),
        None => Err(UserError::UnknownGroup(name.to_owned())),
    }
}

/// The groups that list a user as a member, in the file's order.
fn memberships(group: &[u8], user: Option<&[u8]>) -> Result<Vec<u32>, UserError> {
    let (mut gids, Some(user)) = (Vec::new(), user) else { return Ok(Vec::new()) };
    for entry in group_entries(group) {
        let fields = entry?;
        let members = fields.get(3).copied().unwrap_or_default();
        if members.split(|byte| *byte == b',').any(|member| member == user) {
            gids.push(field_id(&fields, 2, "/etc/group")?);
        }
    }
    Ok(gids)
}

fn home(passwd: &[u8], uid: u32) -> Result<Vec<u8>, UserError> {
    let found = find(passwd_entries(passwd), |fields| {
        field_id(fields, 2, "/etc/passwd").is_ok_and(|id| id == uid)
    })?;
    Ok(match found {
        Some(fields) => fields.get(5).copied().unwrap_or_default().to_vec(),
        None => b"/".to_vec(),
    })
}

#[cfg(test)]
mod tests;
