//! A changeset as a layer: canonical tar, both digests, index and compression in one pass.

use std::{
    borrow::Cow,
    collections::HashMap,
    io::{self, Write},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use tar::EntryType;

use crate::{
    digest::Digest,
    tree::{Change, Changeset, EntryPath, Kind, Metadata, Row, Timestamp, is_small_file},
};

use super::{
    LayerDescriptor, LayerError, WriteOptions, WrittenLayer,
    compress::{self, BlockWriter},
    names::{Names, Place, check_symlink_target},
    tar::{
        MTIME_SECONDS,
        writer::{DEVICE_MAX, END, MemberHeader, body_padding},
    },
};

/// Writes a changeset as a layer into `blob` (OCI image-spec, layer.md).
///
/// The bytes depend on the changeset, the compression and `mtime_seconds_max` alone. A file whose content is not what the
/// changeset says is an error; `blob` then holds a part of a layer.
pub fn write_layer(
    changeset: &Changeset,
    options: &WriteOptions,
    blob: &mut (dyn Write + Send),
) -> Result<WrittenLayer, LayerError> {
    let (names, compressed) = compress::run(options, blob, |out| {
        let mut writer = LayerWriter::new(out, options.mtime_seconds_max);
        for change in changeset.changes() {
            writer.change(change)?;
        }
        writer.out.write(&END)?;
        Ok(writer.names)
    })?;
    Ok(WrittenLayer {
        descriptor: LayerDescriptor {
            media_type: compress::media_type(options.compression).to_owned(),
            digest: compressed.digest,
            size: compressed.size,
        },
        diff_id: compressed.diff_id,
        uncompressed_bytes: compressed.uncompressed_bytes,
        index: names.into_index(),
    })
}

struct LayerWriter<'a, 'b> {
    out: &'a mut BlockWriter<'b>,
    mtime_seconds_max: Option<i64>,
    names: Names,
    /// The first name of each hard-link group of the changeset.
    first_names: HashMap<u32, (EntryPath, Metadata)>,
    header: Vec<u8>,
}

/// A regular file's content as it was written.
struct WrittenContent {
    offset: u64,
    digest: Digest,
    kept: Option<Arc<[u8]>>,
}

impl<'a, 'b> LayerWriter<'a, 'b> {
    fn new(out: &'a mut BlockWriter<'b>, mtime_seconds_max: Option<i64>) -> Self {
        LayerWriter {
            out,
            mtime_seconds_max,
            names: Names::new(u64::MAX),
            first_names: HashMap::new(),
            header: Vec::new(),
        }
    }

    fn change(&mut self, change: &Change) -> Result<(), LayerError> {
        let name = name_in_tar(change);
        let place = self.names.place(&name)?;
        // What begins with `.wh.` is something else to readers, and no name to link to.
        let joins = change.link_group > 0 && matches!(place, Place::Entry(_));
        let first = self.first_names.get(&change.link_group).filter(|_| joins);
        if let Some((target, metadata)) = first.cloned() {
            return self.hard_link(&change.path, &target, &metadata);
        }
        let metadata = self.metadata(change)?;
        self.member(change, &name, &metadata)?;
        let content = match change.kind {
            Kind::File { size } => Some(self.content(change, size)?),
            _ => None,
        };
        self.index(place, &change.kind, &metadata, content)?;
        if joins {
            self.first_names.insert(change.link_group, (change.path.clone(), metadata));
        }
        Ok(())
    }

    /// The metadata as it is written: whole seconds, version 2 of capabilities.
    fn metadata(&self, change: &Change) -> Result<Metadata, LayerError> {
        if change.kind == Kind::Whiteout {
            return Ok(Metadata::default());
        }
        let is_link = matches!(change.kind, Kind::Symlink { .. });
        let seconds = change.metadata.mtime.seconds;
        let seconds = self.mtime_seconds_max.map_or(seconds, |max| seconds.min(max));
        let seconds = seconds.clamp(*MTIME_SECONDS.start(), *MTIME_SECONDS.end());
        let capability = change.metadata.capability.as_deref();
        let capability = capability.map(|value| capability_version_2(value, &change.path));
        Ok(Metadata {
            mode: if is_link { 0o777 } else { change.metadata.mode & 0o7777 },
            uid: change.metadata.uid,
            gid: change.metadata.gid,
            mtime: Timestamp::from_seconds(seconds),
            capability: capability.transpose()?,
        })
    }

    fn member(
        &mut self,
        change: &Change,
        name: &[u8],
        metadata: &Metadata,
    ) -> Result<(), LayerError> {
        let (typeflag, size, target, device) = match &change.kind {
            Kind::Directory { .. } => (EntryType::Directory, 0, &b""[..], None),
            Kind::File { size } => (EntryType::Regular, *size, &b""[..], None),
            Kind::Whiteout => (EntryType::Regular, 0, &b""[..], None),
            Kind::Symlink { target } => {
                check_symlink_target(&change.path, target)?;
                (EntryType::Symlink, 0, &target[..], None)
            }
            Kind::Fifo => (EntryType::Fifo, 0, &b""[..], None),
            Kind::CharacterDevice { major, minor } => {
                (EntryType::Char, 0, &b""[..], Some((*major, *minor)))
            }
            Kind::BlockDevice { major, minor } => {
                (EntryType::Block, 0, &b""[..], Some((*major, *minor)))
            }
        };
        if let Some((major, minor)) = device.filter(|(a, b)| (*a).max(*b) > DEVICE_MAX) {
            return Err(LayerError::Device { path: change.path.clone(), major, minor });
        }
        self.write_header(&MemberHeader { name, typeflag, metadata, size, target, device })
    }

    fn write_header(&mut self, header: &MemberHeader<'_>) -> Result<(), LayerError> {
        self.header.clear();
        header.encode(&mut self.header);
        self.out.write(&self.header)
    }

    /// Copies the content, which must have exactly the size and digest that the changeset gives.
    fn content(&mut self, change: &Change, size: u64) -> Result<WrittenContent, LayerError> {
        let path = &change.path;
        let offset = self.out.position();
        let mut hasher = Sha256::new();
        let mut kept = is_small_file(path, size).then(Vec::new);
        if let Some(content) = &change.content {
            let mut reader = content.open().map_err(|error| content_error(path, error))?;
            let mut left = size;
            while left > 0 {
                let room = self.out.room()?;
                let want = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let got = read(&mut reader, &mut room[..want], path)?;
                if got == 0 {
                    return Err(LayerError::Changed { path: path.clone() });
                }
                hasher.update(&room[..got]);
                kept.iter_mut().for_each(|kept| kept.extend_from_slice(&room[..got]));
                self.out.advance(got);
                left -= got as u64;
            }
            if read(&mut reader, &mut [0], path)? > 0 {
                return Err(LayerError::Changed { path: path.clone() });
            }
        } else if size > 0 {
            return Err(LayerError::MissingContent { path: path.clone(), size });
        }
        self.out.write(body_padding(size))?;
        let digest = Digest::from_bytes(hasher.finalize().into());
        if change.digest.is_some_and(|expected| expected != digest) {
            return Err(LayerError::Changed { path: path.clone() });
        }
        Ok(WrittenContent { offset, digest, kept: kept.map(Arc::from) })
    }

    fn hard_link(
        &mut self,
        path: &EntryPath,
        target: &EntryPath,
        metadata: &Metadata,
    ) -> Result<(), LayerError> {
        self.write_header(&MemberHeader {
            name: path.as_bytes(),
            typeflag: EntryType::Link,
            metadata,
            size: 0,
            target: target.as_bytes(),
            device: None,
        })?;
        self.names.link(path, target.as_bytes(), metadata)?;
        Ok(())
    }

    /// Puts into the index what a reader of the layer will see.
    fn index(
        &mut self,
        place: Place,
        kind: &Kind,
        metadata: &Metadata,
        content: Option<WrittenContent>,
    ) -> Result<(), LayerError> {
        match place {
            Place::Entry(path) => {
                let kind = if kind.is_directory() { Kind::DIRECTORY } else { kind.clone() };
                let mut row = Row::new(path.clone(), kind, metadata.clone());
                row.digest = content.as_ref().map(|content| content.digest);
                row.tar_offset = content.as_ref().map_or(0, |content| content.offset);
                self.names.insert(row)?;
                if let Some(bytes) = content.and_then(|content| content.kept) {
                    self.names.keep_bytes(&path, bytes);
                }
            }
            Place::Whiteout(path) => {
                self.names.insert(Row::new(path, Kind::Whiteout, Metadata::default()))?;
            }
            Place::Opaque(directory) => drop(self.names.set_opaque(&directory)?),
            Place::Root | Place::Nowhere => {}
        }
        Ok(())
    }
}

fn name_in_tar(change: &Change) -> Cow<'_, [u8]> {
    let path = change.path.as_bytes();
    match change.kind {
        Kind::Directory { .. } => [path, b"/"].concat().into(),
        Kind::Whiteout => {
            let (parent, name) = path.split_at(path.len() - change.path.file_name().len());
            [parent, b".wh.", name].concat().into()
        }
        _ => path.into(),
    }
}

fn read(
    reader: &mut dyn io::Read,
    buffer: &mut [u8],
    path: &EntryPath,
) -> Result<usize, LayerError> {
    loop {
        match reader.read(buffer) {
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(content_error(path, error)),
        }
    }
}

fn content_error(path: &EntryPath, source: io::Error) -> LayerError {
    let path = path.clone();
    match source.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound => LayerError::Changed { path },
        _ => LayerError::Content { path, source },
    }
}

const CAPABILITY_REVISION_MASK: u32 = 0xff00_0000;
const CAPABILITY_VERSION_2: u32 = 0x0200_0000;
const CAPABILITY_VERSION_3: u32 = 0x0300_0000;
const CAPABILITY_VERSION_2_BYTES: usize = 20;

/// `struct vfs_ns_cap_data` of linux/capability.h without the root id, which must be 0.
fn capability_version_2(value: &[u8], path: &EntryPath) -> Result<Box<[u8]>, LayerError> {
    let refused = |what| Err(LayerError::Capability { path: path.clone(), what });
    let Some((magic, rest)) = value.split_first_chunk::<4>() else {
        return refused("it is cut short");
    };
    let magic = u32::from_le_bytes(*magic);
    let root_id = match (magic & CAPABILITY_REVISION_MASK, value.len()) {
        (CAPABILITY_VERSION_2, CAPABILITY_VERSION_2_BYTES) => &[0; 4],
        (CAPABILITY_VERSION_3, 24) => &value[CAPABILITY_VERSION_2_BYTES..],
        (CAPABILITY_VERSION_2 | CAPABILITY_VERSION_3, _) => return refused("its length is wrong"),
        _ => return refused("it is of no version that is supported (2 and 3)"),
    };
    if root_id.iter().any(|byte| *byte != 0) {
        return refused("it is bound to the root of a user namespace");
    }
    let magic = magic & !CAPABILITY_REVISION_MASK | CAPABILITY_VERSION_2;
    let sets = &rest[..CAPABILITY_VERSION_2_BYTES - 4];
    Ok([&magic.to_le_bytes(), sets].concat().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_become_version_2() {
        let path = EntryPath::clean(b"bin/ping").unwrap();
        let convert = |value: &[u8]| capability_version_2(value, &path);
        let sets = [0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let version_2 = [&[1, 0, 0, 2][..], &sets].concat();
        let version_3 = [&[1, 0, 0, 3][..], &sets, &[0; 4]].concat();
        assert_eq!(&*convert(&version_2).unwrap(), version_2);
        assert_eq!(&*convert(&version_3).unwrap(), version_2);
        let foreign = [&[1, 0, 0, 3][..], &sets, &[0, 0, 1, 0]].concat();
        let version_1 = [&[1, 0, 0, 1][..], &sets[..8]].concat();
        for bad in [&foreign[..], &version_1, &version_2[..19], &version_3[..23], b"", b"\x01"] {
            let error = convert(bad).unwrap_err().to_string();
            assert!(error.contains("/bin/ping"), "{error}");
        }
    }
}
