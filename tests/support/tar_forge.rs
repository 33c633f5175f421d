//! Writes tar archives block by block, so that any field may hold anything.

/// One header and its body. Everything can be overridden after the usual fields are set.
#[derive(Clone)]
pub struct Member {
    header: [u8; 512],
    body: Vec<u8>,
    keep_checksum: bool,
}

impl Member {
    /// A header of any type. A name longer than 100 bytes is cut: give the whole one by PAX or a GNU long name.
    pub fn new(kind: u8, name: impl AsRef<[u8]>) -> Member {
        let mut member = Member { header: [0; 512], body: Vec::new(), keep_checksum: false };
        member.put(0, 100, name.as_ref());
        member.put(257, 8, b"ustar\x0000");
        member.header[156] = kind;
        member.mode(0o644).uid(0).gid(0).mtime(1_000_000_000).declared_size(0)
    }

    pub fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Member {
        Member::new(b'0', name).body(content)
    }

    pub fn directory(name: impl AsRef<[u8]>) -> Member {
        Member::new(b'5', name).mode(0o755)
    }

    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
        Member::new(b'2', name).mode(0o777).link(target)
    }

    pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
        Member::new(b'1', name).link(target)
    }

    pub fn whiteout(name: impl AsRef<[u8]>) -> Member {
        Member::new(b'0', name).mode(0).mtime(0)
    }

    fn put(&mut self, at: usize, length: usize, bytes: &[u8]) {
        let count = bytes.len().min(length);
        self.header[at..at + length].fill(0);
        self.header[at..at + count].copy_from_slice(&bytes[..count]);
    }

    fn octal(mut self, at: usize, length: usize, value: u64) -> Member {
        let text = format!("{value:0width$o}", width = length - 1);
        self.put(at, length, text.as_bytes());
        self
    }

    pub fn mode(self, mode: u32) -> Member {
        self.octal(100, 8, mode.into())
    }

    pub fn uid(self, uid: u64) -> Member {
        self.octal(108, 8, uid)
    }

    pub fn gid(self, gid: u64) -> Member {
        self.octal(116, 8, gid)
    }

    pub fn mtime(self, seconds: u64) -> Member {
        self.octal(136, 12, seconds)
    }

    pub fn link(mut self, target: impl AsRef<[u8]>) -> Member {
        self.put(157, 100, target.as_ref());
        self
    }

    pub fn device(self, major: u64, minor: u64) -> Member {
        self.octal(329, 8, major).octal(337, 8, minor)
    }

    /// The body and its size.
    pub fn body(mut self, content: impl AsRef<[u8]>) -> Member {
        self.body = content.as_ref().to_vec();
        let size = self.body.len() as u64;
        self.declared_size(size)
    }

    /// The size field alone, whatever the body is.
    pub fn declared_size(self, size: u64) -> Member {
        self.octal(124, 12, size)
    }

    /// Any bytes anywhere in the header. The checksum is still made right.
    pub fn raw(mut self, at: usize, bytes: &[u8]) -> Member {
        self.header[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// A big-endian base-256 number in a field, as GNU tar writes what octal digits cannot hold.
    pub fn base256(mut self, at: usize, length: usize, value: i128) -> Member {
        let bytes = value.to_be_bytes();
        let fill = if value < 0 { 0xff } else { 0 };
        for index in 0..length {
            let from_end = length - index;
            self.header[at + index] = if from_end <= 16 { bytes[16 - from_end] } else { fill };
        }
        self.header[at] |= 0x80;
        self
    }

    /// A checksum that is off by one.
    pub fn wrong_checksum(mut self) -> Member {
        self.keep_checksum = true;
        self = self.checksum(1);
        self
    }

    fn checksum(mut self, offset: u64) -> Member {
        self.header[148..156].fill(b' ');
        let sum: u64 = self.header.iter().map(|byte| u64::from(*byte)).sum();
        let text = format!("{:06o}\0 ", sum + offset);
        self.put(148, 8, text.as_bytes());
        self
    }

    fn bytes(self) -> Vec<u8> {
        let member = if self.keep_checksum { self } else { self.checksum(0) };
        let mut bytes = member.header.to_vec();
        bytes.extend(&member.body);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

/// A tar under construction.
#[derive(Clone, Default)]
pub struct TarForge {
    bytes: Vec<u8>,
}

impl TarForge {
    pub fn new() -> TarForge {
        TarForge::default()
    }

    /// An archive of these members with its end blocks.
    pub fn of(members: impl IntoIterator<Item = Member>) -> Vec<u8> {
        members.into_iter().fold(TarForge::new(), TarForge::add).finish()
    }

    pub fn add(self, member: Member) -> TarForge {
        self.raw(&member.bytes())
    }

    /// A member whose names come in a PAX header, however long they are. `link` may be empty.
    pub fn add_named(self, member: Member, name: &str, link: &str) -> TarForge {
        let records = [("path", name.as_bytes()), ("linkpath", link.as_bytes())];
        let given: Vec<_> = records.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        self.pax(&given).add(member)
    }

    /// A PAX header for the next member, its records well formed.
    pub fn pax(self, records: &[(&str, &[u8])]) -> TarForge {
        let body: Vec<u8> =
            records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        self.pax_raw(&body)
    }

    /// A PAX header for the next member with any bytes as its records.
    pub fn pax_raw(self, body: &[u8]) -> TarForge {
        self.add(Member::new(b'x', "PaxHeaders/x").body(body))
    }

    /// A global PAX header.
    pub fn global_pax(self, records: &[(&str, &[u8])]) -> TarForge {
        let body: Vec<u8> =
            records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        self.add(Member::new(b'g', "PaxHeaders/g").body(body))
    }

    pub fn gnu_long_name(self, name: &[u8]) -> TarForge {
        self.add(Member::new(b'L', "././@LongLink").body([name, b"\0"].concat()))
    }

    pub fn gnu_long_link(self, target: &[u8]) -> TarForge {
        self.add(Member::new(b'K', "././@LongLink").body([target, b"\0"].concat()))
    }

    pub fn raw(mut self, bytes: &[u8]) -> TarForge {
        self.bytes.extend(bytes);
        self
    }

    pub fn zero_blocks(self, count: usize) -> TarForge {
        self.raw(&vec![0; 512 * count])
    }

    /// With the two end blocks.
    pub fn finish(self) -> Vec<u8> {
        self.zero_blocks(2).bytes
    }

    /// Without any end.
    pub fn unfinished(self) -> Vec<u8> {
        self.bytes
    }
}

/// `LENGTH KEY=VALUE\n` with the length counting itself.
pub fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    let mut record = format!("{length} {key}=").into_bytes();
    record.extend(value);
    record.push(b'\n');
    record
}
