//! `check`: the build checks of a Dockerfile, without building it.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use futures_util::future::join_all;

use crate::{
    build::{Services, fetcher},
    context::Contexts,
    dockerfile::{
        Parsed,
        ast::Dockerfile,
        lint::{self, Known, Report},
        parse,
    },
    error::{Class, Error},
    event::{Event, Reporter, Warning},
    image::ImageConfig,
    plan::ImageUse,
    registry::Client,
    request::BuildRequest,
    resolve::{ResolvedImage, Resolver},
    store::Store,
};

/// How long registries are asked for the images' configurations; what is not known by then counts as unknown.
const RESOLVE_SECONDS_MAX: u64 = 15;
/// Tries of one request then: fewer than a build's, because a check goes on without the answer.
const TRIES: u32 = 2;

/// A Dockerfile that was checked.
#[derive(Debug)]
pub struct Checked {
    /// Its name, as messages show it.
    pub name: String,
    pub source: Vec<u8>,
    pub report: Report,
    /// The error that `error=true` makes of findings.
    pub gate: Option<Error>,
}

/// Checks the request's Dockerfile: all of its stages, or with a target those that it needs. As with BuildKit's `check`,
/// the platform is the host's. Images that can't be resolved are told as warnings, and what depends on them is not
/// checked.
///
/// # Errors
/// Whatever keeps the Dockerfile or the context from being read. What is wrong with the Dockerfile is in the report.
pub async fn check(request: &BuildRequest, services: &Services) -> Result<Checked, Error> {
    let store = Store::open(&request.state_directory, services.boot_id.clone())
        .map_err(|error| Error::from_cause(Class::Host, error))?;
    let mut options = services.registry.clone();
    options.limits.tries = options.limits.tries.min(TRIES);
    let client = Client::new(options, services.keychain.clone())
        .map_err(|error| error.into_error(Class::Usage))?;
    let fetcher = fetcher(request, services, &store, &Arc::new(AtomicU32::new(1)))?;
    let contexts = Contexts::open(request, &store, fetcher.main(request).await?)?;
    let (name, source) = contexts.dockerfile();
    let images = match parse(name, source) {
        Ok(parsed) => {
            let resolver = Resolver { client: &client, store: &store };
            configurations(&parsed.dockerfile, request, &resolver, &*services.reporter).await
        }
        Err(_) => BTreeMap::new(),
    };
    let ignored = ignored(&contexts);
    let known = Known {
        images: &images,
        platform: None,
        ignored: Some(&ignored),
        all_stages: request.target.is_none(),
    };
    let (dockerfile, report) = lint::check_source(name, source, request, &known);
    let gate = dockerfile.and_then(|dockerfile| report.gate(&dockerfile));
    Ok(Checked { name: name.to_owned(), source: source.to_vec(), report, gate })
}

/// The checks of a build, once its images are resolved: each finding is told as a warning. What the target does not need
/// is checked as text only, as by BuildKit.
///
/// # Errors
/// Class `Gate` where there are findings and `error=true` is asked for.
pub fn check_build(
    parsed: &Parsed,
    request: &BuildRequest,
    images: &BTreeMap<ImageUse, ResolvedImage>,
    contexts: &Contexts,
    reporter: &dyn Reporter,
) -> Result<(), Error> {
    let configs =
        images.iter().map(|(image, resolved)| (image.clone(), resolved.config.clone())).collect();
    let ignored = ignored(contexts);
    let known = Known {
        images: &configs,
        platform: request.platforms.first(),
        ignored: Some(&ignored),
        all_stages: false,
    };
    let report = lint::check(parsed, request, &known);
    let dockerfile = &parsed.dockerfile;
    for finding in &report.findings {
        reporter.report(Event::Warning(Warning {
            message: format!("{}: {}", finding.rule.name, finding.detail),
            location: Some((dockerfile.name.clone(), finding.span.first_line)),
            hint: finding.rule.url(),
        }));
    }
    report.gate(dockerfile).map_or(Ok(()), Err)
}

/// Whether the context's ignore file leaves out a source.
fn ignored(contexts: &Contexts) -> impl Fn(&str) -> bool + use<> {
    let context = contexts.get(None).ok();
    move |path| context.as_ref().is_some_and(|context| context.tree.ignore().leaves_out(path))
}

/// The configurations of the images that the Dockerfile names, as far as they can be had.
async fn configurations(
    dockerfile: &Dockerfile,
    request: &BuildRequest,
    resolver: &Resolver<'_>,
    reporter: &dyn Reporter,
) -> BTreeMap<ImageUse, ImageConfig> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(RESOLVE_SECONDS_MAX);
    let images = lint::images(dockerfile, request, None).into_iter();
    let resolving = images.map(|(image, span)| async move {
        let why = match tokio::time::timeout_at(deadline, resolver.resolve(&image)).await {
            Ok(Ok(resolved)) => return Some((image, resolved.config)),
            Ok(Err(error)) => error.title().to_owned(),
            Err(_) => format!("no answer within {RESOLVE_SECONDS_MAX} seconds"),
        };
        reporter.report(Event::Warning(Warning {
            message: format!("checks that need image {image} are skipped: {why}"),
            location: Some((dockerfile.name.clone(), span.first_line)),
            hint: None,
        }));
        None
    });
    join_all(resolving).await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Mutex};

    use crate::request::ContextSource;

    use super::*;

    #[derive(Default)]
    struct Told(Mutex<Vec<Warning>>);

    impl Reporter for Told {
        fn report(&self, event: Event) {
            if let Event::Warning(warning) = event {
                self.0.lock().unwrap().push(warning);
            }
        }
    }

    #[test]
    fn a_build_tells_of_findings_and_ends_where_asked_to() {
        let folder = tempfile::tempdir().unwrap();
        let context = folder.path().join("context");
        fs::create_dir(&context).unwrap();
        fs::write(context.join(".dockerignore"), "a\n").unwrap();
        fs::write(context.join("Dockerfile"), "").unwrap();
        let request = BuildRequest {
            context: Some(ContextSource::Directory(context)),
            ..BuildRequest::default()
        };
        let store = Store::open(&folder.path().join("state"), "boot".into()).unwrap();
        let contexts = Contexts::open(&request, &store, None).unwrap();
        let images = BTreeMap::new();
        let text = "FROM scratch\nENV a b\nFROM scratch\nCOPY a /\nENV x=${y:-z}\n";
        let parsed = parse("Dockerfile", text.as_bytes()).unwrap();
        let told = Told::default();
        check_build(&parsed, &request, &images, &contexts, &told).unwrap();
        let told = told.0.into_inner().unwrap();
        let told: Vec<_> =
            told.iter().map(|w| (w.message.split(':').next(), &w.location)).collect();
        let at = |line| Some(("Dockerfile".to_owned(), line));
        assert_eq!(told, [(Some("CopyIgnoredFile"), &at(4)), (Some("UndefinedVar"), &at(5))]);
        let parsed = parse("Dockerfile", format!("# check=error=true\n{text}").as_bytes()).unwrap();
        let error =
            check_build(&parsed, &request, &images, &contexts, &Told::default()).unwrap_err();
        assert_eq!(error.class(), Class::Gate);
    }
}
