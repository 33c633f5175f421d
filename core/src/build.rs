//! The pipeline on one screen: parse -> plan -> resolve -> (cache | execute -> snapshot -> layer)* -> image -> outputs.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU32},
};

use futures_util::future::join_all;
use oci_distribution::Reference;
use tokio::sync::watch;

use crate::{
    check::check_build,
    context::Contexts,
    dockerfile::{self, ParseErrors, Parsed, WarningKind, ast::Dockerfile},
    error::{Class, Error, Location},
    event::{Event, Reporter, Warning},
    execute::{
        sandbox::{self, Host, Rung, SWAP_STATE},
        ssh,
    },
    fetch::{FetchError, Git, GitOptions, HttpClient, SshAccess},
    image::{Artifact, ImageConfig, platform::Platform},
    output,
    plan::{self, BuildGraph, ImageUse, Plan},
    registry::{Client, ClientOptions, Keychain},
    request::BuildRequest,
    resolve::{ResolvedImage, Resolver},
    solve::{ContextFetcher, Parts, Solved, Solver, StepReport, Uploads},
    store::Store,
    sys::private_root,
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
    /// How this host executes RUN.
    pub host: Arc<Host>,
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
    let result = session.build().await;
    session.client.cancel_unused_uploads().await;
    result
}

/// Checks all that can be known to be wrong with a build before anything is pulled or executed, and builds nothing.
///
/// # Errors
/// The first fault, with the others beside it ([`Error::others`]).
pub async fn preflight(request: BuildRequest, services: Services) -> Result<(), Error> {
    let request = BuildRequest { preflight: true, ..request };
    let session = Session::open(request, services).await?;
    let prepared = session.prepare().await;
    session.client.cancel_unused_uploads().await;
    prepared.map(drop)
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
    /// On the swap rung, where `store` is not on the mount of `/`.
    side: Option<Store>,
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
        let side = side(&request, &services).await?;
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
            side,
            client,
            fetcher,
            contexts: Arc::new(contexts),
            parsed,
            next_vertex,
        })
    }

    async fn build(&self) -> Result<BuildResult, Error> {
        let mut built = Vec::new();
        let prepared = self.prepare().await?;
        let private = self.leave_root(&prepared)?;
        for (solver, target) in prepared {
            let solved = self.until_canceled(solver.solve(target)).await;
            if solved.is_err() {
                solver.stop().await;
            }
            built.push(Built { solved: solved?, solver });
        }
        if private.is_some() {
            let keep = async {
                sandbox::keep_root_async().await;
                Ok(())
            };
            self.until_canceled(keep).await?;
        }
        drop(private);
        let images = built.iter().map(|built| built.solved.image.clone()).collect();
        let artifact = Artifact::new(images, &self.request.image).map_err(|error| {
            Error::new(Class::Bug, format!("the index cannot be written: {error}"))
        })?;
        let writing = output::write(&self.names, &built, &artifact);
        let written = self.until_canceled(writing).await?;
        let (digest, bytes) = (artifact.digest(), artifact.total_bytes());
        self.services.reporter.report(Event::Result { digest, bytes });
        Ok(self.result(&built, artifact, written.pushed_bytes))
    }

    /// Where an image's files will be at `/`, the process has an empty root of its own until the steps are over.
    fn leave_root(&self, solvers: &[(Solver, usize)]) -> Result<Option<PrivateRoot>, Error> {
        let swaps = self.services.host.rung == Some(Rung::Swap)
            && solvers.iter().any(|(solver, _)| solver.may_run());
        if !swaps {
            return Ok(None);
        }
        let side = self.side.as_ref().unwrap_or(&self.store);
        let private = PrivateRoot::enter(side)?;
        sandbox::leave_root();
        Ok(Some(private))
    }

    /// Plans every platform, and tells all faults that can be known by then together.
    async fn prepare(&self) -> Result<Vec<(Solver, usize)>, Error> {
        let platforms = match self.request.platforms.as_slice() {
            [] => vec![Platform::host()],
            platforms => platforms.to_vec(),
        };
        let several = platforms.len() > 1;
        let plans = platforms.iter().map(|platform| self.plan(platform, several));
        let (mut solvers, mut faults) = (Vec::new(), Vec::new());
        for planned in join_all(plans).await {
            match planned {
                Ok(planned) => solvers.push(planned),
                Err(errors) => faults.extend(errors),
            }
        }
        if self.request.preflight {
            let checks = self.preflight(&solvers, !faults.is_empty());
            faults.extend(self.until_canceled(async { Ok(checks.await) }).await?);
        }
        Error::first_of(faults).map_or(Ok(solvers), Err)
    }

    /// What is wrong with the work to do, this host and the destinations. Where nothing is to be done, nothing is asked.
    async fn preflight(&self, solvers: &[(Solver, usize)], failed: bool) -> Vec<Error> {
        let work: Vec<_> = solvers.iter().map(|(solver, _)| (solver, solver.work())).collect();
        if !failed && work.iter().all(|(_, work)| work.is_empty()) {
            return Vec::new();
        }
        let own = join_all(work.iter().map(|(solver, work)| solver.faults(work)));
        let changes = work.iter().any(|(solver, work)| {
            work.changes_image && solver.request().source_date_epoch.is_none()
        });
        let pushes = output::push_faults(&self.client, &self.request, changes);
        let (own, pushes) = tokio::join!(own, pushes);
        own.into_iter().flatten().chain(pushes).collect()
    }

    /// Plans the target for one platform, resolves its images and runs the checks.
    async fn plan(
        &self,
        platform: &Platform,
        several: bool,
    ) -> Result<(Solver, usize), Vec<Error>> {
        let dockerfile = &self.parsed.dockerfile;
        let resolver = Resolver { client: &self.client, store: &self.store };
        let planned = plan_and_resolve(dockerfile, &self.request, platform, &resolver);
        let planned = self.until_canceled(async { Ok(planned.await) }).await;
        let (graph, images) = planned.map_err(|error| vec![error])??;
        self.solver(platform, several, graph, images).await.map_err(|error| vec![error])
    }

    async fn solver(
        &self,
        platform: &Platform,
        several: bool,
        graph: BuildGraph,
        images: BTreeMap<ImageUse, ResolvedImage>,
    ) -> Result<(Solver, usize), Error> {
        let dockerfile = &self.parsed.dockerfile;
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
            side: self.side.clone(),
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

/// Puts the container's root in order, should a killed build have left it swapped, and opens what lies beside it.
async fn side(request: &BuildRequest, services: &Services) -> Result<Option<Store>, Error> {
    if services.host.rung != Some(Rung::Swap) {
        return Ok(None);
    }
    let side = PathBuf::from(SWAP_STATE);
    // A repair is a swap of its own.
    sandbox::leave_root();
    let repaired = side.is_dir() && sandbox::repair(side.clone()).await?;
    if repaired {
        services.reporter.report(Event::Warning(Warning {
            message:
                "a build that was killed had left its files at /: the container's own are back"
                    .into(),
            location: None,
            hint: None,
        }));
    }
    let opened = match request.state_directory == side {
        true => Ok(None),
        false => Store::open(&side, services.boot_id.clone()).map(Some),
    };
    sandbox::keep_root_async().await;
    opened.map_err(|error| Error::from_cause(Class::Host, error))
}

/// The process's private root, left when this is dropped.
struct PrivateRoot {
    side: Store,
    name: std::ffi::OsString,
}

impl PrivateRoot {
    fn enter(side: &Store) -> Result<Self, Error> {
        let host = |error| Error::from_cause(Class::Host, error);
        let directory = side.work_directory("root-").map_err(host)?;
        let name = directory.file_name().unwrap_or_default().to_owned();
        private_root::enter(&directory)
            .map_err(|error| Error::from_cause(Class::Host, error).hint("give the container the capability SYS_CHROOT, which is among Docker's default ones"))?;
        Ok(PrivateRoot { side: side.clone(), name })
    }
}

impl Drop for PrivateRoot {
    fn drop(&mut self) {
        match private_root::leave() {
            Ok(()) => self.side.discard(&self.side.work().join(&self.name)),
            Err(error) => tracing::warn!(%error, "the private root was not left"),
        }
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
///
/// # Errors
/// Of the images that were asked for at once, all that can't be had.
async fn plan_and_resolve(
    dockerfile: &Dockerfile,
    request: &BuildRequest,
    platform: &Platform,
    resolver: &Resolver<'_>,
) -> Result<(BuildGraph, BTreeMap<ImageUse, ResolvedImage>), Vec<Error>> {
    let mut images: BTreeMap<ImageUse, ResolvedImage> = BTreeMap::new();
    let mut configs: BTreeMap<ImageUse, ImageConfig> = BTreeMap::new();
    loop {
        let planned = plan::plan(dockerfile, request, platform, &configs);
        let needs = match planned.map_err(|error| vec![error])? {
            Plan::Graph(graph) => return Ok((*graph, images)),
            Plan::Needs(needs) => needs,
        };
        let resolved = needs.into_iter().map(|(image, span)| async move {
            let place = Location::new(dockerfile, span);
            match resolver.resolve(&image).await {
                Ok(resolved) => Ok((image, resolved.named_at(&place))),
                Err(error) => Err(error.context(&image).at_location(place)),
            }
        });
        let mut failed = Vec::new();
        for resolved in join_all(resolved).await {
            match resolved {
                Ok((image, resolved)) => {
                    configs.insert(image.clone(), resolved.config.clone());
                    images.insert(image, resolved);
                }
                Err(error) => failed.push(error),
            }
        }
        if !failed.is_empty() {
            return Err(failed);
        }
    }
}
