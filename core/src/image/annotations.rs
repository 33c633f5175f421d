//! Annotations and where they go (OCI image-spec annotations.md; BuildKit's four levels).

use std::collections::BTreeMap;

use super::platform::Platform;

/// The document that holds an annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The image's manifest.
    Manifest,
    /// The index of several platforms.
    Index,
    /// The manifest's descriptor in the index, or in a layout's `index.json`.
    ManifestDescriptor,
    /// The index's descriptor in a layout's `index.json`.
    IndexDescriptor,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotation {
    pub level: Level,
    /// `None`: of every platform.
    pub platform: Option<Platform>,
    pub key: String,
    pub value: String,
}

/// All annotations of a build, in the order they were given.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Annotations(pub Vec<Annotation>);

impl Annotations {
    /// Those of a level and a platform: one that names the platform wins over one for all, a later one over an earlier.
    pub fn of(&self, level: Level, platform: Option<&Platform>) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for named in [false, true] {
            let fits = |a: &&Annotation| match &a.platform {
                None => !named,
                Some(wanted) => named && Some(wanted) == platform,
            };
            let level = self.0.iter().filter(|annotation| annotation.level == level);
            found.extend(level.filter(fits).map(|a| (a.key.clone(), a.value.clone())));
        }
        found
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one needs an index to be written to.
    pub fn need_index(&self) -> bool {
        self.0.iter().any(|a| matches!(a.level, Level::Index | Level::IndexDescriptor))
    }

    /// A platform that one is for and that is none of `platforms`.
    pub fn stray_platform(&self, platforms: &[Platform]) -> Option<&Platform> {
        let named = self.0.iter().filter_map(|annotation| annotation.platform.as_ref());
        named.into_iter().find(|platform| !platforms.contains(platform))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_platforms_own_wins() {
        let arm: Platform = "linux/arm64".parse().unwrap();
        let annotation = |level, platform: Option<&Platform>, value: &str| Annotation {
            level,
            platform: platform.cloned(),
            key: "a".into(),
            value: value.into(),
        };
        let all = Annotations(vec![
            annotation(Level::Manifest, Some(&arm), "arm"),
            annotation(Level::Manifest, None, "first"),
            annotation(Level::Manifest, None, "all"),
            annotation(Level::Index, None, "index"),
        ]);
        assert_eq!(all.of(Level::Manifest, Some(&arm))["a"], "arm");
        assert_eq!(all.of(Level::Manifest, Some(&"linux/amd64".parse().unwrap()))["a"], "all");
        assert_eq!(all.of(Level::Index, None)["a"], "index");
        assert!(all.of(Level::IndexDescriptor, None).is_empty());
        assert!(all.need_index());
        assert_eq!(all.stray_platform(std::slice::from_ref(&arm)), None);
        assert_eq!(all.stray_platform(&[]), Some(&arm));
    }
}
