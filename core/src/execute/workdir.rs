//! WORKDIR: the directory is made where it is missing (rules.md section 2, rule 22).

use crate::tree::{Changeset, Content, EntryPath, ResolveError, Timestamp};

use super::{
    target::{MakeDirectories, Target},
    users::{OwnerSpec, Parent, UserError},
};

#[derive(Debug, thiserror::Error)]
pub enum WorkdirError {
    #[error("WORKDIR {path}: {source}")]
    Resolve { path: EntryPath, source: ResolveError },
    #[error("the owner of WORKDIR {path}: {source}")]
    User { path: EntryPath, source: UserError },
}

/// Makes `path` (the absolute, joined WORKDIR) and its parents, 0755, owned by `user` (USER as the config has it).
///
/// `None` where no layer is to be written: for `/`. An existing directory gives an empty changeset, which is a layer.
pub fn workdir(
    parent: &Parent<'_>,
    path: &EntryPath,
    user: Option<&str>,
    created: Timestamp,
) -> Result<Option<Changeset>, WorkdirError> {
    if path.is_root() {
        return Ok(None);
    }
    let owner = user.filter(|user| !user.is_empty()).map(|user| {
        let owner = OwnerSpec::parse(user).and_then(|spec| spec.look_up(parent));
        owner.map_err(|source| WorkdirError::User { path: path.clone(), source })
    });
    let make = MakeDirectories { mode: 0o755, owner: owner.transpose()?, created };
    let failed = |source| WorkdirError::Resolve { path: path.clone(), source };
    let mut target = Target::new(parent.snapshot);
    let resolved = target.resolve(path).map_err(failed)?;
    target.make_directories(&resolved, &make).map_err(failed)?;
    // Directories have no contents: nothing is ever asked for.
    target.finish(|_| Ok(Vec::<Content>::new())).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        execute::testing::{NoContents, file, link, path, row, snapshot, with_small_file},
        tree::{Kind, Snapshot},
    };

    fn run(
        snapshot: &Snapshot,
        name: &str,
        user: Option<&str>,
    ) -> Result<Vec<String>, WorkdirError> {
        let parent = Parent { snapshot, contents: &NoContents };
        let created = Timestamp::from_seconds(9);
        let changes = workdir(&parent, &path(name), user, created)?.expect("not the root");
        let shown = changes.changes().iter().map(|change| {
            let made = &change.metadata;
            format!(
                "{} {:o} {}:{} {}",
                change.path, made.mode, made.uid, made.gid, made.mtime.seconds
            )
        });
        Ok(shown.collect())
    }

    #[test]
    fn missing_directories_are_made() {
        let snapshot = snapshot(&[("a", Kind::DIRECTORY), ("l", link("nowhere/d"))]);
        assert_eq!(
            run(&snapshot, "a/b/c", None).unwrap(),
            ["/a 755 0:0 1", "/a/b 755 0:0 9", "/a/b/c 755 0:0 9"]
        );
        assert_eq!(
            run(&snapshot, "l", None).unwrap(),
            ["/nowhere 755 0:0 9", "/nowhere/d 755 0:0 9"]
        );
        assert!(run(&snapshot, "a", Some("5")).unwrap().is_empty(), "an existing one is kept");
    }

    #[test]
    fn they_belong_to_the_user() {
        let mut snapshot = snapshot(&[("a", Kind::DIRECTORY)]);
        with_small_file(&mut snapshot, "etc/passwd", "app:x:7:8::/:\n");
        assert_eq!(run(&snapshot, "a/b", Some("app")).unwrap()[1], "/a/b 755 7:8 9");
        assert_eq!(run(&snapshot, "b", Some("1234")).unwrap(), ["/b 755 1234:1234 9"]);
        assert_eq!(run(&snapshot, "b", Some("ghost")).unwrap(), ["/b 755 0:0 9"]);
        assert!(matches!(run(&snapshot, "b", Some("-1")), Err(WorkdirError::User { .. })));
    }

    #[test]
    fn a_set_group_id_directory_hands_its_group_on() {
        let rows = vec![row("g", Kind::DIRECTORY, 0o2770, 1, 50)];
        let snapshot = Snapshot::default().with(crate::execute::testing::layer(rows));
        assert_eq!(run(&snapshot, "g/x", None).unwrap()[1], "/g/x 2755 0:50 9");
        assert_eq!(run(&snapshot, "g/x", Some("4:5")).unwrap()[1], "/g/x 2755 4:5 9");
    }

    #[test]
    fn the_root_is_no_layer_and_a_file_is_an_error() {
        let snapshot = snapshot(&[("f", file()), ("loop", link("loop"))]);
        let parent = Parent { snapshot: &snapshot, contents: &NoContents };
        let root = workdir(&parent, &EntryPath::root(), None, Timestamp::default());
        assert!(root.unwrap().is_none());
        for name in ["f", "f/x", "loop/x"] {
            assert!(
                matches!(run(&snapshot, name, None), Err(WorkdirError::Resolve { .. })),
                "{name}"
            );
        }
    }
}
