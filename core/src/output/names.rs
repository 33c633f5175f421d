//! What outputs are called, and whether what they ask for goes together.

use std::collections::BTreeSet;

use oci_distribution::Reference;

use crate::{
    digest::Digest,
    error::{Class, Error},
    registry::reference,
    request::{BuildRequest, Output},
};

/// Where one output pushes to.
#[derive(Clone, Debug)]
pub struct PushTarget {
    pub names: Vec<Reference>,
    /// Under the digest and no tag.
    pub by_digest: bool,
}

/// The request's tags and its outputs' names as references, each once. None may hold a digest.
///
/// # Errors
/// Class `Usage`: a name that is none, and outputs or annotations that this build has nothing for.
pub fn names(request: &BuildRequest) -> Result<Vec<Reference>, Error> {
    check_platforms(request)?;
    check_annotations(request)?;
    let pushed = request.outputs.iter().flat_map(|output| match output {
        Output::Registry { names, .. } => names.as_slice(),
        _ => &[],
    });
    let mut seen = BTreeSet::new();
    let all: Vec<&String> = request.tags.iter().chain(pushed).filter(|n| seen.insert(*n)).collect();
    let all: Vec<Reference> =
        all.into_iter().map(|name| parse_name(name)).collect::<Result<_, _>>()?;
    // Names that may hold no tag are told apart before anything is built.
    self::pushes(request)?;
    Ok(all)
}

fn check_platforms(request: &BuildRequest) -> Result<(), Error> {
    let several = request.platforms.len() > 1;
    let docker = request
        .outputs
        .iter()
        .any(|output| matches!(output, Output::DockerTar(_) | Output::DockerDirectory(_)));
    match several && docker {
        true => Err(usage("type=docker cannot hold an index of several platforms")
            .hint("use type=oci, or build for one platform")),
        false => Ok(()),
    }
}

fn check_annotations(request: &BuildRequest) -> Result<(), Error> {
    let annotations = &request.image.annotations;
    if request.platforms.len() < 2 && annotations.need_index() {
        return Err(usage("annotations of an index are for builds for several platforms")
            .hint("one platform makes a plain manifest: annotate that (manifest: or no prefix)"));
    }
    let host = [crate::image::platform::Platform::host()];
    let platforms = if request.platforms.is_empty() { &host } else { &request.platforms[..] };
    match annotations.stray_platform(platforms) {
        Some(stray) => Err(usage(&format!("an annotation is for {stray}, which is not built"))
            .hint("name the platform as --platform does")),
        None => Ok(()),
    }
}

fn parse_name(name: &str) -> Result<Reference, Error> {
    let parsed = reference::parse(name).map_err(|e| Error::from_cause(Class::Usage, e))?;
    match parsed.digest() {
        Some(_) => Err(usage(&format!("tag {name:?} must not hold a digest"))),
        None => Ok(parsed),
    }
}

/// Whether a name ends in a tag.
fn has_tag(name: &str) -> bool {
    name.rsplit('/').next().is_some_and(|last| last.contains(':'))
}

/// The names of each output that pushes.
///
/// # Errors
/// Class `Usage`: one has none, or one with a tag is to be pushed by digest.
pub fn pushes(request: &BuildRequest) -> Result<Vec<PushTarget>, Error> {
    let mut targets = Vec::new();
    for output in &request.outputs {
        let Output::Registry { names: own, by_digest, .. } = output else { continue };
        let texts = if own.is_empty() { &request.tags } else { own };
        if let Some(tagged) = texts.iter().find(|name| *by_digest && has_tag(name)) {
            return Err(usage(&format!("{tagged:?} has a tag, but is to be pushed by digest"))
                .hint("leave the tag out, or leave push-by-digest out"));
        }
        if texts.is_empty() {
            return Err(nameless());
        }
        let names = texts.iter().map(|name| parse_name(name)).collect::<Result<_, _>>()?;
        targets.push(PushTarget { names, by_digest: *by_digest });
    }
    Ok(targets)
}

/// The names that the result is told by: full, and with the digest where an output wants that.
pub fn told(request: &BuildRequest, names: &[Reference], digest: Digest) -> Vec<String> {
    let mut by_digest_only = BTreeSet::new();
    let mut canonical = BTreeSet::new();
    for output in &request.outputs {
        let Output::Registry { names, by_digest, canonical: wanted } = output else { continue };
        let texts = if names.is_empty() { &request.tags } else { names };
        let own = texts.iter().filter_map(|name| parse_name(name).ok());
        let own: Vec<String> = own.map(|name| name.whole()).collect();
        if *by_digest {
            by_digest_only.extend(own.iter().cloned());
        }
        if *wanted || *by_digest {
            canonical.extend(own);
        }
    }
    let pinned = |name: &Reference| format!("{}/{}@{digest}", name.registry(), name.repository());
    let mut told = Vec::new();
    for name in names {
        if !by_digest_only.contains(&name.whole()) {
            told.push(name.to_string());
        }
        if canonical.contains(&name.whole()) {
            told.push(pinned(name));
        }
    }
    told
}

fn nameless() -> Error {
    usage("a push needs a name").hint("name the image with -t or name=…")
}

fn usage(title: &str) -> Error {
    Error::new(Class::Usage, title)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::annotations::{Annotation, Annotations, Level};

    fn request(outputs: Vec<Output>, tags: &[&str], platforms: &[&str]) -> BuildRequest {
        BuildRequest {
            outputs,
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            platforms: platforms.iter().map(|platform| platform.parse().unwrap()).collect(),
            ..BuildRequest::default()
        }
    }

    fn push(names: &[&str], by_digest: bool, canonical: bool) -> Output {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Output::Registry { names, by_digest, canonical }
    }

    #[test]
    fn names_that_are_pushed_by_digest_have_no_tag() {
        let good = request(vec![push(&["r.test:5000/a"], true, false)], &[], &[]);
        let all = names(&good).unwrap();
        let target = &pushes(&good).unwrap()[0];
        assert!(target.by_digest && target.names[0].repository() == "a");
        let digest = Digest::of(b"x");
        assert_eq!(told(&good, &all, digest), [format!("r.test:5000/a@{digest}")]);
        for bad in [
            request(vec![push(&["r.test/a:v1"], true, false)], &[], &[]),
            request(vec![push(&[], true, false)], &["r.test/a:v1"], &[]),
        ] {
            assert!(names(&bad).unwrap_err().title().contains("v1"));
        }
    }

    #[test]
    fn canonical_names_are_told_beside_the_others() {
        let request = request(vec![push(&[], false, true)], &["r.test/a:1"], &[]);
        let all = names(&request).unwrap();
        let digest = Digest::of(b"x");
        let expected = ["r.test/a:1".to_owned(), format!("r.test/a@{digest}")];
        assert_eq!(told(&request, &all, digest), expected);
    }

    #[test]
    fn docker_takes_no_index() {
        let output = || vec![Output::DockerTar("x".into())];
        let error = names(&request(output(), &[], &["linux/amd64", "linux/arm64"])).unwrap_err();
        assert!(error.title().contains("type=docker"));
        names(&request(output(), &[], &["linux/amd64"])).unwrap();
    }

    #[test]
    fn annotations_must_have_their_document() {
        let with = |level, platform: Option<&str>, platforms: &[&str]| {
            let platform = platform.map(|platform| platform.parse().unwrap());
            let (key, value) = ("k".into(), "v".into());
            let mut request = request(vec![], &[], platforms);
            request.image.annotations =
                Annotations(vec![Annotation { level, platform, key, value }]);
            names(&request).map(drop)
        };
        let both = ["linux/amd64", "linux/arm64"];
        with(Level::Index, None, &both).unwrap();
        with(Level::Manifest, Some("linux/arm64"), &both).unwrap();
        assert!(with(Level::Index, None, &[]).is_err());
        assert!(with(Level::IndexDescriptor, None, &both[..1]).is_err());
        assert!(with(Level::Manifest, Some("linux/s390x"), &both).is_err());
    }
}
