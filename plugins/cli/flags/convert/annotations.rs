//! `--annotation` and the `annotation` keys of `--output`: a level, maybe a platform, a key and a value.

use bareboat_core::{
    Class, Error,
    image::annotations::{Annotation, Level},
};

const LEVELS: &str =
    "manifest, index, manifest-descriptor and index-descriptor, each maybe with [PLATFORM]";

/// `--annotation`: `[LEVEL[PLATFORM][,LEVEL…]:]KEY=VALUE`. A value without a level is of `level`.
pub fn of_flag(values: Vec<String>, level: Level) -> Result<Vec<Annotation>, Error> {
    let mut annotations = Vec::new();
    for text in values {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| usage(format!("--annotation: {text:?} is no key=value")))?;
        match levels(key)? {
            None => annotations.push(annotation((level, None), key, value, &text)?),
            Some((levels, key)) => {
                for level in levels {
                    annotations.push(annotation(level, key, value, &text)?);
                }
            }
        }
    }
    Ok(annotations)
}

/// Whether a key of `--output` is one.
pub fn is_key(key: &str) -> bool {
    key == "annotation" || key.starts_with("annotation.") || key.starts_with("annotation-")
}

/// A key of `--output`: `annotation.KEY`, `annotation-LEVEL.KEY` or `annotation-LEVEL[PLATFORM].KEY`.
pub fn of_key(key: &str, value: &str) -> Result<Annotation, Error> {
    let rest = key.strip_prefix("annotation").unwrap_or_default();
    // A platform may hold a point of its own.
    let cut = rest.find(']').unwrap_or(0);
    let (place, name) = rest[cut..]
        .split_once('.')
        .map(|(end, name)| (&rest[..cut + end.len()], name))
        .ok_or_else(|| usage(format!("--output: {key} names no annotation")))?;
    let place = match place.strip_prefix('-') {
        None => (Level::Manifest, None),
        Some(place) => level_of(place)?.ok_or_else(|| no_level(place))?,
    };
    annotation(place, name, value, key)
}

type LevelAndPlatform = (Level, Option<bareboat_core::image::platform::Platform>);

fn annotation(
    (level, platform): LevelAndPlatform,
    key: &str,
    value: &str,
    text: &str,
) -> Result<Annotation, Error> {
    if key.is_empty() {
        return Err(usage(format!("annotation {text:?} has no key")));
    }
    Ok(Annotation { level, platform, key: key.to_owned(), value: value.to_owned() })
}

/// The levels before a key's first colon; `None` where what stands there can be none, but a part of the key.
fn levels(key: &str) -> Result<Option<(Vec<LevelAndPlatform>, &str)>, Error> {
    let Some((places, rest)) = key.split_once(':') else { return Ok(None) };
    let word = places.split(['[', ',']).next().unwrap_or_default();
    if !word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') {
        return Ok(None);
    }
    let levels = places.split(',').map(|place| level_of(place)?.ok_or_else(|| no_level(place)));
    Ok(Some((levels.collect::<Result<_, _>>()?, rest)))
}

fn level_of(place: &str) -> Result<Option<LevelAndPlatform>, Error> {
    let (word, platform) = match place.strip_suffix(']').and_then(|p| p.split_once('[')) {
        Some((word, platform)) => (word, Some(platform)),
        None => (place, None),
    };
    let level = match word {
        "manifest" => Level::Manifest,
        "index" => Level::Index,
        "manifest-descriptor" => Level::ManifestDescriptor,
        "index-descriptor" => Level::IndexDescriptor,
        _ => return Ok(None),
    };
    let of_index = matches!(level, Level::Index | Level::IndexDescriptor);
    if platform.is_some() && of_index {
        return Err(usage(format!("annotation level {place:?}: an index has no platform")));
    }
    let platform = platform.map(str::parse).transpose();
    let platform =
        platform.map_err(|error| usage(format!("annotation level {place:?}: {error}")))?;
    Ok(Some((level, platform)))
}

fn no_level(place: &str) -> Error {
    usage(format!("annotation level {place:?} is not supported"))
        .hint(format!("the levels are {LEVELS}"))
}

fn usage(title: String) -> Error {
    Error::new(Class::Usage, title)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Plain = (Level, Option<String>, String, String);

    fn parsed(text: &str) -> Result<Vec<Plain>, Error> {
        let all = of_flag(vec![text.to_owned()], Level::Manifest)?;
        let plain = |a: Annotation| (a.level, a.platform.map(|p| p.to_string()), a.key, a.value);
        Ok(all.into_iter().map(plain).collect())
    }

    #[test]
    fn annotations_know_their_level() {
        let one = |text: &str| parsed(text).unwrap().remove(0);
        assert_eq!(one("a=b"), (Level::Manifest, None, "a".into(), "b".into()));
        assert_eq!(one("index:a=b=c"), (Level::Index, None, "a".into(), "b=c".into()));
        let platform = Some("linux/arm64".to_owned());
        assert_eq!(
            one("manifest[linux/arm64]:org.x=y:z"),
            (Level::Manifest, platform.clone(), "org.x".into(), "y:z".into())
        );
        assert_eq!(one("org.example:x=y").2, "org.example:x");
        let both = parsed("index,manifest-descriptor[linux/arm64]:a=b").unwrap();
        assert_eq!((both[0].0, both[1].0), (Level::Index, Level::ManifestDescriptor));
        assert_eq!(both[1].1, platform);
        for bad in
            ["a", "manifest:=b", "=b", "nowhere:a=b", "index[linux/arm64]:a=b", "manifest[x]:a=b"]
        {
            assert_eq!(parsed(bad).unwrap_err().class(), Class::Usage, "{bad}");
        }
    }

    #[test]
    fn keys_of_output() {
        let one = |key: &str| of_key(key, "v").unwrap();
        assert_eq!(
            (one("annotation.a.b").level, one("annotation.a.b").key),
            (Level::Manifest, "a.b".into())
        );
        assert_eq!(one("annotation-index-descriptor.a").level, Level::IndexDescriptor);
        let of_platform = one("annotation-manifest[windows(10.0.1)/amd64].a.b");
        assert_eq!(of_platform.key, "a.b");
        assert_eq!(of_platform.platform.unwrap().os_version, "10.0.1");
        for bad in [
            "annotation",
            "annotation.",
            "annotation-x.a",
            "annotation-manifest",
            "annotation-manifest[linux.a",
        ] {
            assert!(of_key(bad, "v").is_err(), "{bad}");
        }
    }
}
