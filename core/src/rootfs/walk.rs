//! A tree walked by several threads, a directory at a time.

use std::{
    io,
    os::fd::BorrowedFd,
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rustix::fs::{AtFlags, FileType, Stat, statat};

use crate::tree::EntryPath;

use super::{
    handle::{DirectoryStack, list},
    metadata::reopen,
};

/// More threads than this gain nothing: the kernel's locks on one file system take over.
const THREADS_MAX: usize = 8;

/// A name of a directory.
pub(crate) struct Listed {
    pub name: Box<[u8]>,
    pub stat: Stat,
}

impl Listed {
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

/// A directory with all its names, in order.
pub(crate) struct Visited<'a> {
    pub path: &'a EntryPath,
    pub at: BorrowedFd<'a>,
    pub entries: &'a [Listed],
}

/// What one thread does with the directories that it comes to.
pub(crate) trait Visitor: Send {
    /// What a directory hands down to each directory in it.
    type State: Send;
    type Error: Send + From<WalkError>;

    /// Gives the directories to go on with: the path and what is handed down. Each directory comes after its parent,
    /// perhaps to another thread.
    fn visit(
        &mut self,
        directory: Visited<'_>,
        state: Self::State,
    ) -> Result<Vec<(EntryPath, Self::State)>, Self::Error>;
}

#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {source}")]
pub struct WalkError {
    pub path: EntryPath,
    pub source: io::Error,
}

/// Threads for a walk on this machine.
pub(crate) fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX)
}

/// Walks a tree that nothing writes to with at most `threads` threads, each with a visitor of its own. No link is followed
/// and no mount point entered (it is an error). Memory grows with the largest directory, not with the tree.
pub(crate) fn walk<V: Visitor>(
    root: BorrowedFd<'_>,
    threads: usize,
    state: V::State,
    visitor: impl Fn() -> V,
) -> Result<Vec<V>, V::Error> {
    let pending = vec![(EntryPath::root(), state)];
    let shared = Shared {
        queue: Mutex::new(Queue { pending, working: 1, error: None }),
        wake: Condvar::new(),
        hungry: AtomicUsize::new(0),
    };
    let mut visitors: Vec<V> = (1..threads.max(1)).map(|_| visitor()).collect();
    let mut own = visitor();
    thread::scope(|scope| {
        for visitor in &mut visitors {
            shared.lock().working += 1;
            let run = || shared.work(root, visitor);
            // Without another thread this one does it all.
            if thread::Builder::new().spawn_scoped(scope, run).is_err() {
                shared.lock().working -= 1;
            }
        }
        shared.work(root, &mut own);
    });
    visitors.push(own);
    let queue = shared.queue.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    queue.error.map_or(Ok(visitors), Err)
}

type Pending<V> = (EntryPath, <V as Visitor>::State);

struct Shared<V: Visitor> {
    queue: Mutex<Queue<V>>,
    wake: Condvar,
    /// Threads that wait for work.
    hungry: AtomicUsize,
}

struct Queue<V: Visitor> {
    pending: Vec<Pending<V>>,
    /// Threads that may still find directories.
    working: usize,
    error: Option<V::Error>,
}

impl<V: Visitor> Shared<V> {
    fn lock(&self) -> MutexGuard<'_, Queue<V>> {
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn work(&self, root: BorrowedFd<'_>, visitor: &mut V) {
        let _alarm = Alarm(self);
        let done = self.work_to_the_end(root, visitor);
        let mut queue = self.lock();
        if let Err(error) = done {
            queue.error.get_or_insert(error);
        }
        self.wake.notify_all();
    }

    fn work_to_the_end(&self, root: BorrowedFd<'_>, visitor: &mut V) -> Result<(), V::Error> {
        let root = reopen(root).map_err(error_at(&EntryPath::root()))?;
        let mut stack = DirectoryStack::new(root);
        let mut own: Vec<Pending<V>> = Vec::new();
        while let Some((path, state)) = own.pop().or_else(|| self.take()) {
            let entries = read(&mut stack, &path).map_err(error_at(&path))?;
            let directory = Visited { path: &path, at: stack.top(), entries: &entries };
            let mut next = visitor.visit(directory, state)?;
            next.reverse();
            own.append(&mut next);
            if self.hungry.load(Ordering::Relaxed) > 0 && own.len() > 1 {
                self.share(&mut own);
            }
        }
        Ok(())
    }

    /// Waits for a directory; `None` when there will be no more.
    fn take(&self) -> Option<Pending<V>> {
        let mut queue = self.lock();
        queue.working -= 1;
        self.hungry.fetch_add(1, Ordering::Relaxed);
        let taken = loop {
            if queue.error.is_some() {
                break None;
            }
            if let Some(pending) = queue.pending.pop() {
                break Some(pending);
            }
            if queue.working == 0 {
                self.wake.notify_all();
                break None;
            }
            queue = self.wake.wait(queue).unwrap_or_else(|poisoned| poisoned.into_inner());
        };
        self.hungry.fetch_sub(1, Ordering::Relaxed);
        queue.working += usize::from(taken.is_some());
        taken
    }

    /// Gives half of the directories away, those furthest up.
    fn share(&self, own: &mut Vec<Pending<V>>) {
        let mut queue = self.lock();
        if queue.pending.is_empty() {
            queue.pending.extend(own.drain(..own.len() / 2));
            self.wake.notify_all();
        }
    }
}

/// A thread that panics would let the others wait for ever.
struct Alarm<'a, V: Visitor>(&'a Shared<V>);

impl<V: Visitor> Drop for Alarm<'_, V> {
    fn drop(&mut self) {
        if thread::panicking() {
            let mut queue = self.0.lock();
            queue.pending.clear();
            queue.working = queue.working.saturating_sub(1);
            self.0.wake.notify_all();
        }
    }
}

/// The names of a directory that was not read yet, in order.
fn read(stack: &mut DirectoryStack, path: &EntryPath) -> io::Result<Vec<Listed>> {
    stack.go_to(path)?;
    let mut items = list(stack.top())?;
    items.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let stat = |name: Box<[u8]>| {
        let stat = statat(stack.top(), &*name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Listed { name, stat })
    };
    items.into_iter().map(|item| stat(item.name)).collect()
}

fn error_at(path: &EntryPath) -> impl Fn(io::Error) -> WalkError {
    move |source| WalkError { path: path.clone(), source }
}
