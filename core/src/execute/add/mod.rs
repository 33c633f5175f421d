//! ADD: what COPY does, and local archives unpacked (rules.md section 2, rules 17 to 21).

mod unpack;

use std::io;

use crate::{
    context::{ContextError, Spool},
    digest::Digest,
    layer::{limits::ReadLimits, tar::TarError},
    tree::{Changeset, EntryPath, Kind, ResolveError, Snapshot},
};

use super::{
    copy::{CopyError, CopyRequest, Placement, Selected, SelectedSource, finish},
    users::Parent,
};

/// What an archive may be and where its files' bytes go.
pub struct Unpacking<'s> {
    pub spool: &'s mut Spool,
    pub limits: ReadLimits,
}

#[derive(Debug, thiserror::Error)]
pub enum AddError {
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("{path}: {source}")]
    Archive { path: EntryPath, source: TarError },
    #[error("{0} cannot be read")]
    Read(EntryPath, #[source] io::Error),
    #[error("{0} changed during the build")]
    Changed(EntryPath),
    #[error("the archive's member {name} {what}")]
    Member { name: String, what: &'static str },
    #[error("the archive's member {name}: {source}")]
    Resolve { name: String, source: ResolveError },
}

/// What an ADD adds to its parent. Each source that may be unpacked and is an archive by content is: its files' bytes
/// are decompressed once, into the spool.
pub fn add(
    parent: &Parent<'_>,
    selected: &Selected<'_>,
    request: &CopyRequest,
    unpacking: &mut Unpacking<'_>,
) -> Result<Changeset, AddError> {
    let empty = Snapshot::default();
    let mut placement = Placement::new(parent, &empty, request)?;
    for source in &selected.sources {
        if !(source.may_unpack && unpack_source(&mut placement, selected, source, unpacking)?) {
            placement.place(source)?;
        }
    }
    finish(placement.into_target(), parent, selected)
}

/// Unpacks one source if it is an archive.
fn unpack_source(
    placement: &mut Placement<'_>,
    selected: &Selected<'_>,
    source: &SelectedSource,
    unpacking: &mut Unpacking<'_>,
) -> Result<bool, AddError> {
    let Kind::File { size: 1.. } = source.node.kind else { return Ok(false) };
    let tree = selected.trees[source.tree];
    let contents = tree.contents(std::slice::from_ref(&source.root)).map_err(CopyError::from)?;
    let Some(content) = contents.first() else {
        return Err(CopyError::Source(ContextError::Vanished(source.root.clone())).into());
    };
    let read = |error| AddError::Read(source.root.clone(), error);
    let mut input = Digesting::new(content.open().map_err(read)?, source.node.digest);
    let Some(mut archive) = unpack::recognise(&mut input, unpacking.limits) else {
        return Ok(false);
    };
    unpack::unpack(&mut archive, placement, unpacking.spool, &source.root)?;
    drop(archive);
    match input.matches().map_err(read)? {
        true => Ok(true),
        false => Err(AddError::Changed(source.root.clone())),
    }
}

/// A reader that digests what it reads where a digest is expected.
struct Digesting {
    input: Box<dyn io::Read + Send>,
    expected: Option<(Digest, sha2::Sha256)>,
}

impl Digesting {
    fn new(input: Box<dyn io::Read + Send>, expected: Option<Digest>) -> Self {
        Digesting { input, expected: expected.map(|digest| (digest, sha2::Sha256::default())) }
    }

    /// Reads what is left, and tells whether all of it was what was expected.
    fn matches(mut self) -> io::Result<bool> {
        if self.expected.is_none() {
            return Ok(true);
        }
        io::copy(&mut self, &mut io::sink())?;
        let Some((expected, hasher)) = self.expected else { return Ok(true) };
        Ok(expected == Digest::from_bytes(sha2::Digest::finalize(hasher).into()))
    }
}

impl io::Read for Digesting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        if let Some((_, hasher)) = &mut self.expected {
            sha2::Digest::update(hasher, &buffer[..count]);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
