//! Cuts a stream of bytes into lines without keeping more than a bounded part of one.

/// What is kept of one line. What is longer is dropped and counted: nobody reads it, and a step can print gigabytes
/// without a line break.
pub const LINE_BYTES_MAX: usize = 32 << 10;

/// Cuts one stream. A carriage return means what it means on a terminal: what follows overwrites the line, so of a
/// progress bar only its last state remains.
#[derive(Debug, Default)]
pub struct LineCutter {
    line: Vec<u8>,
    dropped_bytes: u64,
    returned: bool,
}

impl LineCutter {
    /// Adds bytes and hands every finished line to `take`.
    pub fn push(&mut self, bytes: &[u8], mut take: impl FnMut(&[u8])) {
        let mut rest = bytes;
        while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.add(&rest[..at]);
            match rest[at] {
                b'\n' => self.end(&mut take),
                _ => self.returned = true,
            }
            rest = &rest[at + 1..];
        }
        self.add(rest);
    }

    /// The stream has ended: hands out what has no line break.
    pub fn finish(&mut self, mut take: impl FnMut(&[u8])) {
        if !self.line.is_empty() {
            self.end(&mut take);
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if std::mem::take(&mut self.returned) {
            self.line.clear();
            self.dropped_bytes = 0;
        }
        let kept = bytes.len().min(LINE_BYTES_MAX - self.line.len());
        self.line.extend_from_slice(&bytes[..kept]);
        self.dropped_bytes += (bytes.len() - kept) as u64;
    }

    fn end(&mut self, take: &mut impl FnMut(&[u8])) {
        if self.dropped_bytes > 0 {
            let note = format!(" [{} more bytes of this line are not shown]", self.dropped_bytes);
            self.line.extend_from_slice(note.as_bytes());
        }
        take(&self.line);
        self.line.clear();
        self.dropped_bytes = 0;
        self.returned = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let mut lines = Vec::new();
        let mut cutter = LineCutter::default();
        let mut take = |line: &[u8]| lines.push(String::from_utf8_lossy(line).into_owned());
        for piece in pieces {
            cutter.push(piece, &mut take);
        }
        cutter.finish(&mut take);
        lines
    }

    #[test]
    fn lines_come_whole_whatever_the_pieces() {
        assert_eq!(lines(&[b"a\nb", b"c\n\nd"]), ["a", "bc", "", "d"]);
        assert_eq!(lines(&[b""]), [""; 0]);
        assert_eq!(lines(&[b"\n"]), [""]);
    }

    #[test]
    fn carriage_returns_overwrite() {
        assert_eq!(lines(&[b"a\r\nb\r\n"]), ["a", "b"]);
        assert_eq!(lines(&[b"a\r", b"\nb\r", b"\r\n"]), ["a", "b"]);
        assert_eq!(lines(&[b"10%\r20%\r100%\n"]), ["100%"]);
        assert_eq!(lines(&[b"50%\r"]), ["50%"]);
    }

    #[test]
    fn a_line_without_end_takes_bounded_memory() {
        let mut cutter = LineCutter::default();
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..1024 {
            cutter.push(&piece, |_| panic!("no line ended"));
        }
        assert!(cutter.line.capacity() <= 2 * LINE_BYTES_MAX);
        let mut shown = Vec::new();
        cutter.push(b"\n", |line| shown = line.to_vec());
        let note = format!(
            "[{} more bytes of this line are not shown]",
            (1u64 << 30) - LINE_BYTES_MAX as u64
        );
        assert!(shown.ends_with(note.as_bytes()));
    }

    #[test]
    fn a_short_line_after_a_long_one_is_whole() {
        let long = vec![b'x'; LINE_BYTES_MAX + 5];
        assert_eq!(lines(&[&long, b"\rshort\n", b"next\n"]), ["short", "next"]);
    }
}
