//! Private keys from files, without a passphrase: OpenSSH's form (PROTOCOL.key), PKCS#1 and PKCS#8.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeyPairComponents, PublicKeyComponents},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512,
        RsaEncoding,
    },
};

use crate::sys::private_root::open_at_real_root;

use super::{
    SshError,
    wire::{Reader, put_integer, put_string},
};

/// No key is larger.
const FILE_BYTES_MAX: u64 = 1 << 20;
const MAGIC: &[u8] = b"openssh-key-v1\0";
/// Flags of a request to sign (RFC 8332 in the agent protocol).
const SHA2_256: u32 = 2;
const SHA2_512: u32 = 4;

const DAMAGED: &str = "it is damaged";
const UNKNOWN: &str = "it is no private key of type ed25519, ecdsa (P-256, P-384) or rsa (2048 bits and more) in a known form";

/// A key that signs.
pub(super) struct PrivateKey {
    /// As ssh sends it.
    public: Vec<u8>,
    comment: Vec<u8>,
    signer: Signer,
}

enum Signer {
    Ed25519(Ed25519KeyPair),
    Ecdsa { curve: &'static Curve, pair: EcdsaKeyPair },
    Rsa(Box<RsaKeyPair>),
}

struct Curve {
    name: &'static str,
    algorithm: &'static EcdsaSigningAlgorithm,
    scalar_bytes: usize,
}

static CURVES: [Curve; 2] = [
    Curve { name: "nistp256", algorithm: &ECDSA_P256_SHA256_FIXED_SIGNING, scalar_bytes: 32 },
    Curve { name: "nistp384", algorithm: &ECDSA_P384_SHA384_FIXED_SIGNING, scalar_bytes: 48 },
];

/// Reads keys from files.
pub(super) fn load(files: &[PathBuf]) -> Result<Vec<PrivateKey>, SshError> {
    files.iter().map(|file| load_one(file)).collect()
}

fn load_one(path: &Path) -> Result<PrivateKey, SshError> {
    let failed = |error| SshError::Read(path.to_owned(), error);
    let mut text = Vec::new();
    let file = open_at_real_root(path).map(File::from);
    let file = file.map_err(|error| failed(error.into()))?;
    file.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(failed)?;
    let mut key = parse(&text).map_err(|fault| match fault {
        Fault::Encrypted => SshError::Encrypted(path.to_owned()),
        Fault::Other(reason) => SshError::Key { path: path.to_owned(), reason },
    })?;
    if key.comment.is_empty() {
        key.comment = path.as_os_str().as_encoded_bytes().to_vec();
    }
    Ok(key)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Encrypted,
    Other(&'static str),
}

/// A key from the text of its file.
pub(super) fn parse(text: &[u8]) -> Result<PrivateKey, Fault> {
    let text = std::str::from_utf8(text).map_err(|_| Fault::Other(UNKNOWN))?;
    let (label, body) = pem(text).ok_or(Fault::Other(UNKNOWN))?;
    if label == "ENCRYPTED PRIVATE KEY" || body.contains(",ENCRYPTED") {
        return Err(Fault::Encrypted);
    }
    let base64: String = body.split_whitespace().collect();
    let bytes = STANDARD.decode(base64).map_err(|_| Fault::Other(DAMAGED))?;
    let signer = match label {
        "OPENSSH PRIVATE KEY" => return openssh(&bytes),
        "RSA PRIVATE KEY" => RsaKeyPair::from_der(&bytes).ok().map(rsa),
        "PRIVATE KEY" => pkcs8(&bytes),
        _ => None,
    };
    let signer = signer.ok_or(Fault::Other(UNKNOWN))?;
    Ok(PrivateKey { public: signer.public(), comment: Vec::new(), signer })
}

/// The first block's label and text (RFC 7468).
fn pem(text: &str) -> Option<(&str, &str)> {
    let (_, rest) = text.split_once("-----BEGIN ")?;
    let (label, rest) = rest.split_once("-----")?;
    let (body, _) = rest.split_once("-----END ")?;
    Some((label, body))
}

fn rsa(pair: RsaKeyPair) -> Signer {
    Signer::Rsa(Box::new(pair))
}

fn pkcs8(bytes: &[u8]) -> Option<Signer> {
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes) {
        return Some(Signer::Ed25519(pair));
    }
    if let Ok(pair) = RsaKeyPair::from_pkcs8(bytes) {
        return Some(rsa(pair));
    }
    let random = SystemRandom::new();
    CURVES.iter().find_map(|curve| {
        let pair = EcdsaKeyPair::from_pkcs8(curve.algorithm, bytes, &random).ok()?;
        Some(Signer::Ecdsa { curve, pair })
    })
}

fn openssh(bytes: &[u8]) -> Result<PrivateKey, Fault> {
    let damaged = Fault::Other(DAMAGED);
    let mut outer = Reader(bytes.strip_prefix(MAGIC).ok_or(damaged)?);
    let cipher = outer.string().ok_or(damaged)?;
    let _key_derivation = (outer.string().ok_or(damaged)?, outer.string().ok_or(damaged)?);
    if cipher != b"none" {
        return Err(Fault::Encrypted);
    }
    if outer.number() != Some(1) {
        return Err(Fault::Other("it holds more than one key"));
    }
    let public = outer.string().ok_or(damaged)?;
    let mut inner = Reader(outer.string().ok_or(damaged)?);
    if inner.number().ok_or(damaged)? != inner.number().ok_or(damaged)? {
        return Err(damaged);
    }
    let signer = openssh_signer(&mut inner)?;
    let comment = inner.string().ok_or(damaged)?.to_vec();
    match signer.public() == public {
        true => Ok(PrivateKey { public: public.to_vec(), comment, signer }),
        false => Err(damaged),
    }
}

fn openssh_signer(key: &mut Reader<'_>) -> Result<Signer, Fault> {
    let damaged = Fault::Other(DAMAGED);
    let kind = key.string().ok_or(damaged)?;
    let signer = match kind {
        b"ssh-ed25519" => ed25519(key),
        b"ssh-rsa" => rsa_components(key),
        kind => {
            let name = kind.strip_prefix(b"ecdsa-sha2-");
            let curve = CURVES.iter().find(|curve| Some(curve.name.as_bytes()) == name);
            ecdsa(curve.ok_or(Fault::Other(UNKNOWN))?, key)
        }
    };
    signer.ok_or(damaged)
}

fn ed25519(key: &mut Reader<'_>) -> Option<Signer> {
    let (public, private) = (key.string()?, key.string()?);
    let pair = Ed25519KeyPair::from_seed_and_public_key(private.get(..32)?, public).ok()?;
    Some(Signer::Ed25519(pair))
}

fn ecdsa(curve: &'static Curve, key: &mut Reader<'_>) -> Option<Signer> {
    let (_name, point, scalar) = (key.string()?, key.string()?, key.integer()?);
    let zeros = curve.scalar_bytes.checked_sub(scalar.len())?;
    let scalar = [&vec![0; zeros][..], scalar].concat();
    let random = SystemRandom::new();
    let pair =
        EcdsaKeyPair::from_private_key_and_public_key(curve.algorithm, &scalar, point, &random);
    Some(Signer::Ecdsa { curve, pair: pair.ok()? })
}

fn rsa_components(key: &mut Reader<'_>) -> Option<Signer> {
    let (n, e, d) = (key.integer()?, key.integer()?, key.integer()?);
    let (inverse, p, q) = (key.integer()?, key.integer()?, key.integer()?);
    let components = KeyPairComponents {
        public_key: PublicKeyComponents { n, e },
        d,
        p,
        q,
        dP: &remainder(d, &minus_one(p)?)[..],
        dQ: &remainder(d, &minus_one(q)?)[..],
        qInv: inverse,
    };
    Some(rsa(RsaKeyPair::from_components(&components).ok()?))
}

/// An odd number less one.
fn minus_one(number: &[u8]) -> Option<Vec<u8>> {
    let mut number = number.to_vec();
    let last = number.last_mut().filter(|last| **last & 1 == 1)?;
    *last -= 1;
    Some(number)
}

/// `number` modulo `modulus`, most significant byte first, bit by bit: it is done twice a key, for keys of a known size.
fn remainder(number: &[u8], modulus: &[u8]) -> Vec<u8> {
    let width = modulus.len() + 1;
    let modulus = [&[0][..], modulus].concat();
    let mut rest = vec![0_u8; width];
    for bit in number.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)) {
        let mut carry = bit;
        for byte in rest.iter_mut().rev() {
            (*byte, carry) = (*byte << 1 | carry, *byte >> 7);
        }
        if rest >= modulus {
            subtract(&mut rest, &modulus);
        }
    }
    super::wire::significant(&rest).to_vec()
}

/// Of numbers of the same width, the first not less than the second.
fn subtract(number: &mut [u8], other: &[u8]) {
    let mut borrow = false;
    for (byte, other) in number.iter_mut().zip(other).rev() {
        let (less, first) = byte.overflowing_sub(*other);
        let (less, second) = less.overflowing_sub(u8::from(borrow));
        (*byte, borrow) = (less, first || second);
    }
}

impl Signer {
    /// The public key as ssh sends it.
    fn public(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Signer::Ed25519(pair) => {
                put_string(&mut out, b"ssh-ed25519");
                put_string(&mut out, pair.public_key().as_ref());
            }
            Signer::Ecdsa { curve, pair } => {
                put_string(&mut out, format!("ecdsa-sha2-{}", curve.name).as_bytes());
                put_string(&mut out, curve.name.as_bytes());
                put_string(&mut out, pair.public_key().as_ref());
            }
            Signer::Rsa(pair) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(pair.public());
                put_string(&mut out, b"ssh-rsa");
                put_integer(&mut out, &public.e);
                put_integer(&mut out, &public.n);
            }
        }
        out
    }
}

impl PrivateKey {
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    pub fn comment(&self) -> &[u8] {
        &self.comment
    }

    /// A signature in ssh's form. `None`: it can't be made, as SHA-1 with RSA can't.
    pub fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let (name, signature) = match &self.signer {
            Signer::Ed25519(pair) => ("ssh-ed25519".to_owned(), pair.sign(data).as_ref().to_vec()),
            Signer::Ecdsa { curve, pair } => {
                let signature = pair.sign(&SystemRandom::new(), data).ok()?;
                let (r, s) = signature.as_ref().split_at_checked(curve.scalar_bytes)?;
                let mut both = Vec::new();
                put_integer(&mut both, r);
                put_integer(&mut both, s);
                (format!("ecdsa-sha2-{}", curve.name), both)
            }
            Signer::Rsa(pair) => {
                let (name, encoding) = rsa_encoding(flags)?;
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(encoding, &SystemRandom::new(), data, &mut signature).ok()?;
                (name.to_owned(), signature)
            }
        };
        let mut out = Vec::new();
        put_string(&mut out, name.as_bytes());
        put_string(&mut out, &signature);
        Some(out)
    }
}

fn rsa_encoding(flags: u32) -> Option<(&'static str, &'static dyn RsaEncoding)> {
    match flags {
        _ if flags & SHA2_512 != 0 => Some(("rsa-sha2-512", &RSA_PKCS1_SHA512)),
        _ if flags & SHA2_256 != 0 => Some(("rsa-sha2-256", &RSA_PKCS1_SHA256)),
        _ => None,
    }
}
