//! Buffers that go from thread to thread and round again: fresh ones would cost page faults.

use std::sync::{Arc, Mutex, PoisonError, mpsc::Receiver};

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// A piece of a stream.
pub(super) struct Block {
    pub(super) buffer: Vec<u8>,
    /// How much of the buffer is filled.
    pub(super) length: usize,
    /// Whether the stream ends with it.
    pub(super) last: bool,
}

impl Block {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

/// Buffers of one size.
pub(super) struct Pool {
    buffer_bytes: usize,
    free: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    pub(super) fn new(buffer_bytes: usize) -> Self {
        Pool { buffer_bytes, free: Mutex::default() }
    }

    pub(super) fn take(&self) -> Vec<u8> {
        lock(&self.free).pop().unwrap_or_else(|| vec![0; self.buffer_bytes])
    }

    /// Takes a block's buffer back, if this was its last user.
    pub(super) fn release(&self, block: Arc<Block>) {
        if let Some(block) = Arc::into_inner(block) {
            lock(&self.free).push(block.buffer);
        }
    }
}

/// A thread that panicked while it held a lock left nothing half done: what is locked here are lists and queues.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The digest and length of a whole stream.
pub(super) fn hash(blocks: &Receiver<Arc<Block>>, pool: &Pool) -> (Digest, u64) {
    let (mut hasher, mut length) = (Sha256::new(), 0);
    for block in blocks {
        hasher.update(block.bytes());
        length += block.length as u64;
        pool.release(block);
    }
    (Digest::from_bytes(hasher.finalize().into()), length)
}
