//! Where a finished deflate stream ends, to the bit, so that another one can follow it (RFC 1951).
//!
//! A compressor that works on whole buffers ends each stream with a final block and fills the last byte. To join such
//! streams to one, the final block must lose its mark and the join must come to a byte boundary. Nothing in a stream says
//! where its last block begins or ends: all Huffman codes are walked, without decoding anything but their lengths.

const BLOCK_FINAL: u8 = 1;
/// An empty stored block's LEN and NLEN, behind its three header bits and the fill of their byte.
const EMPTY_STORED: [u8; 4] = [0, 0, 0xff, 0xff];

/// Makes `stream`, one whole deflate stream whose last byte is filled with zeros, one that more may follow.
/// `None` where it is no such stream; it is as it was then.
pub(super) fn open_end(stream: &mut Vec<u8>) -> Option<()> {
    let end = find_end(stream)?;
    stream[end.final_block_bit / 8] &= !(BLOCK_FINAL << (end.final_block_bit % 8));
    // The zeros that fill the last byte are the stored block's header bits, as far as they go.
    stream.resize((end.end_bit + 3).div_ceil(8), 0);
    stream.extend_from_slice(&EMPTY_STORED);
    Some(())
}

#[derive(Debug, PartialEq, Eq)]
struct End {
    /// The first bit of the final block, its BFINAL.
    final_block_bit: usize,
    /// The first bit behind it.
    end_bit: usize,
}

fn find_end(stream: &[u8]) -> Option<End> {
    let mut bits = Bits { bytes: stream, at: 0, buffer: 0, count: 0 };
    let (mut literals, mut distances) = (Code::default(), Code::default());
    loop {
        let final_block_bit = bits.position();
        let is_final = bits.take(1)? == 1;
        match bits.take(2)? {
            0 => bits.skip_stored()?,
            1 => {
                fixed_codes(&mut literals, &mut distances);
                skip_symbols(&mut bits, &literals, &distances)?;
            }
            2 => {
                dynamic_codes(&mut bits, &mut literals, &mut distances)?;
                skip_symbols(&mut bits, &literals, &distances)?;
            }
            _ => return None,
        }
        if is_final {
            let end_bit = bits.position();
            let is_whole = end_bit.div_ceil(8) == stream.len();
            return is_whole.then_some(End { final_block_bit, end_bit });
        }
    }
}

/// The stream as bits, lowest first, with zeros behind its end.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    buffer: u64,
    count: u32,
}

impl Bits<'_> {
    fn position(&self) -> usize {
        self.at * 8 - self.count as usize
    }

    /// Makes at least 56 bits available. `None` far behind the end, which only a damaged stream comes to.
    #[inline(always)]
    fn refill(&mut self) -> Option<()> {
        let word = match self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => self.last_word()?,
        };
        self.buffer |= word << self.count;
        let taken = (63 - self.count) / 8;
        self.at += taken as usize;
        self.count += taken * 8;
        Some(())
    }

    #[cold]
    fn last_word(&self) -> Option<u64> {
        if self.at > self.bytes.len() + 8 {
            return None;
        }
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let word = rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        Some(word)
    }

    #[inline(always)]
    fn consume(&mut self, count: u32) {
        self.buffer >>= count;
        self.count -= count;
    }

    fn take(&mut self, count: u32) -> Option<u32> {
        self.refill()?;
        let value = self.buffer as u32 & ((1 << count) - 1);
        self.consume(count);
        Some(value)
    }

    /// LEN, NLEN and so many bytes, from the next byte boundary on.
    fn skip_stored(&mut self) -> Option<()> {
        let start = self.position().div_ceil(8);
        let [low, high, not_low, not_high] = *self.bytes.get(start..)?.first_chunk::<4>()?;
        if (low ^ not_low, high ^ not_high) != (0xff, 0xff) {
            return None;
        }
        self.at = start + 4 + usize::from(u16::from_le_bytes([low, high]));
        (self.buffer, self.count) = (0, 0);
        (self.at <= self.bytes.len()).then_some(())
    }
}

/// Codes up to this length are looked up; longer ones are rare by their nature.
const TABLE_BITS: u32 = 10;
const TABLE_MASK: u64 = (1 << TABLE_BITS) - 1;
const CODE_BITS_MAX: usize = 15;
const SYMBOLS_MAX: usize = 288;
const END_OF_BLOCK: usize = 256;

/// An entry's lower bits: how many bits the code has together with the extra bits behind it. 0: no code as short as this.
const BITS_MASK: u16 = 0x3f;
/// The entry is a literal, or several in a row.
const LITERAL: u16 = 1 << 15;
const END: u16 = 1 << 14;

/// One Huffman code (RFC 1951, 3.2.2).
struct Code {
    /// Of the next bits of the stream.
    table: [u16; 1 << TABLE_BITS],
    /// How many codes each length has, and whose they are, in their order: for those that the table does not hold.
    counts: [u16; CODE_BITS_MAX + 1],
    symbols: [u16; SYMBOLS_MAX],
    entry_of: fn(usize) -> u16,
}

impl Default for Code {
    fn default() -> Self {
        Code {
            table: [0; 1 << TABLE_BITS],
            counts: [0; CODE_BITS_MAX + 1],
            symbols: [0; SYMBOLS_MAX],
            entry_of: |_| 0,
        }
    }
}

impl Code {
    /// From the code lengths of the symbols. `None` where there are more codes than fit.
    fn build(&mut self, lengths: &[u8], entry_of: fn(usize) -> u16) -> Option<()> {
        self.entry_of = entry_of;
        self.counts = [0; CODE_BITS_MAX + 1];
        for length in lengths {
            self.counts[usize::from(*length)] += 1;
        }
        self.counts[0] = 0;
        let (mut next_code, mut next_place) = ([0u32; CODE_BITS_MAX + 2], [0; CODE_BITS_MAX + 2]);
        for length in 1..=CODE_BITS_MAX {
            let count = self.counts[length];
            if next_code[length] + u32::from(count) > 1 << length {
                return None;
            }
            next_code[length + 1] = (next_code[length] + u32::from(count)) << 1;
            next_place[length + 1] = next_place[length] + usize::from(count);
        }
        self.table.fill(0);
        for (symbol, length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
            let place = &mut next_place[usize::from(*length)];
            self.symbols[*place] = symbol as u16;
            *place += 1;
            let code = &mut next_code[usize::from(*length)];
            self.fill(*code, u32::from(*length), entry_of(symbol) + u16::from(*length));
            *code += 1;
        }
        Some(())
    }

    /// Puts `entry` wherever the next bits begin with `code`, which stands in a stream with its highest bit first.
    fn fill(&mut self, code: u32, length: u32, entry: u16) {
        if length <= TABLE_BITS {
            let first = (code.reverse_bits() >> (32 - length)) as usize;
            self.table[first..].iter_mut().step_by(1 << length).for_each(|slot| *slot = entry);
        }
    }

    /// Lets one look-up take all literals whose codes fit into it.
    fn join_literals(&mut self) {
        for index in (0..self.table.len()).rev() {
            let entry = self.table[index];
            if entry & LITERAL == 0 {
                continue;
            }
            let length = entry & BITS_MASK;
            // What follows is known to be zero above the bits that are left, and its entry is not joined yet or is itself.
            let next = self.table[index >> length];
            let whole = length + (next & BITS_MASK);
            if next & LITERAL != 0 && u32::from(whole) <= TABLE_BITS && index >> length != index {
                self.table[index] = LITERAL | whole;
            }
        }
    }

    /// The entry of the next symbol, 0 if there is none.
    #[inline(always)]
    fn entry(&self, buffer: u64) -> u16 {
        let entry = self.table[(buffer & TABLE_MASK) as usize];
        if entry != 0 { entry } else { self.long_entry(buffer) }
    }

    #[cold]
    fn long_entry(&self, buffer: u64) -> u16 {
        let found = self.find(buffer);
        found.map_or(0, |(symbol, length)| (self.entry_of)(symbol) + length as u16)
    }

    /// The next symbol and its code's length, without the table.
    fn find(&self, mut buffer: u64) -> Option<(usize, u32)> {
        let (mut code, mut first, mut place) = (0, 0, 0);
        for (length, count) in (1..).zip(&self.counts[1..]) {
            let count = usize::from(*count);
            code |= (buffer & 1) as usize;
            buffer >>= 1;
            if code < first + count {
                return Some((self.symbols[place + code - first].into(), length));
            }
            place += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }
}

/// Literal, end of the block, or a length with so many extra bits (RFC 1951, 3.2.5). The last two symbols mean nothing.
fn literal_or_length(symbol: usize) -> u16 {
    match symbol {
        0..END_OF_BLOCK => LITERAL,
        END_OF_BLOCK => END,
        265..285 => (symbol as u16 - 261) / 4,
        _ => 0,
    }
}

fn distance(symbol: usize) -> u16 {
    (symbol as u16).saturating_sub(2) / 2
}

fn no_extra_bits(_: usize) -> u16 {
    0
}

fn fixed_codes(literals: &mut Code, distances: &mut Code) {
    let mut lengths = [8; SYMBOLS_MAX];
    lengths[144..256].fill(9);
    lengths[256..280].fill(7);
    // Both are complete by their definition.
    let _ = literals.build(&lengths, literal_or_length);
    let _ = distances.build(&[5; 32], distance);
    literals.join_literals();
}

/// In what order the lengths of the code for code lengths stand (RFC 1951, 3.2.7).
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

fn dynamic_codes(bits: &mut Bits<'_>, literals: &mut Code, distances: &mut Code) -> Option<()> {
    let literal_count = bits.take(5)? as usize + 257;
    let distance_count = bits.take(5)? as usize + 1;
    let order_count = bits.take(4)? as usize + 4;
    let mut order_lengths = [0; 19];
    for symbol in &ORDER[..order_count] {
        order_lengths[*symbol] = bits.take(3)? as u8;
    }
    // A code for a moment only; the distances' place serves.
    distances.build(&order_lengths, no_extra_bits)?;
    let mut lengths = [0; SYMBOLS_MAX + 32];
    let lengths = lengths.get_mut(..literal_count + distance_count)?;
    read_lengths(bits, distances, lengths)?;
    let (literal_lengths, distance_lengths) = lengths.split_at(literal_count);
    literals.build(literal_lengths, literal_or_length)?;
    distances.build(distance_lengths, distance)?;
    literals.join_literals();
    Some(())
}

fn read_lengths(bits: &mut Bits<'_>, code: &Code, lengths: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while at < lengths.len() {
        let (value, repeat) = match read_symbol(bits, code)? {
            16 => (*lengths.get(at.checked_sub(1)?)?, 3 + bits.take(2)?),
            17 => (0, 3 + bits.take(3)?),
            18 => (0, 11 + bits.take(7)?),
            length => (length as u8, 1),
        };
        let end = at + repeat as usize;
        lengths.get_mut(at..end)?.fill(value);
        at = end;
    }
    Some(())
}

fn read_symbol(bits: &mut Bits<'_>, code: &Code) -> Option<usize> {
    bits.refill()?;
    let (symbol, length) = code.find(bits.buffer)?;
    bits.consume(length);
    Some(symbol)
}

/// To behind the end of the block.
fn skip_symbols(bits: &mut Bits<'_>, literals: &Code, distances: &Code) -> Option<()> {
    loop {
        bits.refill()?;
        let mut entry = literals.entry(bits.buffer);
        // 56 bits are enough for two entries of literals and the longest other entry.
        for _ in 0..2 {
            if entry & LITERAL != 0 {
                bits.consume(u32::from(entry & BITS_MASK));
                entry = literals.entry(bits.buffer);
            }
        }
        bits.consume(u32::from(entry & BITS_MASK));
        if entry & (LITERAL | END) != 0 {
            if entry & END != 0 {
                return Some(());
            }
            continue;
        }
        bits.refill()?;
        let distance = distances.entry(bits.buffer);
        bits.consume(u32::from(distance & BITS_MASK));
        if entry == 0 || distance == 0 {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use libdeflater::{CompressionLvl, Compressor};
    use proptest::prelude::*;

    use super::*;
    use crate::layer::tests::{noise, text};

    fn compress(level: i32, bytes: &[u8]) -> Vec<u8> {
        let mut compressor = Compressor::new(CompressionLvl::new(level).unwrap());
        let mut out = vec![0; compressor.deflate_compress_bound(bytes.len())];
        let written = compressor.deflate_compress(bytes, &mut out).unwrap();
        out.truncate(written);
        out
    }

    fn zlib(level: u32, bytes: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::new(level);
        let mut out = Vec::new();
        flate2::read::DeflateEncoder::new(bytes, level).read_to_end(&mut out).unwrap();
        out
    }

    fn inflate(stream: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        flate2::read::DeflateDecoder::new(stream).read_to_end(&mut out).unwrap();
        out
    }

    /// Joins the streams by opening all but the last one.
    fn join(mut streams: Vec<Vec<u8>>) -> Vec<u8> {
        let last = streams.pop().unwrap();
        for stream in &mut streams {
            open_end(stream).expect("a whole stream");
        }
        streams.push(last);
        streams.concat()
    }

    /// Bytes of several kinds: repeats near and far, text, noise, runs.
    fn mixed(seed: u64, length: usize) -> Vec<u8> {
        let (text, noise) = (text(length + 1), noise(length + 1));
        let mut out = Vec::with_capacity(length + 70_000);
        let mut state = seed | 1;
        while out.len() < length {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let (at, count) = (state as usize >> 8 & 0xffff, (state >> 24) as usize & 0x7fff);
            let at = at.min(length);
            match state & 3 {
                0 => out.extend_from_slice(&text[at..text.len().min(at + count)]),
                1 => out.extend_from_slice(&noise[at..noise.len().min(at + count)]),
                2 => out.resize(out.len() + count, at as u8),
                _ => out.extend_from_within(at.min(out.len())..(at + count).min(out.len())),
            }
        }
        out.truncate(length);
        out
    }

    #[test]
    fn joined_streams_are_one_stream() {
        let pieces =
            [mixed(1, 1 << 20), Vec::new(), text(1), noise(40), text(70_000), mixed(2, 300_000)];
        for level in 0..=12 {
            let streams = pieces.iter().map(|piece| compress(level, piece)).collect();
            assert!(inflate(&join(streams)) == pieces.concat(), "libdeflate {level}");
        }
        for level in 0..=9 {
            let streams = pieces.iter().map(|piece| zlib(level, piece)).collect();
            assert!(inflate(&join(streams)) == pieces.concat(), "zlib {level}");
        }
    }

    #[test]
    fn long_codes_are_walked() {
        // Counts like Fibonacci's numbers give the longest codes.
        let mut counts = (1usize, 1usize);
        let mut bytes = Vec::new();
        for symbol in 0..24u8 {
            bytes.resize(bytes.len() + counts.0, symbol.wrapping_mul(37));
            counts = (counts.1, counts.0 + counts.1);
        }
        let length = bytes.len();
        let mut shuffled: Vec<u8> = (0..length).map(|at| bytes[at * 40_503 % length]).collect();
        shuffled.truncate(200_000);
        for level in [1, 6, 9, 12] {
            let streams = vec![compress(level, &shuffled), compress(level, &shuffled)];
            assert!(inflate(&join(streams)) == shuffled.repeat(2));
        }
    }

    #[test]
    fn what_is_no_whole_stream_is_left_alone() {
        let stream = compress(6, &mixed(3, 100_000));
        let opened = {
            let mut opened = stream.clone();
            open_end(&mut opened).unwrap();
            opened
        };
        for bad in
            [&stream[..stream.len() - 1], &[&stream[..], b"x"].concat(), &opened, b"", b"\x07"]
        {
            let mut copy = bad.to_vec();
            assert_eq!(open_end(&mut copy), None);
            assert_eq!(copy, bad);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn any_streams_join(
            pieces in prop::collection::vec((any::<u64>(), 0usize..60_000), 1..5),
            level in 1i32..=12,
        ) {
            let pieces: Vec<Vec<u8>> =
                pieces.into_iter().map(|(seed, length)| mixed(seed, length)).collect();
            let streams = pieces.iter().map(|piece| compress(level, piece)).collect();
            prop_assert!(inflate(&join(streams)) == pieces.concat());
        }

        #[test]
        fn damaged_streams_never_panic(
            seed in any::<u64>(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut stream = compress(6, &mixed(seed, 5_000));
            for (at, value) in edits {
                let at = at.index(stream.len());
                stream[at] = value;
            }
            let _ = open_end(&mut stream);
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = open_end(&mut bytes.clone());
        }
    }
}
