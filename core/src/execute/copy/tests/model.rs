//! Path resolution against a pure model: RootPath as text, one link at a time.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{context::resolve, tree::LastLink};

/// Replaces the first link met by its target until there is none; `None` for errors.
fn resolve_as_text(links: &BTreeMap<String, Option<String>>, path: &str) -> Option<String> {
    let mut parts: Vec<String> = path.split('/').map(str::to_owned).collect();
    'again: for _ in 0..40 {
        for end in 1..=parts.len() {
            let here = parts[..end].join("/");
            match links.get(&here) {
                Some(Some(target)) => {
                    let goal = match target.strip_prefix('/') {
                        Some(absolute) => absolute.to_owned(),
                        None => format!("{}/{target}", parts[..end - 1].join("/")),
                    };
                    let goal = EntryPath::clean(goal.as_bytes()).unwrap();
                    let rest = parts[end..].to_vec();
                    parts = goal
                        .components()
                        .map(|part| String::from_utf8(part.to_vec()).unwrap())
                        .collect();
                    parts.extend(rest);
                    continue 'again;
                }
                Some(None) => {}
                None => return Some(parts.join("/")),
            }
        }
        return Some(parts.join("/"));
    }
    None
}

fn target() -> impl Strategy<Value = Option<String>> {
    prop_oneof![Just(None), "/?(\\.\\./){0,2}[abc](/[abc.]){0,2}".prop_map(Some)]
}

proptest! {
    #[test]
    fn resolution_is_textual(
        entries in prop::collection::btree_map("[abc](/[abc]){0,2}", target(), 1..8),
        asked in "[abc](/[abc]){0,3}",
    ) {
        // Only what has its parents as directories is there.
        let mut there: BTreeMap<String, Option<String>> = BTreeMap::new();
        for (name, target) in &entries {
            let parents = path(name).ancestors().map(|a| String::from_utf8(a.to_vec()).unwrap()).collect::<Vec<_>>();
            if parents.iter().all(|parent| entries.get(parent).is_none_or(Option::is_none)) {
                for parent in parents {
 there.entry(parent).or_insert(None);
 }
                there.insert(name.clone(), target.clone());
            }
        }
        let kinds: Vec<(String, Kind)> = there.iter().map(|(name, target)| {
            (name.clone(), target.as_deref().map_or(DIRECTORY, link))
        }).collect();
        let kinds: Vec<(&str, Kind)> = kinds.iter().map(|(name, kind)| (name.as_str(), kind.clone())).collect();
        let expected = resolve_as_text(&there, &asked);
        let source = tree(&kinds);
        let found = resolve(&source, &path(&asked), LastLink::Follow);
        if let Some(expected) = expected {
            prop_assert_eq!(found.unwrap(), path(&expected));
        } else {
            prop_assert!(found.is_err());
        }
        let base = snapshot(&kinds);
        let in_snapshot = base.resolve(&path(&asked), LastLink::Follow);
        let in_tree = resolve(&source, &path(&asked), LastLink::Follow);
        prop_assert_eq!(in_snapshot.map(|found| found.path).ok(), in_tree.ok());
    }
}
