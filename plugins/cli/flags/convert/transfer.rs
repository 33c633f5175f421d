//! `push`, `copy` and `join`: what goes where.

use std::path::{Path, PathBuf};

use bareboat_core::{
    Class, Error,
    image::{
        annotations::{Annotations, Level},
        platform::Platform,
    },
    registry::{Reference, reference},
    transfer::{CopyRequest, JoinRequest, JoinSource, LayoutPlace, Place, PushRequest},
};

use super::{annotations, values};
use crate::flags::RawRequest;

/// The prefixes of a layout's path.
const LAYOUTS: &[&str] = &["oci-layout://", "oci-layout:", "oci-archive:", "oci:"];

pub fn push(raw: &mut RawRequest) -> Result<PushRequest, Error> {
    let text = raw.argument_text()?;
    if text.starts_with("docker://") {
        return Err(
            usage(format!("{text:?} is no layout")).hint("bareboat copy copies from registries")
        );
    }
    let source = layout(layout_path(text).unwrap_or(text))?;
    let destinations = raw.more_texts()?;
    let destinations = destinations.into_iter().map(name).collect::<Result<_, _>>()?;
    Ok(PushRequest { source, destinations, platform: platform(raw)? })
}

pub fn copy(raw: &mut RawRequest) -> Result<CopyRequest, Error> {
    let source = place(raw.argument_text()?)?;
    let destinations = raw.more_texts()?;
    let destinations = destinations.into_iter().map(destination).collect::<Result<_, _>>()?;
    Ok(CopyRequest { source, destinations, platform: platform(raw)? })
}

pub fn join(raw: &mut RawRequest) -> Result<JoinRequest, Error> {
    let destination = name(raw.argument_text()?)?;
    if destination.digest().is_some() {
        return Err(usage(format!(
            "{} holds a digest: an index that is made has a new one",
            destination.whole()
        )));
    }
    let sources = raw.more_texts()?.into_iter().map(joined).collect::<Result<_, _>>()?;
    let all = annotations::of_flag(raw.take_texts("annotation")?, Level::Index)?;
    for annotation in &all {
        if matches!(annotation.level, Level::Manifest | Level::IndexDescriptor) {
            return Err(usage(format!(
                "--annotation {}: join writes an index and nothing else",
                annotation.key
            ))
            .hint(
                "the levels are index (also without a level) and manifest-descriptor[PLATFORM]",
            ));
        }
    }
    Ok(JoinRequest { destination, sources, annotations: Annotations(all) })
}

fn platform(raw: &mut RawRequest) -> Result<Option<Platform>, Error> {
    let mut platforms = values::platforms(raw.take_texts("platform")?)?;
    match (platforms.len(), raw.take_switch("all")) {
        (0, _) => Ok(None),
        (_, true) => Err(usage("--all and --platform exclude each other".into())),
        (1, false) => Ok(platforms.pop()),
        (_, false) => {
            Err(usage("--platform: one platform's image can be taken, or all (--all)".into())
                .hint("bareboat join makes an index of some of them"))
        }
    }
}

fn joined(text: &str) -> Result<JoinSource, Error> {
    match text.starts_with("sha256:") && !text.contains('/') {
        true => text
            .parse()
            .map(JoinSource::Digest)
            .map_err(|error| Error::from_cause(Class::Usage, error).context(text)),
        false => name(text).map(JoinSource::Reference),
    }
}

fn name(text: &str) -> Result<Reference, Error> {
    if layout_path(text).is_some() {
        return Err(usage(format!("{text:?} is no image in a registry"))
            .hint("bareboat copy writes layouts"));
    }
    let text = text.strip_prefix("docker://").unwrap_or(text);
    reference::parse(text).map_err(|error| Error::from_cause(Class::Usage, error))
}

fn place(text: &str) -> Result<Place, Error> {
    match layout_path(text) {
        Some(path) => layout(path).map(Place::Layout),
        None => name(text).map(Place::Registry).map_err(|error| match Path::new(text).exists() {
            true => error.hint(format!("a layout is named oci:{text}")),
            false => error,
        }),
    }
}

fn destination(text: &str) -> Result<Place, Error> {
    let place = match text.strip_prefix("oci-archive:") {
        Some(path) => {
            return Err(usage(format!("{text:?} cannot be written"))
                .hint(format!("write the directory oci:{path}, and tar it")));
        }
        None => place(text)?,
    };
    match &place {
        Place::Layout(LayoutPlace { digest: Some(_), .. }) => {
            Err(usage(format!("{text:?} holds a digest: a layout takes what comes")))
        }
        _ => Ok(place),
    }
}

fn layout_path(text: &str) -> Option<&str> {
    LAYOUTS.iter().find_map(|prefix| text.strip_prefix(prefix))
}

/// `PATH[:NAME][@DIGEST]`, or a path as it is, where there is one of this name.
fn layout(text: &str) -> Result<LayoutPlace, Error> {
    let whole = LayoutPlace { path: PathBuf::from(text), tag: None, digest: None };
    if text.is_empty() {
        return Err(usage("a layout without a path".into()));
    }
    if whole.path.exists() {
        return Ok(whole);
    }
    let (rest, digest) = match text.rsplit_once("@sha256:") {
        Some((rest, hex)) => (rest, Some(format!("sha256:{hex}"))),
        None => (text, None),
    };
    let digest = digest.map(|digest| digest.parse()).transpose();
    let digest = digest.map_err(|error| Error::from_cause(Class::Usage, error).context(text))?;
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') && !tag.is_empty() && !path.is_empty() => {
            (path, Some(tag.to_owned()))
        }
        _ => (rest, None),
    };
    Ok(LayoutPlace { path: PathBuf::from(path), tag, digest })
}

fn usage(title: String) -> Error {
    Error::new(Class::Usage, title)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn layouts_have_names_and_digests() {
        let of = |text: &str| layout(text).unwrap();
        let place = |path: &str, tag: Option<&str>| LayoutPlace {
            path: path.into(),
            tag: tag.map(str::to_owned),
            digest: None,
        };
        assert_eq!(of("no/such"), place("no/such", None));
        assert_eq!(of("no/such:v1"), place("no/such", Some("v1")));
        assert_eq!(of("no:1/such"), place("no:1/such", None));
        let pinned = of(&format!("no/such:v1@sha256:{HEX}"));
        assert_eq!((pinned.tag.as_deref(), pinned.digest.is_some()), (Some("v1"), true));
        assert!(layout("x@sha256:abc").is_err());
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("a:b");
        std::fs::create_dir(&odd).unwrap();
        assert_eq!(of(odd.to_str().unwrap()).tag, None);
    }

    #[test]
    fn places_are_told_by_their_prefix() {
        for text in ["oci:x:v1", "oci-layout://x:v1", "oci-layout:x:v1", "oci-archive:x:v1"] {
            assert!(
                matches!(place(text).unwrap(), Place::Layout(l) if l.tag.as_deref() == Some("v1"))
            );
        }
        for text in ["docker://r.test/a:1", "r.test/a:1"] {
            assert!(matches!(place(text).unwrap(), Place::Registry(_)));
        }
        assert!(destination("oci-archive:x").is_err());
        assert!(destination(&format!("oci:x@sha256:{HEX}")).is_err());
        assert!(name("oci:x").is_err());
        assert_eq!(
            joined(&format!("sha256:{HEX}")).unwrap(),
            JoinSource::Digest(format!("sha256:{HEX}").parse().unwrap())
        );
        assert!(joined("sha256:abc").is_err());
        assert!(matches!(joined("r.test/a:1").unwrap(), JoinSource::Reference(_)));
    }
}
