//! `plan`: what a build would do, without doing it. Nothing is pulled, executed or written but the state directory.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU32},
};

use crate::{
    build::{Services, fetcher},
    context::Contexts,
    dockerfile::ast::Dockerfile,
    error::{Class, Error},
    image::{ImageConfig, platform::Platform},
    plan::{self, BuildGraph, ImageSource, ImageUse, Plan},
    registry::{Client, reference},
    request::BuildRequest,
    resolve::Resolver,
    store::Store,
};

/// A Dockerfile that was planned.
#[derive(Debug)]
pub struct Preview {
    /// The Dockerfile's name, as messages show it.
    pub dockerfile: String,
    pub platform: Platform,
    pub graph: BuildGraph,
    /// Names of `bases` that the build does not read.
    pub unused: Vec<String>,
}

/// Configurations of images by reference, given by the caller: what is among them is asked of no registry.
#[derive(Clone, Debug, Default)]
pub struct BaseConfigs(BTreeMap<String, ImageConfig>);

impl BaseConfigs {
    /// Adds a configuration; `alpine` is the same as `docker.io/library/alpine:latest`.
    ///
    /// # Errors
    /// Class `Usage` where the name is no reference or the bytes are no image configuration (OCI image-spec config.md).
    pub fn insert(&mut self, name: &str, config: &[u8]) -> Result<(), Error> {
        let wrong = |error| Error::from_cause(Class::Usage, error).context(name);
        let name = canonical(name).map_err(|error| Error::from_cause(Class::Usage, error))?;
        let config = serde_json::from_slice(config).map_err(wrong)?;
        self.0.insert(name, config);
        Ok(())
    }

    fn get(&self, image: &ImageUse) -> Option<(&str, &ImageConfig)> {
        let ImageSource::Registry(name) = &image.source else { return None };
        let (name, config) = self.0.get_key_value(&canonical(name).ok()?)?;
        Some((name, config))
    }
}

fn canonical(name: &str) -> Result<String, reference::ReferenceError> {
    Ok(reference::parse(name)?.whole())
}

/// Plans the request's target.
///
/// # Errors
/// What is wrong with the Dockerfile or the context (class `Input`), or with an image whose configuration is not among
/// `bases` (class `Source`).
pub async fn preview(
    request: &BuildRequest,
    bases: &BaseConfigs,
    services: &Services,
) -> Result<Preview, Error> {
    let store = Store::open(&request.state_directory, services.boot_id.clone())
        .map_err(|error| Error::from_cause(Class::Host, error))?;
    let fetcher = fetcher(request, services, &store, &Arc::new(AtomicU32::new(1)))?;
    let contexts = Contexts::open(request, &store, fetcher.main(request).await?)?;
    let parsed = crate::build::load(&contexts, &*services.reporter)?;
    let client = Client::new(services.registry.clone(), services.keychain.clone())
        .map_err(|error| error.into_error(Class::Usage))?;
    let resolver = Resolver { client: &client, store: &store };
    let platform = request.platforms.first().cloned().unwrap_or_else(Platform::host);
    let dockerfile = &parsed.dockerfile;
    let (graph, used) = plan_on(dockerfile, request, &platform, bases, &resolver).await?;
    let unused = bases.0.keys().filter(|name| !used.contains(name)).cloned().collect();
    Ok(Preview { dockerfile: dockerfile.name.clone(), platform, graph, unused })
}

/// Plans until every configuration is known; also tells which of `bases` were of use.
async fn plan_on(
    dockerfile: &Dockerfile,
    request: &BuildRequest,
    platform: &Platform,
    bases: &BaseConfigs,
    resolver: &Resolver<'_>,
) -> Result<(BuildGraph, Vec<String>), Error> {
    let mut used = Vec::new();
    let mut known = BTreeMap::new();
    loop {
        let needs = match plan::plan(dockerfile, request, platform, &known)? {
            Plan::Graph(graph) => return Ok((*graph, used)),
            Plan::Needs(needs) => needs,
        };
        for (image, span) in needs {
            let config = match bases.get(&image) {
                Some((name, config)) => {
                    used.push(name.to_owned());
                    config.clone()
                }
                None => {
                    let resolved = resolver.resolve(&image).await;
                    let located = |error: Error| error.context(&image).at(dockerfile, span);
                    resolved.map_err(located)?.config
                }
            };
            known.insert(image, config);
        }
    }
}
