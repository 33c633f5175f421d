//! The pipeline on one screen: parse -> plan -> resolve -> (cache | execute -> snapshot -> layer)* -> image -> outputs.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU32},
};

use tokio::sync::watch;

use crate::{
    check::check_build,
    context::Contexts,
    digest::Digest,
    dockerfile::{self, ParseErrors, Parsed, WarningKind, ast::Dockerfile},
    error::{Class, Error},
    event::{Event, Reporter, Warning},
    fetch::{FetchError, Git, GitOptions, HttpClient},
    image::{Image, ImageConfig, platform::Platform},
    output,
    plan::{self, BuildGraph, ImageUse, Plan},
    registry::{Client, ClientOptions, Keychain},
    request::BuildRequest,
    resolve::{ResolvedImage, Resolver},
    solve::{Solver, StepReport, Uploads},
    store::Store,
};

/// What a build uses besides its request.
pub struct Services {
    pub reporter: Arc<dyn Reporter>,
    pub registry: ClientOptions,
    pub keychain: Arc<dyn Keychain>,
    /// Set to the class to end with (130, 143) when the build shall stop.
    pub cancel: watch::Receiver<Option<Class>>,
    /// Names this boot of the kernel: unpacked trees of another boot are not trusted.
    pub boot_id: String,
    /// PATH: where git is looked for.
    pub program_path: std::ffi::OsString,
    /// What steps see as /etc/resolv.conf.
    pub resolv_conf: Vec<u8>,
}

/// What a build gave.
#[derive(Clone, Debug)]
pub struct BuildResult {
    pub image: Image,
    /// Full names, as pushed or written.
    pub names: Vec<String>,
    pub steps: Vec<StepReport>,
    /// The rung that executed RUN steps, if any was.
    pub sandbox: Option<&'static str>,
    pub pulled_bytes: u64,
    pub pushed_bytes: u64,
}

/// Builds an image and writes it to the request's outputs.
///
/// # Errors
/// The first failure, with its class. On an error no output is touched.
pub async fn build(request: BuildRequest, services: Services) -> Result<BuildResult, Error> {
    let request = Arc::new(request);
    let names = output::names(&request)?;
    let store =
        Store::open(&request.state_directory, services.boot_id.clone()).map_err(|error| {
            Error::from_cause(Class::Host, error).hint("name another place with --state-dir")
        })?;
    let client = Client::new(services.registry.clone(), services.keychain.clone())
        .map_err(|error| error.into_error(Class::Usage))?;
    let contexts = Contexts::open(&request, &store)?;
    let parsed = load(&contexts, &*services.reporter)?;
    let dockerfile = Arc::new(parsed.dockerfile.clone());
    let platform = request.platforms.first().cloned().unwrap_or_else(Platform::host);
    let resolver = Resolver { client: &client, store: &store };
    let cancel = &services.cancel;
    let planned = plan_and_resolve(&dockerfile, &request, &platform, &resolver);
    let (graph, images) = until_canceled(cancel, planned).await?;
    check_build(&parsed, &request, &images, &contexts, &*services.reporter)?;
    let target = graph.target;
    let request = Arc::new(BuildRequest {
        source_date_epoch: graph.source_date_epoch,
        ..BuildRequest::clone(&request)
    });
    let next_vertex = Arc::new(AtomicU32::new(1));
    let pushes = output::pushes(&request, &names)?;
    let uploads = Uploads::new(&client, &pushes, &graph, &services.reporter, &next_vertex)?;
    let http = HttpClient::new(&services.registry).map_err(FetchError::into_error)?;
    let options = GitOptions { path: services.program_path.clone(), ..GitOptions::default() };
    let git = Git::new(options, http.clone());
    let services = Arc::new(services);
    let solver = Solver::new(crate::solve::Parts {
        graph,
        images,
        dockerfile,
        request: request.clone(),
        contexts,
        store: store.clone(),
        client: client.clone(),
        http,
        git,
        services: services.clone(),
        next_vertex,
        uploads,
    });
    let solved = until_canceled(&services.cancel, solver.solve(target)).await;
    if solved.is_err() {
        solver.stop().await;
    }
    let solved = solved?;
    let writing = output::write(&request, &names, &solver, &solved);
    let written = until_canceled(&services.cancel, writing).await?;
    services
        .reporter
        .report(Event::Result { digest: solved.image.digest, bytes: solved.image.total_bytes() });
    Ok(BuildResult {
        names: names.iter().map(ToString::to_string).collect(),
        steps: solver.reports(),
        sandbox: solver.sandbox(),
        pulled_bytes: solver.pulled_bytes(),
        pushed_bytes: written.pushed_bytes,
        image: solved.image,
    })
}

/// The work's result, or the error of a build that a signal stopped; the work is dropped then.
async fn until_canceled<T>(
    cancel: &watch::Receiver<Option<Class>>,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut cancel = cancel.clone();
    let canceled = async move {
        match cancel.wait_for(Option::is_some).await {
            Ok(class) => class.unwrap_or(Class::Interrupted),
            // Nobody can cancel any more.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        class = canceled => Err(Error::new(class, "the build was stopped by a signal")),
        result = work => result,
    }
}

pub(crate) fn load(contexts: &Contexts, reporter: &dyn Reporter) -> Result<Parsed, Error> {
    let (name, bytes) = contexts.dockerfile();
    let parsed =
        dockerfile::parse(name, bytes).map_err(|errors| unreadable(name, bytes, &errors))?;
    // Blank lines in continuations are a finding of the checks.
    let warnings = parsed.warnings.iter();
    for warning in warnings.filter(|warning| warning.kind != WarningKind::EmptyContinuation) {
        reporter.report(Event::Warning(Warning {
            message: warning.message.clone(),
            location: Some((name.to_owned(), warning.span.first_line)),
            hint: None,
        }));
    }
    Ok(parsed)
}

/// The first thing wrong with a Dockerfile as the build's error, the others as its notes.
fn unreadable(name: &str, bytes: &[u8], errors: &ParseErrors) -> Error {
    let source = String::from_utf8_lossy(bytes).into();
    let notes = errors.iter().skip(1);
    let notes = notes.map(|other| format!("{name}:{}: {}", other.span.first_line, other.message));
    errors.first().to_error(name, source).with_notes(notes.collect())
}

/// Plans, resolves the images that the plan asks for, and plans again until it asks for none (triggers may name more).
async fn plan_and_resolve(
    dockerfile: &Dockerfile,
    request: &BuildRequest,
    platform: &Platform,
    resolver: &Resolver<'_>,
) -> Result<(BuildGraph, BTreeMap<ImageUse, ResolvedImage>), Error> {
    let mut images: BTreeMap<ImageUse, ResolvedImage> = BTreeMap::new();
    let mut configs: BTreeMap<ImageUse, ImageConfig> = BTreeMap::new();
    loop {
        let needs = match plan::plan(dockerfile, request, platform, &configs)? {
            Plan::Graph(graph) => return Ok((*graph, images)),
            Plan::Needs(needs) => needs,
        };
        let resolved = needs.iter().map(|(image, span)| async move {
            let resolved = resolver.resolve(image).await;
            resolved.map_err(|error| error.context(image).at(dockerfile, *span))
        });
        let resolved = futures_util::future::try_join_all(resolved).await?;
        for ((image, _), resolved) in needs.into_iter().zip(resolved) {
            configs.insert(image.clone(), resolved.config.clone());
            images.insert(image, resolved);
        }
    }
}

/// The digest of the image, for callers that print it.
impl BuildResult {
    pub fn digest(&self) -> Digest {
        self.image.digest
    }
}
