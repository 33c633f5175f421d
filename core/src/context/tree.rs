//! A build context after its ignore file.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use crate::tree::{Content, EntryPath};

use super::{
    ContextError, Ignore, MemoryTree, Node, SourceTree, directory::Directory, patterns::Matched,
};

/// A build context: a directory that is walked as it is asked for, or the members of a tar. Owners are 0:0.
#[derive(Clone, Debug)]
pub struct ContextTree {
    files: Files,
    ignore: Ignore,
    /// Of excluded directories, whether something in them was taken back.
    shown: Arc<Mutex<HashMap<EntryPath, bool>>>,
}

#[derive(Clone, Debug)]
enum Files {
    Directory(Directory),
    Memory(MemoryTree),
}

impl ContextTree {
    fn new(files: Files, ignore: Ignore) -> Self {
        ContextTree { files, ignore, shown: Arc::default() }
    }

    /// Opens a directory of the machine. Nothing is read before it is asked for.
    pub fn open(directory: &Path, ignore: Ignore) -> Result<Self, ContextError> {
        Ok(ContextTree::new(Files::Directory(Directory::open(directory)?), ignore))
    }

    /// A tree of names that are held in memory.
    pub fn from_memory(files: MemoryTree) -> Self {
        ContextTree::new(Files::Memory(files), Ignore::none())
    }

    /// The same context with another ignore file.
    pub fn with_ignore(self, ignore: Ignore) -> Self {
        ContextTree::new(self.files, ignore)
    }

    /// What the context leaves out.
    pub fn ignore(&self) -> &Ignore {
        &self.ignore
    }

    fn all_children(&self, directory: &EntryPath) -> Result<Vec<(EntryPath, Node)>, ContextError> {
        match &self.files {
            Files::Directory(files) => files.children(directory),
            Files::Memory(files) => files.children(directory),
        }
    }

    /// What the patterns say of a path, from its outermost ancestor down.
    fn matched(&self, path: &EntryPath) -> Option<(bool, Matched)> {
        if self.ignore.is_empty() || path.is_root() {
            return None;
        }
        let mut info: Option<(bool, Matched)> = None;
        let mut at = EntryPath::root();
        for name in path.components() {
            at = at.child(name);
            info = Some(self.ignore.excludes(&at, info.as_ref().map(|(_, each)| each)));
        }
        info
    }

    /// Whether a node is part of the context. An excluded directory is where something below it was taken back.
    fn shows(
        &self,
        path: &EntryPath,
        node: &Node,
        excluded: bool,
        each: &Matched,
    ) -> Result<bool, ContextError> {
        if !excluded {
            return Ok(true);
        }
        if !node.kind.is_directory() || !self.ignore.may_keep_below(path) {
            return Ok(false);
        }
        if let Some(known) = self.known(path) {
            return Ok(known);
        }
        self.search(path, each)
    }

    fn known(&self, directory: &EntryPath) -> Option<bool> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).get(directory).copied()
    }

    /// Looks below an excluded directory for something that was taken back, and remembers what that says of the
    /// directories on the way. They wait on a list: a context may be deeper than a stack.
    fn search(&self, top: &EntryPath, each: &Matched) -> Result<bool, ContextError> {
        let mut searched = Vec::new();
        let mut pending = vec![(top.clone(), each.clone())];
        while let Some((directory, each)) = pending.pop() {
            for (child, node) in self.all_children(&directory)? {
                let (excluded, each) = self.ignore.excludes(&child, Some(&each));
                let may_hold = node.kind.is_directory() && self.ignore.may_keep_below(&child);
                match (excluded, may_hold.then(|| self.known(&child)).flatten()) {
                    (false, _) | (true, Some(true)) => {
                        self.remember_shown(top, &directory);
                        return Ok(true);
                    }
                    (true, None) if may_hold => pending.push((child, each)),
                    (true, _) => {}
                }
            }
            searched.push(directory);
        }
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.extend(searched.into_iter().map(|directory| (directory, false)));
        Ok(false)
    }

    /// All from `top` down to `bottom` show.
    fn remember_shown(&self, top: &EntryPath, bottom: &EntryPath) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = Some(bottom.clone());
        while let Some(here) = at.filter(|here| here.is_within(top)) {
            at = here.parent();
            shown.insert(here, true);
        }
    }
}

impl SourceTree for ContextTree {
    fn lookup(&self, path: &EntryPath) -> Result<Option<Node>, ContextError> {
        let matched = self.matched(path);
        if let Some((true, _)) = matched
            && !self.ignore.may_keep_below(path)
        {
            return Ok(None);
        }
        let node = match &self.files {
            Files::Directory(files) => files.node(path)?,
            Files::Memory(files) => files.lookup(path)?,
        };
        let (Some(node), Some((excluded, each))) = (&node, matched) else { return Ok(node) };
        Ok(self.shows(path, node, excluded, &each)?.then(|| node.clone()))
    }

    fn children(&self, directory: &EntryPath) -> Result<Vec<(EntryPath, Node)>, ContextError> {
        let mut children = self.all_children(directory)?;
        if self.ignore.is_empty() {
            return Ok(children);
        }
        let matched = self.matched(directory).map(|(_, each)| each);
        let mut shown = Vec::with_capacity(children.len());
        for (path, node) in children.drain(..) {
            let (excluded, each) = self.ignore.excludes(&path, matched.as_ref());
            if self.shows(&path, &node, excluded, &each)? {
                shown.push((path, node));
            }
        }
        Ok(shown)
    }

    fn capability(&self, path: &EntryPath, node: &Node) -> Result<Option<Box<[u8]>>, ContextError> {
        match &self.files {
            Files::Directory(files) => files.capability(path),
            Files::Memory(files) => files.capability(path, node),
        }
    }

    fn contents(&self, wanted: &[EntryPath]) -> Result<Vec<Content>, ContextError> {
        match &self.files {
            Files::Directory(files) => Ok(wanted.iter().map(|path| files.content(path)).collect()),
            Files::Memory(files) => files.contents(wanted),
        }
    }
}

#[cfg(test)]
mod tests;
