//! What goes between the builder and the helper: JSON messages, each after its length (4 bytes, big-endian).

use std::{
    ffi::OsString,
    io::{Read, Write},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, de::Error as _,
};

use super::{SandboxError, spec::StepSpec, swap::SwapReport};
use crate::sys::process::{Ended, Waited};

/// The largest message: a step's secrets and files are in it.
const MESSAGE_BYTES_MAX: u32 = 256 * 1024 * 1024;

/// What the builder asks.
#[derive(Serialize, Deserialize)]
pub(super) enum Request {
    Run(StepSpec),
    /// Everything but the execution.
    Probe(StepSpec),
    Repair(RepairRequest),
}

/// Makes the container's root whole again after a helper that died in the middle of a swap.
#[derive(Serialize, Deserialize)]
pub(super) struct RepairRequest {
    #[serde(with = "bytes")]
    pub side: PathBuf,
    /// The process that the dead helper's orphans came to. All that it has started is killed.
    pub orphans_of: Option<i32>,
}

/// What the helper answers, once.
#[derive(Serialize, Deserialize)]
pub(super) enum Answer {
    Ended {
        code: Option<i32>,
        signal: Option<i32>,
        max_rss_bytes: u64,
        cpu_microseconds: u64,
        #[serde(with = "list")]
        stubs: Vec<PathBuf>,
        swap: Option<SwapReport>,
    },
    Repaired {
        /// Children of `orphans_of`, which it has to reap.
        orphans: Vec<i32>,
        /// Whether there was anything to repair.
        found: bool,
    },
    Failed(SandboxError),
}

impl Answer {
    pub fn ended(waited: Waited, stubs: Vec<PathBuf>, swap: Option<SwapReport>) -> Self {
        let (code, signal) = match waited.ended {
            Ended::Code(code) => (Some(code), None),
            Ended::Signal(signal) => (None, Some(signal)),
        };
        let Waited { max_rss_bytes, cpu_microseconds, .. } = waited;
        Answer::Ended { code, signal, max_rss_bytes, cpu_microseconds, stubs, swap }
    }
}

/// A message with its length before it.
pub(super) fn frame(message: &impl Serialize) -> Result<Vec<u8>, SandboxError> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message).map_err(protocol)?;
    let length = u32::try_from(bytes.len() - 4).ok().filter(|length| *length <= MESSAGE_BYTES_MAX);
    let length = length.ok_or_else(|| protocol("message too long"))?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    Ok(bytes)
}

/// The length that a message's first four bytes say.
pub(super) fn length(header: [u8; 4]) -> Result<usize, SandboxError> {
    match u32::from_be_bytes(header) {
        length if length <= MESSAGE_BYTES_MAX => Ok(length as usize),
        length => Err(protocol(format!("{length} bytes announced"))),
    }
}

pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, SandboxError> {
    serde_json::from_slice(bytes).map_err(protocol)
}

pub(super) fn send(mut to: impl Write, message: &impl Serialize) -> Result<(), SandboxError> {
    to.write_all(&frame(message)?).map_err(protocol)
}

pub(super) fn receive<T: DeserializeOwned>(mut from: impl Read) -> Result<T, SandboxError> {
    let mut header = [0; 4];
    from.read_exact(&mut header).map_err(protocol)?;
    let mut bytes = vec![0; length(header)?];
    from.read_exact(&mut bytes).map_err(protocol)?;
    parse(&bytes)
}

/// Reads a message that ends with the stream; none at all is `None`.
pub(super) fn receive_last<T: DeserializeOwned>(bytes: &[u8]) -> Result<Option<T>, SandboxError> {
    if bytes.is_empty() { Ok(None) } else { receive(bytes).map(Some) }
}

pub(super) fn protocol(problem: impl ToString) -> SandboxError {
    SandboxError::Protocol { problem: problem.to_string() }
}

/// Values that are bytes, whatever the encoding.
pub(super) trait Raw: Sized {
    fn raw(&self) -> &[u8];
    fn from_raw(bytes: Vec<u8>) -> Self;
}

impl Raw for Vec<u8> {
    fn raw(&self) -> &[u8] {
        self
    }
    fn from_raw(bytes: Vec<u8>) -> Self {
        bytes
    }
}

impl Raw for OsString {
    fn raw(&self) -> &[u8] {
        self.as_bytes()
    }
    fn from_raw(bytes: Vec<u8>) -> Self {
        OsString::from_vec(bytes)
    }
}

impl Raw for PathBuf {
    fn raw(&self) -> &[u8] {
        self.as_os_str().as_bytes()
    }
    fn from_raw(bytes: Vec<u8>) -> Self {
        OsString::from_vec(bytes).into()
    }
}

fn decode<T: Raw>(text: &str) -> Result<T, base64::DecodeError> {
    STANDARD.decode(text).map(T::from_raw)
}

/// `#[serde(with = "wire::bytes")]`
pub(super) mod bytes {
    use super::*;

    pub fn serialize<T: Raw, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(value.raw()))
    }

    pub fn deserialize<'de, T: Raw, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let text = String::deserialize(deserializer)?;
        decode(&text).map_err(D::Error::custom)
    }
}

/// `#[serde(with = "wire::list")]`
pub(super) mod list {
    use super::*;

    pub fn serialize<T: Raw, S: Serializer>(
        values: &[T],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(|value| STANDARD.encode(value.raw())))
    }

    pub fn deserialize<'de, T: Raw, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<T>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| decode(text)).collect::<Result<_, _>>().map_err(D::Error::custom)
    }
}
