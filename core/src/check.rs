//! `check`: the build checks of a Dockerfile, without building it.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;

use crate::{
    build::Services,
    context::Contexts,
    dockerfile::{
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
    resolve::Resolver,
    store::Store,
};

/// How long registries are asked for the images' configurations; what is not known by then counts as unknown.
const RESOLVE_SECONDS_MAX: u64 = 20;

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
    let client = Client::new(services.registry.clone(), services.keychain.clone())
        .map_err(|error| error.into_error(Class::Usage))?;
    let contexts = Contexts::open(request, &store)?;
    let (name, source) = contexts.dockerfile();
    let images = match parse(name, source) {
        Ok(parsed) => {
            let resolver = Resolver { client: &client, store: &store };
            configurations(&parsed.dockerfile, request, &resolver, &*services.reporter).await
        }
        Err(_) => BTreeMap::new(),
    };
    let context = contexts.get(None).ok();
    let ignored =
        |path: &str| context.as_ref().is_some_and(|context| context.tree.ignore().leaves_out(path));
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
