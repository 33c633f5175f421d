//! An agent in this process: it lists its keys and signs.

use super::{
    key::PrivateKey,
    wire::{Reader, put_number, put_string},
};

pub(super) const FAILURE: u8 = 5;
pub(super) const REQUEST_IDENTITIES: u8 = 11;
pub(super) const IDENTITIES_ANSWER: u8 = 12;
pub(super) const SIGN_REQUEST: u8 = 13;
pub(super) const SIGN_RESPONSE: u8 = 14;

/// The answer to a message, both without their length.
pub(super) fn answer(keys: &[PrivateKey], message: &[u8]) -> Vec<u8> {
    let answer = match message.split_first() {
        Some((&REQUEST_IDENTITIES, _)) => Some(identities(keys)),
        Some((&SIGN_REQUEST, rest)) => sign(keys, Reader(rest)),
        _ => None,
    };
    answer.unwrap_or_else(|| vec![FAILURE])
}

fn identities(keys: &[PrivateKey]) -> Vec<u8> {
    let mut out = vec![IDENTITIES_ANSWER];
    put_number(&mut out, keys.len());
    for key in keys {
        put_string(&mut out, key.public());
        put_string(&mut out, key.comment());
    }
    out
}

fn sign(keys: &[PrivateKey], mut request: Reader<'_>) -> Option<Vec<u8>> {
    let (public, data, flags) = (request.string()?, request.string()?, request.number()?);
    let key = keys.iter().find(|key| key.public() == public)?;
    let mut out = vec![SIGN_RESPONSE];
    put_string(&mut out, &key.sign(data, flags)?);
    Some(out)
}
