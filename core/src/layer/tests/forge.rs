//! Archives from raw blocks, right and wrong ones.

/// Appends members; nothing is checked.
#[derive(Clone, Default)]
pub(in crate::layer) struct Forge(Vec<u8>);

type Block = [u8; 512];

fn put(block: &mut Block, at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

pub(in crate::layer) fn sum(block: &mut Block) {
    put(block, 148, b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    put(block, 148, format!("{sum:06o}\0 ").as_bytes());
}

impl Forge {
    /// A ustar header that `edit` may change before its checksum is made.
    pub(in crate::layer) fn header(
        mut self,
        typeflag: u8,
        name: &[u8],
        size: u64,
        edit: impl FnOnce(&mut Block),
    ) -> Self {
        let mut block = [0; 512];
        put(&mut block, 0, name);
        put(&mut block, 100, b"0000644\0");
        put(&mut block, 108, b"0000000\0");
        put(&mut block, 116, b"0000000\0");
        put(&mut block, 124, format!("{size:011o}\0").as_bytes());
        put(&mut block, 136, b"00000000144\0");
        block[156] = typeflag;
        put(&mut block, 257, b"ustar\x0000");
        edit(&mut block);
        sum(&mut block);
        self.0.extend_from_slice(&block);
        self
    }

    pub(in crate::layer) fn body(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(in crate::layer) fn file(self, name: &str, bytes: &[u8]) -> Self {
        self.header(b'0', name.as_bytes(), bytes.len() as u64, |_| {}).body(bytes)
    }

    pub(in crate::layer) fn directory(self, name: &str) -> Self {
        self.header(b'5', name.as_bytes(), 0, |_| {})
    }

    pub(in crate::layer) fn symlink(self, name: &str, target: &str) -> Self {
        self.header(b'2', name.as_bytes(), 0, |block| put(block, 157, target.as_bytes()))
    }

    pub(in crate::layer) fn link(self, name: &str, target: &str) -> Self {
        self.header(b'1', name.as_bytes(), 0, |block| put(block, 157, target.as_bytes()))
    }

    /// An extended header of type `x`, `g`, `L` or `K`.
    pub(in crate::layer) fn extension(self, typeflag: u8, bytes: &[u8]) -> Self {
        self.header(typeflag, b"extension", bytes.len() as u64, |_| {}).body(bytes)
    }

    pub(in crate::layer) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let bytes: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.extension(b'x', &bytes)
    }

    pub(in crate::layer) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(in crate::layer) fn bytes(self) -> Vec<u8> {
        self.0
    }

    pub(in crate::layer) fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).bytes()
    }
}

pub(in crate::layer) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest..).find(|length| rest + length.to_string().len() == *length).unwrap();
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}
