//! What a step changed in a plain tree, where there is no overlay: the tree is walked and compared with its baseline, and
//! only what changed there is looked at.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::File,
    io,
    os::fd::BorrowedFd,
    sync::Arc,
};

use rustix::fs::{FileType, Stat, fstat};

use crate::{
    digest::Digest,
    rootfs::{
        handle::DirectoryStack,
        metadata::reopen,
        walk::{Listed, Visited, Visitor, WalkError, walk},
    },
    tree::{Change, Changeset, EntryPath, Kind, Snapshot, Timestamp},
};

use super::{
    Baseline, BaselineError, DiffError, DiffOptions, LowerDirectories, Stamp,
    baseline::{BaselineWriter, Block, Part, ROOT, Record, stamp_of_root},
    compare::digest_of,
    judge::{
        Found, Judge, LinkKey, Verdict, check_name, child, digest_at, same_attributes, upper_error,
    },
    lower::LowerDirectory,
};

/// Digests of files of the layers below, many at once: a layer that has to be inflated for them is inflated once.
pub trait LowerDigests {
    /// Of the `wanted` regular files of the `layer`-th layer, counted from the lowest.
    fn digests(
        &self,
        layer: usize,
        wanted: &BTreeSet<EntryPath>,
    ) -> io::Result<BTreeMap<EntryPath, Digest>>;
}

impl<F> LowerDigests for F
where
    F: Fn(usize, &BTreeSet<EntryPath>) -> io::Result<BTreeMap<EntryPath, Digest>>,
{
    fn digests(
        &self,
        layer: usize,
        wanted: &BTreeSet<EntryPath>,
    ) -> io::Result<BTreeMap<EntryPath, Digest>> {
        self(layer, wanted)
    }
}

/// What a swap's renames leave no trace of: a rename moves the ctime, so these stand in for it.
#[derive(Clone, Copy, Debug)]
pub struct Renamed {
    /// Renamed into place, before the step.
    pub before: Stamp,
    /// After the step's end, before it is renamed out.
    pub after: Stamp,
}

/// A plain tree after a step, which nothing writes to any more.
#[derive(Clone, Copy)]
pub struct AfterStep<'a> {
    pub root: BorrowedFd<'a>,
    pub parent: &'a Snapshot,
    /// Of the tree before the step, when it equalled `parent`. What the sandbox made since then for the step (mount points)
    /// counts as the step's.
    pub baseline: &'a Baseline,
    /// Names that were renamed for the step and back. One that is missing here costs a look at its content, no more.
    pub renamed: &'a HashMap<EntryPath, Renamed>,
    /// When the step began, as [`wait_for_clock`](super::wait_for_clock) gave it. A file that was changed in what was the
    /// future then is compared by content.
    pub began: Timestamp,
    pub options: DiffOptions<'a>,
    /// At most so many are used.
    pub threads: usize,
}

/// What a step changed, and what it touched.
#[derive(Debug)]
pub struct PlainChanges {
    pub changeset: Arc<Changeset>,
    pub(super) touched: Vec<Touched>,
    pub(super) baseline: Baseline,
    /// The root's before the step.
    pub(super) root: Stamp,
}

/// A name whose stamp is another one than before.
#[derive(Debug)]
pub(super) struct Touched {
    pub path: EntryPath,
    /// Its record in the new baseline.
    pub offset: u64,
    /// Is in no layer and has to go.
    pub dropped: bool,
}

/// The changes that turn `parent` into what the tree shows, the same as [`overlay_diff`](super::overlay_diff) finds for the
/// same step. Emitted files are the contents of the changeset, to be read before
/// [`settle_plain`](super::settle_plain), which finishes the baseline in `new_baseline` (a new file).
///
/// A name whose stamp equals the baseline's is unchanged and is not opened. Where only a ctime moved, the content is hashed
/// and compared with the digest of the index, else with what `lower_digests` gives for all such files.
pub fn plain_diff(
    step: &AfterStep<'_>,
    lower_digests: &dyn LowerDigests,
    new_baseline: File,
) -> Result<PlainChanges, DiffError> {
    let top = EntryPath::root();
    let root = Arc::new(reopen(step.root).map_err(upper_error(&top))?);
    let writer = BaselineWriter::new(new_baseline);
    let levels = step.renamed.keys().filter_map(EntryPath::parent).collect();
    let lower = Some(LowerDirectory::root(step.parent));
    let state = State { number: ROOT, before: Some(ROOT), lower };
    let seeker = || Seeker {
        step,
        levels: &levels,
        writer: &writer,
        part: Part::default(),
        found: Collected::new(Judge::new(root.clone(), &step.options)),
        buffer: Vec::new(),
    };
    let seekers = walk(step.root, step.threads, state, seeker)?;
    let mut all = Collected::new(Judge::new(root.clone(), &step.options));
    let mut parts = Vec::new();
    for seeker in seekers {
        all.absorb(seeker.found);
        parts.push(seeker.part);
    }
    let baseline = writer.finish(stamp_of_root(step.root)?, parts)?;
    all.settle_doubts(lower_digests)?;
    all.join_moved(step)?;
    let touched = all.finish_stubs(step.root)?;
    let changeset = Arc::new(all.judge.finish());
    Ok(PlainChanges { changeset, touched, baseline, root: *step.baseline.root() })
}

/// What one thread found.
struct Collected<'a> {
    judge: Judge<'a>,
    touched: Vec<Touched>,
    doubtful: Vec<Doubtful>,
    /// Directories that the sandbox made: where their records are.
    stubs: Vec<(EntryPath, u64)>,
    /// Emitted names whose inode is older than the step: they came with a directory that was renamed.
    moved: Vec<(usize, Stamp)>,
}

/// A file of which only the content can say whether it changed.
struct Doubtful {
    found: Found,
    layer: usize,
    digest: Digest,
}

impl<'a> Collected<'a> {
    fn new(judge: Judge<'a>) -> Self {
        Collected {
            judge,
            touched: Vec::new(),
            doubtful: Vec::new(),
            stubs: Vec::new(),
            moved: Vec::new(),
        }
    }

    fn absorb(&mut self, other: Collected<'a>) {
        let offset = self.judge.absorb(other.judge);
        self.touched.extend(other.touched);
        self.doubtful.extend(other.doubtful);
        self.stubs.extend(other.stubs);
        self.moved.extend(other.moved.into_iter().map(|(at, stamp)| (at + offset, stamp)));
    }

    /// Emits the doubtful files whose content differs from that of the layers below.
    fn settle_doubts(&mut self, lower: &dyn LowerDigests) -> Result<(), DiffError> {
        let mut wanted: BTreeMap<usize, BTreeSet<EntryPath>> = BTreeMap::new();
        for doubtful in &self.doubtful {
            wanted.entry(doubtful.layer).or_default().insert(doubtful.found.path.clone());
        }
        let mut digests = HashMap::new();
        for (layer, wanted) in wanted {
            let path = wanted.first().cloned().unwrap_or_default();
            let got = lower.digests(layer, &wanted);
            digests.extend(got.map_err(|source| DiffError::Lower { path, source })?);
        }
        for Doubtful { found, digest, .. } in std::mem::take(&mut self.doubtful) {
            let missing = || DiffError::Lower {
                path: found.path.clone(),
                source: io::ErrorKind::NotFound.into(),
            };
            if *digests.get(&found.path).ok_or_else(missing)? != digest {
                self.judge.emit(found)?;
            }
        }
        Ok(())
    }

    /// Names of one group of a layer below that came along with a renamed directory are one file, as they are where the
    /// directory can't be renamed and is copied: overlayfs.
    fn join_moved(&mut self, step: &AfterStep<'_>) -> Result<(), DiffError> {
        if self.moved.is_empty() {
            return Ok(());
        }
        let groups = inherited_groups(step.parent, step.baseline)?;
        for (at, stamp) in std::mem::take(&mut self.moved) {
            if let Some((_, group)) = groups.get(&stamp.inode).filter(|(was, _)| *was == stamp) {
                self.judge.link(at, LinkKey::Inherited(*group));
            }
        }
        Ok(())
    }

    /// Adds the directories above the changes, and what is left of the sandbox's to what has to go.
    fn finish_stubs(&mut self, root: BorrowedFd<'_>) -> Result<Vec<Touched>, DiffError> {
        let mut emitted: HashSet<EntryPath> =
            self.judge.changes.iter().map(|change| change.path.clone()).collect();
        let mut missing: BTreeSet<EntryPath> = BTreeSet::new();
        for change in &self.judge.changes {
            let mut above = change.path.parent().filter(|path| !path.is_root());
            while let Some(path) = above.filter(|path| !emitted.contains(path)) {
                above = path.parent().filter(|path| !path.is_root());
                emitted.insert(path.clone());
                missing.insert(path);
            }
        }
        let mut stack = DirectoryStack::new(reopen(root).map_err(upper_error(&EntryPath::root()))?);
        for path in missing {
            let stat = stack.go_to(&path).and_then(|()| Ok(fstat(stack.top())?));
            let stat = stat.map_err(upper_error(&path))?;
            let metadata = self.judge.metadata(&stat);
            self.judge.changes.push(Change::new(path, Kind::DIRECTORY, metadata));
        }
        let mut touched = std::mem::take(&mut self.touched);
        let stubs = std::mem::take(&mut self.stubs).into_iter();
        touched.extend(stubs.map(|(path, offset)| {
            let dropped = !emitted.contains(&path);
            Touched { path, offset, dropped }
        }));
        touched.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(touched)
    }
}

/// What the names of hard-link groups of the layers below were in the tree, where each is a file of its own: by inode, the
/// stamp and the group's number.
fn inherited_groups(
    parent: &Snapshot,
    baseline: &Baseline,
) -> Result<HashMap<u64, (Stamp, usize)>, DiffError> {
    let mut numbers: HashMap<(usize, u32), usize> = HashMap::new();
    let mut groups = HashMap::new();
    for (layer, index) in parent.layers().iter().map(|layer| &layer.index).enumerate() {
        for row in index.rows().iter().filter(|row| row.link_group > 0) {
            if parent.lookup(&row.path).is_none_or(|entry| entry.layer != layer) {
                continue;
            }
            let count = numbers.len();
            let number = *numbers.entry((layer, row.link_group)).or_insert(count);
            if let Some(stamp) = baseline.lookup(&row.path)? {
                groups.insert(stamp.inode, (stamp, number));
            }
        }
    }
    Ok(groups)
}

/// What a directory hands down.
struct State<'a> {
    /// In the new baseline.
    number: u32,
    /// In the old one, if it was a directory there.
    before: Option<u32>,
    lower: Option<LowerDirectory<'a>>,
}

/// One thread's way through the tree.
struct Seeker<'w, 'a> {
    step: &'w AfterStep<'a>,
    /// Directories with renamed names.
    levels: &'w HashSet<EntryPath>,
    writer: &'w BaselineWriter,
    part: Part,
    found: Collected<'a>,
    buffer: Vec<u8>,
}

/// A directory on the way.
struct Here<'v, 'a> {
    path: &'v EntryPath,
    at: BorrowedFd<'v>,
    lower: Option<LowerDirectory<'a>>,
    is_level: bool,
    block: Block,
    /// How much was touched before.
    touched: usize,
    stubs: usize,
}

impl<'a> Visitor for Seeker<'_, 'a> {
    type State = State<'a>;
    type Error = DiffError;

    fn visit(
        &mut self,
        directory: Visited<'_>,
        state: State<'a>,
    ) -> Result<Vec<(EntryPath, State<'a>)>, DiffError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let before = match state.before {
            Some(number) => self.step.baseline.block(number, &mut buffer)?,
            None => Vec::new(),
        };
        let mut here = Here {
            path: directory.path,
            at: directory.at,
            lower: state.lower,
            is_level: self.levels.contains(directory.path),
            block: Block::default(),
            touched: self.found.touched.len(),
            stubs: self.found.stubs.len(),
        };
        let below = self.compare(&mut here, directory.entries, &before)?;
        let written = self.writer.write(&mut self.part, state.number, &here.block);
        let base = written.map_err(BaselineError::File)?;
        self.found.touched[here.touched..].iter_mut().for_each(|touched| touched.offset += base);
        self.found.stubs[here.stubs..].iter_mut().for_each(|(_, offset)| *offset += base);
        drop(before);
        self.buffer = buffer;
        Ok(below)
    }
}

impl<'a> Seeker<'_, 'a> {
    /// Merges what is there with what was there, both in order.
    fn compare(
        &mut self,
        here: &mut Here<'_, 'a>,
        entries: &[Listed],
        before: &[Record<'_>],
    ) -> Result<Vec<(EntryPath, State<'a>)>, DiffError> {
        let mut below = Vec::new();
        let mut before = before.iter().peekable();
        for listed in entries {
            while let Some(gone) = before.next_if(|record| *record.name < *listed.name) {
                self.gone(here, gone.name)?;
            }
            let before = before.next_if(|record| *record.name == *listed.name);
            let stamp = Stamp::of(&listed.stat);
            self.part.see(&stamp);
            if stamp.is_directory() {
                below.push(self.directory(here, listed, &stamp, before)?);
            } else {
                self.name(here, listed, &stamp, before)?;
            }
        }
        before.try_for_each(|gone| self.gone(here, gone.name))?;
        Ok(below)
    }

    fn gone(&mut self, here: &Here<'_, 'a>, name: &[u8]) -> Result<(), DiffError> {
        let Some(lower) = &here.lower else { return Ok(()) };
        let path = child(here.path, name)?;
        if lower.child(&path).is_some() {
            self.found.judge.changes.push(Change::whiteout(path));
        }
        Ok(())
    }

    /// Whether a name is what it was, by its stamp alone.
    fn is_unchanged(&self, here: &Here<'_, 'a>, name: &[u8], now: &Stamp, was: &Stamp) -> bool {
        if !now.same_but_ctime(was) {
            return false;
        }
        let renamed = || self.step.renamed.get(&here.path.child(name));
        match here.is_level.then(renamed).flatten() {
            Some(Renamed { before, after }) => before == after && before.ctime < self.step.began,
            None => now == was && was.ctime < self.step.began,
        }
    }

    fn touch(&mut self, path: EntryPath, offset: u64, dropped: bool) {
        self.found.touched.push(Touched { path, offset, dropped });
    }

    fn directory(
        &mut self,
        here: &mut Here<'_, 'a>,
        listed: &Listed,
        stamp: &Stamp,
        before: Option<&Record<'_>>,
    ) -> Result<(EntryPath, State<'a>), DiffError> {
        let number = self.writer.next_number();
        let offset = here.block.push(&listed.name, stamp, number);
        let path = child(here.path, &listed.name)?;
        let before = before.filter(|record| record.stamp.is_directory());
        let lower = here.lower.as_ref().and_then(|lower| lower.child(&path));
        let lower = lower.filter(|lower| lower.row.kind.is_directory());
        let unchanged =
            |record: &Record<'_>| self.is_unchanged(here, &listed.name, stamp, &record.stamp);
        if !before.is_some_and(unchanged) {
            check_name(&path)?;
            let metadata = self.found.judge.metadata(&listed.stat);
            match &lower {
                None if self.found.judge.is_stub(&path) => {
                    self.found.stubs.push((path.clone(), offset));
                }
                Some(lower) if same_attributes(&metadata, lower.metadata) => {
                    self.touch(path.clone(), offset, false);
                }
                _ => {
                    self.touch(path.clone(), offset, false);
                    let change = Change::new(path.clone(), Kind::DIRECTORY, metadata);
                    self.found.judge.changes.push(change);
                }
            }
        }
        let lower = lower.and_then(|lower| lower.directory);
        Ok((path, State { number, before: before.map(|record| record.number), lower }))
    }

    /// A name that is no directory.
    fn name(
        &mut self,
        here: &mut Here<'_, 'a>,
        listed: &Listed,
        stamp: &Stamp,
        before: Option<&Record<'_>>,
    ) -> Result<(), DiffError> {
        let offset = here.block.push(&listed.name, stamp, 0);
        if before.is_some_and(|was| self.is_unchanged(here, &listed.name, stamp, &was.stamp)) {
            return Ok(());
        }
        let path = child(here.path, &listed.name)?;
        let lower = here.lower.as_ref().and_then(|lower| lower.child(&path));
        if is_nothing(&listed.stat) {
            if lower.is_some() {
                self.found.judge.changes.push(Change::whiteout(path.clone()));
            }
            self.touch(path, offset, true);
            return Ok(());
        }
        if lower.is_none() && listed.stat.st_size == 0 && self.found.judge.is_stub(&path) {
            self.touch(path, offset, true);
            return Ok(());
        }
        self.touch(path.clone(), offset, false);
        let found = self.found.judge.read(here.at, path, listed.stat)?;
        let Some(lower) = lower else { return self.emit(found, stamp) };
        match self.found.judge.compare(&found, &lower) {
            Verdict::Same => Ok(()),
            Verdict::Differs => self.emit(found, stamp),
            Verdict::ContentDecides => {
                let digest = digest_at(here.at, &found.path)?;
                match lower.row.digest {
                    Some(known) if known == digest => Ok(()),
                    Some(_) => self.emit(found, stamp),
                    None => {
                        let layer = lower.layer;
                        self.found.doubtful.push(Doubtful { found, layer, digest });
                        Ok(())
                    }
                }
            }
        }
    }

    fn emit(&mut self, found: Found, stamp: &Stamp) -> Result<(), DiffError> {
        let at = self.found.judge.emit(found)?;
        if stamp.ctime < self.step.began {
            self.found.moved.push((at, *stamp));
        }
        Ok(())
    }
}

/// Whether a name stands for nothing: a socket, which goes into no layer, or what readers of trees take for a whiteout.
fn is_nothing(stat: &Stat) -> bool {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Socket => true,
        FileType::CharacterDevice => stat.st_rdev == 0,
        _ => false,
    }
}

impl From<WalkError> for DiffError {
    fn from(WalkError { path, source }: WalkError) -> Self {
        DiffError::Upper { path, source }
    }
}

/// Where the layers are unpacked as well.
impl LowerDigests for LowerDirectories {
    fn digests(
        &self,
        layer: usize,
        wanted: &BTreeSet<EntryPath>,
    ) -> io::Result<BTreeMap<EntryPath, Digest>> {
        let directory = self.0.get(layer).ok_or(io::ErrorKind::NotFound)?;
        wanted
            .iter()
            .map(|path| {
                let directory = directory.clone();
                let content = crate::tree::Content::Beneath { directory, path: path.clone() };
                Ok((path.clone(), digest_of(content.open()?)?))
            })
            .collect()
    }
}
