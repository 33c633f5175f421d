//! The journal: `swap.journal` in the side directory, append-only, one JSON record a line. A last line without its end
//! is ignored. It guards against a killed process, so it is never synced.
//!
//! | record | written | a repair that finds it last |
//! | --- | --- | --- |
//! | `P` plan, `L` a level's metadata, `V` a volume's | before the first child moves | restores |
//! | `A` what is aside, `S` metadata of the stage's directories | when all is aside | moves the stage out, then as `O` |
//! | `I` | when all of the stage is in | the same; the stage is spoilt |
//! | `O` | when all of the stage is out | empties the volumes of copies, then as `C` |
//! | `C` | when no volume holds copies | restores |
//! | `B` metadata of a directory | before a rename in it is tried, which is refused | gives it back |
//! | `X` a layer's directory is being copied | before the copy | removes the copy |
//! | `T` metadata of a directory of the copy | before something is moved into it | as `Y`, and gives it back |
//! | `Y` | when the copy is complete | finishes the removal of the original, then renames the copy |
//! | `D`, or nothing | at the end | does nothing |

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags, SeekFrom, ftruncate, openat, seek},
    io::{Errno, write},
};
use serde::{Deserialize, Serialize};

use super::{
    SwapError,
    attributes::Attributes,
    error::Named,
    layout::Layout,
    ops::Ops,
    settle::Touched,
    text::{self, Name},
};
use crate::tree::EntryPath;

const JOURNAL: &str = "swap.journal";
/// More than any exchange writes; a step of root could have put anything there.
const JOURNAL_BYTES_MAX: u64 = 64 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record {
    #[serde(rename = "P")]
    Plan(Layout),
    /// Metadata of the container's own level with this number.
    #[serde(rename = "L")]
    Level(usize, Attributes),
    #[serde(rename = "V")]
    Volume(usize, Attributes),
    /// Level by level the names that were moved aside, then the volumes'.
    #[serde(rename = "A")]
    Aside { levels: Vec<Vec<Name>>, volumes: Vec<Vec<Name>> },
    /// Metadata of the stage's directory for the level with this number.
    #[serde(rename = "S")]
    Stage(usize, Attributes),
    #[serde(rename = "I")]
    In,
    /// Whether the stage is spoilt: the step was cut off.
    #[serde(rename = "O")]
    Out { spoilt: bool },
    #[serde(rename = "C")]
    Cleared,
    #[serde(rename = "X")]
    Copying {
        #[serde(with = "text::path")]
        path: EntryPath,
        /// Metadata of the directory that it is in.
        parent: Attributes,
    },
    #[serde(rename = "Y")]
    Copied,
    /// A directory of the copy will have something moved into it, and is to have this metadata in the end.
    #[serde(rename = "T")]
    Touched {
        #[serde(with = "text::path")]
        path: EntryPath,
        attributes: Attributes,
    },
    /// A rename is tried in a directory that has this metadata, and may move its time.
    #[serde(rename = "B")]
    Trying {
        #[serde(with = "text::path")]
        path: EntryPath,
        attributes: Attributes,
    },
    #[serde(rename = "D")]
    Done,
}

/// How far an exchange had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mark {
    Planned,
    Aside,
    In,
    Out,
    Cleared,
}

/// An exchange, as the journal tells it.
#[derive(Clone, Debug)]
pub(super) struct Story {
    pub layout: Layout,
    pub mark: Mark,
    pub spoilt: bool,
    /// `None` where the record is missing: nothing of that level had moved then.
    pub levels: Vec<Option<Attributes>>,
    pub volumes: Vec<Option<Attributes>>,
    pub stage: Vec<Option<Attributes>>,
    pub moved_levels: Vec<Vec<Name>>,
    pub moved_volumes: Vec<Vec<Name>>,
}

/// The copy of a layer's directory, as the journal tells it.
#[derive(Clone, Debug)]
pub(super) struct CopyStory {
    pub path: EntryPath,
    /// Metadata of the directory that it is in.
    pub parent: Attributes,
    pub complete: bool,
    pub touched: Vec<Touched>,
}

/// What was going on when the journal was last written.
#[derive(Clone, Debug)]
pub(super) enum State {
    Clean,
    Exchange(Box<Story>),
    Copy(CopyStory),
    /// A directory in which a rename was tried, and its metadata.
    Trial(EntryPath, Attributes),
}

/// The open journal.
pub(super) struct Journal {
    file: OwnedFd,
}

impl Journal {
    pub fn open(side: impl AsFd, ops: &Ops) -> Result<Self, SwapError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW;
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let open = || openat(side, JOURNAL, flags, Mode::RUSR | Mode::WUSR);
        Ok(Journal { file: ops.run(open).named("open", JOURNAL)? })
    }

    /// Begins anew with these records: what was before must be done.
    pub fn begin(&self, ops: &Ops, records: &[Record]) -> Result<(), SwapError> {
        ops.run(|| ftruncate(&self.file, 0)).named("truncate", JOURNAL)?;
        self.append(ops, records)
    }

    /// Adds records by one call.
    pub fn append(&self, ops: &Ops, records: &[Record]) -> Result<(), SwapError> {
        let mut bytes = Vec::new();
        for record in records {
            serde_json::to_writer(&mut bytes, record).named("encode", JOURNAL)?;
            bytes.push(b'\n');
        }
        ops.run(|| write_all(&self.file, &bytes)).named("write", JOURNAL)
    }

    pub fn read(&self) -> Result<State, SwapError> {
        seek(&self.file, SeekFrom::Start(0)).named("seek", JOURNAL)?;
        let file = File::from(self.file.try_clone().named("dup", JOURNAL)?);
        let mut bytes = Vec::new();
        file.take(JOURNAL_BYTES_MAX + 1).read_to_end(&mut bytes).named("read", JOURNAL)?;
        if bytes.len() as u64 > JOURNAL_BYTES_MAX {
            return Err(SwapError::Journal { line: 0, problem: "it is too long".to_owned() });
        }
        tell(&bytes)
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match write(file, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads the records into what they say.
fn tell(bytes: &[u8]) -> Result<State, SwapError> {
    let complete = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let mut state = State::Clean;
    let lines = bytes[..complete].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    for (at, line) in lines.enumerate() {
        let failed = |problem: String| SwapError::Journal { line: at + 1, problem };
        let record = serde_json::from_slice(line).map_err(|error| failed(error.to_string()))?;
        state = state.after(record).ok_or_else(|| failed("it is out of order".to_owned()))?;
    }
    Ok(state)
}

impl State {
    /// `None` where the record can't follow.
    fn after(self, record: Record) -> Option<State> {
        match (self, record) {
            (State::Clean, Record::Plan(layout)) => Story::new(layout).map(State::Exchange),
            (State::Clean, Record::Copying { path, parent }) if !path.is_root() => {
                let (complete, touched) = (false, Vec::new());
                Some(State::Copy(CopyStory { path, parent, complete, touched }))
            }
            (State::Clean, Record::Trying { path, attributes }) => {
                Some(State::Trial(path, attributes))
            }
            (State::Copy(story), Record::Copied) => {
                Some(State::Copy(CopyStory { complete: true, ..story }))
            }
            (State::Copy(mut story), Record::Touched { path, attributes }) if story.complete => {
                story.touched.push((path, attributes));
                Some(State::Copy(story))
            }
            (_, Record::Done) => Some(State::Clean),
            (State::Exchange(mut story), record) => {
                story.add(record)?;
                Some(State::Exchange(story))
            }
            _ => None,
        }
    }
}

impl Story {
    fn new(layout: Layout) -> Option<Box<Self>> {
        let (levels, volumes) = (layout.levels.len(), layout.volumes.len());
        layout.is_sound().then(|| {
            Box::new(Story {
                layout,
                mark: Mark::Planned,
                spoilt: false,
                levels: vec![None; levels],
                volumes: vec![None; volumes],
                stage: vec![None; levels],
                moved_levels: Vec::new(),
                moved_volumes: Vec::new(),
            })
        })
    }

    fn add(&mut self, record: Record) -> Option<()> {
        match record {
            Record::Level(at, attributes) => *self.levels.get_mut(at)? = Some(attributes),
            Record::Volume(at, attributes) => *self.volumes.get_mut(at)? = Some(attributes),
            Record::Stage(at, attributes) => *self.stage.get_mut(at)? = Some(attributes),
            Record::Aside { levels, volumes } => {
                let counts = (self.levels.len(), self.volumes.len());
                if (levels.len(), volumes.len()) != counts {
                    return None;
                }
                (self.moved_levels, self.moved_volumes) = (levels, volumes);
                self.advance(Mark::Aside)?;
            }
            Record::In => {
                self.spoilt = true;
                self.advance(Mark::In)?;
            }
            Record::Out { spoilt } => {
                self.spoilt = spoilt;
                self.advance(Mark::Out)?;
            }
            Record::Cleared => self.advance(Mark::Cleared)?,
            _ => return None,
        }
        Some(())
    }

    /// Marks come in order; a repair may leave out `I`.
    fn advance(&mut self, mark: Mark) -> Option<()> {
        let follows = mark > self.mark && (mark == Mark::Aside || self.mark >= Mark::Aside);
        self.mark = mark;
        follows.then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execute::sandbox::swap::exchange::{layout::Level, text::Names};

    fn layout() -> Layout {
        let path = EntryPath::root();
        let kept = Names::from([Name::new(b"b \xff\n").unwrap()]);
        let level = Level { path, kept, inode: 2, anchor: None };
        let stage = EntryPath::clean(b"work/a b/tree").unwrap();
        Layout { stage, levels: vec![level], volumes: Vec::new() }
    }

    fn text(records: &[Record]) -> Vec<u8> {
        let lines = records.iter().map(|record| serde_json::to_string(record).unwrap() + "\n");
        lines.collect::<String>().into_bytes()
    }

    fn aside() -> Record {
        Record::Aside { levels: vec![vec![Name::new(b"usr").unwrap()]], volumes: Vec::new() }
    }

    #[test]
    fn bytes_survive_and_each_record_is_a_line() {
        let bytes = text(&[Record::Plan(layout()), aside(), Record::In]);
        assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 3);
        let State::Exchange(story) = tell(&bytes).unwrap() else { panic!() };
        assert_eq!((&story.layout, story.mark), (&layout(), Mark::In));
        assert_eq!(&*story.moved_levels[0][0], b"usr");
    }

    #[test]
    fn a_torn_last_line_is_ignored() {
        let bytes = text(&[Record::Plan(layout()), aside(), Record::In]);
        let whole = text(&[Record::Plan(layout()), aside()]).len();
        for end in whole..bytes.len() {
            let State::Exchange(story) = tell(&bytes[..end]).unwrap() else { panic!() };
            assert_eq!(story.mark, Mark::Aside);
        }
        assert!(matches!(tell(&bytes[..5]).unwrap(), State::Clean));
    }

    #[test]
    fn done_makes_clean() {
        let bytes =
            text(&[Record::Plan(layout()), aside(), Record::Out { spoilt: false }, Record::Done]);
        assert!(matches!(tell(&bytes).unwrap(), State::Clean));
    }

    #[test]
    fn what_was_tampered_with_is_refused_by_line() {
        let mut unsound = layout();
        unsound.levels[0].path = EntryPath::clean(b"etc").unwrap();
        for records in [
            vec![Record::In],
            vec![Record::Plan(unsound)],
            vec![Record::Plan(layout()), Record::Out { spoilt: false }],
            vec![Record::Plan(layout()), aside(), Record::Out { spoilt: false }, Record::In],
            vec![Record::Plan(layout()), Record::Aside { levels: vec![], volumes: vec![] }],
        ] {
            let line = records.len();
            let error = tell(&text(&records)).unwrap_err();
            assert!(matches!(error, SwapError::Journal { line: at, .. } if at == line), "{error}");
        }
        for evil in ["..", "a/b", "", "%00"] {
            let line = String::from_utf8(text(&[Record::Plan(layout())])).unwrap();
            let line = line.replace("b%20%FF%0A", evil);
            assert!(tell(line.as_bytes()).is_err(), "{evil}");
            let line = String::from_utf8(text(&[Record::Plan(layout())])).unwrap();
            let line = line.replace("work/a%20b/tree", &format!("../{evil}"));
            assert!(tell(line.as_bytes()).is_err(), "{evil}");
        }
    }
}
