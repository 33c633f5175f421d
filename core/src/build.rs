//! The pipeline on one screen: parse -> plan -> resolve -> (cache | execute -> snapshot -> layer)* -> image -> outputs.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU32},
};

use oci_distribution::Reference;
use tokio::sync::watch;

use crate::{
    check::check_build,
    context::Contexts,
    dockerfile::{self, ParseErrors, Parsed, WarningKind, ast::Dockerfile},
    error::{Class, Error, Location},
    event::{Event, Reporter, Warning},
    execute::ssh,
    fetch::{FetchError, Git, GitOptions, HttpClient, SshAccess},
    image::{Artifact, ImageConfig, platform::Platform},
    output,
    plan::{self, BuildGraph, ImageUse, Plan},
    registry::{Client, ClientOptions, Keychain},
    request::BuildRequest,
    resolve::{ResolvedImage, Resolver},
    solve::{ContextFetcher, Parts, Solved, Solver, StepReport, Uploads},
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
    pub artifact: Artifact,
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
    let session = Session::open(request, services).await?;
    let platforms = match session.request.platforms.as_slice() {
        [] => vec![Platform::host()],
        platforms => platforms.to_vec(),
    };
    let several = platforms.len() > 1;
    let mut built = Vec::new();
    for platform in &platforms {
        let (solver, target) = session.plan(platform, several).await?;
        let solved = session.until_canceled(solver.solve(target)).await;
        if solved.is_err() {
            solver.stop().await;
        }
        built.push(Built { solved: solved?, solver });
    }
    let images = built.iter().map(|built| built.solved.image.clone()).collect();
    let artifact = Artifact::new(images, &session.request.image)
        .map_err(|error| Error::new(Class::Bug, format!("the index cannot be written: {error}")))?;
    let writing = output::write(&session.names, &built, &artifact);
    let written = session.until_canceled(writing).await?;
    let (digest, bytes) = (artifact.digest(), artifact.total_bytes());
    session.services.reporter.report(Event::Result { digest, bytes });
    Ok(session.result(&built, artifact, written.pushed_bytes))
}

/// A platform's image and the solver that made it.
pub struct Built {
    pub solver: Solver,
    pub solved: Solved,
}

/// What sources from outside are fetched with.
pub fn fetcher(
    request: &BuildRequest,
    services: &Services,
    store: &Store,
    next_vertex: &Arc<AtomicU32>,
) -> Result<ContextFetcher, Error> {
    let http = HttpClient::new(&services.registry).map_err(FetchError::into_error)?;
    let options = GitOptions {
        path: services.program_path.clone(),
        ssh: request.ssh.get("default").map(SshAccess::from),
        ..GitOptions::default()
    };
    Ok(ContextFetcher {
        git: Git::new(options, http.clone()),
        http,
        store: store.clone(),
        reporter: services.reporter.clone(),
        next_vertex: next_vertex.clone(),
    })
}

/// What a build has open from its beginning to its end.
struct Session {
    request: Arc<BuildRequest>,
    names: Vec<Reference>,
    services: Arc<Services>,
    store: Store,
    client: Client,
    fetcher: ContextFetcher,
    contexts: Arc<Contexts>,
    parsed: Parsed,
    next_vertex: Arc<AtomicU32>,
}

impl Session {
    async fn open(request: BuildRequest, services: Services) -> Result<Self, Error> {
        let names = output::names(&request)?;
        ssh::check(&request)?;
        let store =
            Store::open(&request.state_directory, services.boot_id.clone()).map_err(|error| {
                Error::from_cause(Class::Host, error).hint("name another place with --state-dir")
            })?;
        let client = Client::new(services.registry.clone(), services.keychain.clone())
            .map_err(|error| error.into_error(Class::Usage))?;
        let next_vertex = Arc::new(AtomicU32::new(1));
        let fetcher = fetcher(&request, &services, &store, &next_vertex)?;
        let main = until_canceled(&services.cancel, fetcher.main(&request)).await?;
        let contexts = Contexts::open(&request, &store, main)?;
        let parsed = load(&contexts, &*services.reporter)?;
        Ok(Session {
            request: Arc::new(request),
            names,
            services: Arc::new(services),
            store,
            client,
            fetcher,
            contexts: Arc::new(contexts),
            parsed,
            next_vertex,
        })
    }

    /// Plans the target for one platform, resolves its images and runs the checks.
    async fn plan(&self, platform: &Platform, several: bool) -> Result<(Solver, usize), Error> {
        let dockerfile = &self.parsed.dockerfile;
        let resolver = Resolver { client: &self.client, store: &self.store };
        let planned = plan_and_resolve(dockerfile, &self.request, platform, &resolver);
        let (graph, images) = self.until_canceled(planned).await?;
        let reporter = &self.services.reporter;
        check_build(&self.parsed, &self.request, &images, &self.contexts, &**reporter)?;
        let named = self.fetcher.named(&self.request, &graph, &self.contexts);
        self.contexts.add_named(self.until_canceled(named).await?);
        let request = Arc::new(BuildRequest {
            source_date_epoch: graph.source_date_epoch,
            ..BuildRequest::clone(&self.request)
        });
        let label = if several { format!("{platform} ") } else { String::new() };
        let pushes = output::pushes(&request)?;
        let next = &self.next_vertex;
        let uploads = Uploads::new(&self.client, &pushes, &graph, reporter, next, &label)?;
        let target = graph.target;
        let parts = Parts {
            graph,
            images,
            dockerfile: Arc::new(dockerfile.clone()),
            request,
            contexts: self.contexts.clone(),
            store: self.store.clone(),
            client: self.client.clone(),
            http: self.fetcher.http.clone(),
            git: self.fetcher.git.clone(),
            services: self.services.clone(),
            next_vertex: self.next_vertex.clone(),
            uploads,
            label,
        };
        Ok((Solver::new(parts), target))
    }

    fn result(&self, built: &[Built], artifact: Artifact, pushed_bytes: u64) -> BuildResult {
        BuildResult {
            names: output::told(&self.request, &self.names, artifact.digest()),
            artifact,
            steps: built.iter().flat_map(|built| built.solver.reports()).collect(),
            sandbox: built.iter().find_map(|built| built.solver.sandbox()),
            pulled_bytes: built.iter().map(|built| built.solver.pulled_bytes()).sum(),
            pushed_bytes,
        }
    }

    async fn until_canceled<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        until_canceled(&self.services.cancel, work).await
    }
}

/// The work's result, or the error of a build that a signal stopped; the work is dropped then.
pub(crate) async fn until_canceled<T>(
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
        class = canceled => Err(Error::new(class, "stopped by a signal")),
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
            let place = Location::new(dockerfile, *span);
            let resolved = resolver.resolve(image).await;
            match resolved {
                Ok(resolved) => Ok(resolved.named_at(&place)),
                Err(error) => Err(error.context(image).at_location(place)),
            }
        });
        let resolved = futures_util::future::try_join_all(resolved).await?;
        for ((image, _), resolved) in needs.into_iter().zip(resolved) {
            configs.insert(image.clone(), resolved.config.clone());
            images.insert(image, resolved);
        }
    }
}
