//! Members as bytes: ustar headers, preceded by a PAX header where a value does not fit into one. One rule for each field,
//! so that equal members are equal bytes.

use crate::tree::Metadata;

use super::{BLOCK_BYTES, pax::CAPABILITY_KEY};

/// What the header's fields hold in octal digits.
const ID_MAX: u32 = 0o7_777_777;
const SIZE_MAX: u64 = 0o77_777_777_777;
const NAME_BYTES: usize = 100;
pub(in crate::layer) const DEVICE_MAX: u32 = 0o7_777_777;

/// Two blocks of zeros.
pub(in crate::layer) const END: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];

/// A member's header.
#[derive(Clone, Copy)]
pub(in crate::layer) struct MemberHeader<'a> {
    /// Without a leading `./`; directories end in a slash.
    pub(in crate::layer) name: &'a [u8],
    pub(in crate::layer) typeflag: tar::EntryType,
    pub(in crate::layer) metadata: &'a Metadata,
    pub(in crate::layer) size: u64,
    /// Of symbolic and hard links, else empty.
    pub(in crate::layer) target: &'a [u8],
    /// Major and minor, of devices at most `DEVICE_MAX` each.
    pub(in crate::layer) device: Option<(u32, u32)>,
}

impl MemberHeader<'_> {
    /// Appends the header blocks.
    pub(in crate::layer) fn encode(&self, out: &mut Vec<u8>) {
        let records = self.records();
        if !records.is_empty() {
            put_pax(out, self.name, &records);
        }
        let mut header = tar::Header::new_ustar();
        let old = header.as_old_mut();
        put_name(&mut old.name, self.name);
        put_name(&mut old.linkname, self.target);
        header.set_entry_type(self.typeflag);
        header.set_mode(self.metadata.mode & 0o7777);
        header.set_uid(fitting(self.metadata.uid.into(), ID_MAX.into()));
        header.set_gid(fitting(self.metadata.gid.into(), ID_MAX.into()));
        header.set_size(fitting(self.size, SIZE_MAX));
        header.set_mtime(header_mtime(self.metadata.mtime.seconds).unwrap_or(0));
        if let Some(ustar) = header.as_ustar_mut() {
            let (major, minor) = self.device.unwrap_or_default();
            ustar.set_device_major(major);
            ustar.set_device_minor(minor);
        }
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
    }

    /// The PAX records, in a fixed order.
    fn records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        if !fits_header(self.name) {
            put_record(&mut records, b"path", self.name);
        }
        if !fits_header(self.target) {
            put_record(&mut records, b"linkpath", self.target);
        }
        let metadata = self.metadata;
        for (key, value, limit) in [
            (&b"size"[..], self.size, SIZE_MAX),
            (b"uid", metadata.uid.into(), ID_MAX.into()),
            (b"gid", metadata.gid.into(), ID_MAX.into()),
        ] {
            if value > limit {
                put_record(&mut records, key, value.to_string().as_bytes());
            }
        }
        if header_mtime(metadata.mtime.seconds).is_none() {
            put_record(&mut records, b"mtime", metadata.mtime.seconds.to_string().as_bytes());
        }
        if let Some(capability) = &metadata.capability {
            put_record(&mut records, CAPABILITY_KEY, capability);
        }
        records
    }
}

/// The zeros that fill a body's last block.
pub(in crate::layer) fn body_padding(size: u64) -> &'static [u8] {
    &END[..super::reader::padding(size) as usize]
}

fn fits_header(name: &[u8]) -> bool {
    name.len() <= NAME_BYTES && name.is_ascii()
}

/// A value that has a PAX record is 0 in the header.
fn fitting(value: u64, limit: u64) -> u64 {
    if value > limit { 0 } else { value }
}

fn header_mtime(seconds: i64) -> Option<u64> {
    u64::try_from(seconds).ok().filter(|seconds| *seconds <= SIZE_MAX)
}

/// A name that does not fit has a PAX record; the header then holds what is left of it for readers that know no PAX,
/// without a slash at the cut, which would make a directory of a file.
fn put_name(field: &mut [u8; NAME_BYTES], name: &[u8]) {
    let cut = &name[..name.len().min(NAME_BYTES)];
    for (slot, byte) in field.iter_mut().zip(cut) {
        *slot = if byte.is_ascii() { *byte } else { b'_' };
    }
    if name.len() > NAME_BYTES {
        let kept = cut.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
        field[kept..].fill(0);
    }
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts its own digits.
fn put_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + digits(length) {
        length = rest + digits(length);
    }
    out.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        out.extend_from_slice(part);
    }
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

fn put_pax(out: &mut Vec<u8>, name: &[u8], records: &[u8]) {
    let name = name.strip_suffix(b"/").unwrap_or(name);
    let base = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let mut header = tar::Header::new_ustar();
    put_name(&mut header.as_old_mut().name, &[b"PaxHeaders.0/", base].concat());
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(records.len() as u64);
    if let Some(ustar) = header.as_ustar_mut() {
        ustar.set_device_major(0);
        ustar.set_device_minor(0);
    }
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(records);
    out.extend_from_slice(body_padding(records.len() as u64));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for length in (0..200).chain(960..1010).chain(9_960..10_010) {
            let mut record = Vec::new();
            put_record(&mut record, b"path", &vec![b'x'; length]);
            let written: usize = std::str::from_utf8(record.split(|b| *b == b' ').next().unwrap())
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(written, record.len());
        }
    }

    #[test]
    fn a_cut_name_does_not_end_in_a_slash() {
        let mut field = [0; NAME_BYTES];
        put_name(&mut field, &[&[b'x'; 97][..], b"///yyyy"].concat());
        assert_eq!(&field[95..], b"xx\0\0\0");
    }
}
