//! Making the container's root whole after an exchange that was cut off.

use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use super::{
    Exchange, SwapError,
    attributes::Attributes,
    directory::find,
    error::Named,
    journal::{Mark, Record, State, Story},
    text,
};
use crate::tree::EntryPath;

/// What a repair found and did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Repaired {
    /// There was nothing to do, but for the time of a directory perhaps.
    Nothing,
    /// An exchange had been cut off; the container's root is as it was before it.
    Restored {
        /// The stage's tree, below the side directory.
        #[serde(with = "text::path")]
        stage: EntryPath,
        /// The step had begun and not been swapped out: discard the tree.
        spoilt: bool,
        /// The container's own entries that are gone, because the step removed them from the side directory.
        #[serde(with = "text::paths")]
        lost: Vec<EntryPath>,
    },
    /// Copying a directory of the container's image had been cut off; it is as it was, or done.
    Delayered {
        #[serde(with = "text::path")]
        path: EntryPath,
    },
}

impl Exchange {
    /// Finishes or undoes what another process, or this one, left in the middle. May itself be cut off and done again.
    pub fn repair(&self) -> Result<Repaired, SwapError> {
        match self.journal.read()? {
            State::Clean => Ok(Repaired::Nothing),
            State::Exchange(story) => self.repair_exchange(&story),
            State::Copy(story) => {
                let path = story.path.clone();
                self.repair_copy(story)?;
                Ok(Repaired::Delayered { path })
            }
            State::Trial(path, attributes) => {
                self.repair_trial(&path, &attributes)?;
                Ok(Repaired::Nothing)
            }
        }
    }

    fn repair_trial(&self, path: &EntryPath, attributes: &Attributes) -> Result<(), SwapError> {
        if let Some(directory) = find(&self.place.root, path).named("open", path)? {
            let applied = attributes.apply(&self.ops, directory.as_fd());
            applied.named("set metadata of", path)?;
        }
        self.record(&[Record::Done])
    }

    fn repair_exchange(&self, story: &Story) -> Result<Repaired, SwapError> {
        let engine = self.engine(&story.layout);
        engine.levels_home()?;
        let restore_from = match story.mark {
            Mark::Aside | Mark::In => {
                engine.stage_out(&story.stage)?;
                self.record(&[Record::Out { spoilt: story.spoilt }])?;
                Mark::Out
            }
            mark => mark,
        };
        let lost = self.restore(story, restore_from)?;
        let (stage, spoilt) = (story.layout.stage.clone(), story.spoilt);
        Ok(Repaired::Restored { stage, spoilt, lost })
    }
}
