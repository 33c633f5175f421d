//! OUTPUT: an artifact to its outputs, files first, because a push is seen by others.

mod files;
mod names;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    path::Path,
};

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use oci_distribution::Reference;

use crate::{
    build::Built,
    error::{Class, Error},
    event::{Event, VertexKind, Warning},
    image::{
        Artifact,
        layout::{self, LayoutContent, LayoutError},
        manifest::ArtifactIndex,
    },
    layer::LayerDescriptor,
    push::{self, Document},
    registry::{Client, Repository},
    request::{BuildRequest, Output, PlatformSplit},
    resolve::{LayerRef, Origin},
    rootfs::{ExportOptions, LeftOut},
    solve::{Solved, Solver, blocking},
};

use files::{FileSystem, FilesError};

pub use names::{PushTarget, names, pushes, told};

/// What writing the outputs did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    pub pushed_bytes: u64,
}

/// What is wrong with the repositories that the image goes to. `changes`: what is pushed is certainly none that was pushed
/// before.
pub async fn push_faults(client: &Client, request: &BuildRequest, changes: bool) -> Vec<Error> {
    let targets = match pushes(request) {
        Ok(targets) => targets,
        Err(error) => return vec![error],
    };
    let mut repositories: BTreeMap<Repository, Vec<&Reference>> = BTreeMap::new();
    for target in &targets {
        for name in &target.names {
            let tags = repositories.entry(Repository::from(name)).or_default();
            tags.extend((!target.by_digest).then_some(name));
        }
    }
    let checks = repositories.iter().map(|(repository, tags)| async move {
        let (kept, all) = kept_tags(client, tags).await;
        match (changes && !client.skip_immutable(), kept.is_empty(), all) {
            (true, false, _) => kept,
            // Nothing is sent to it, whether or not they name this very image.
            (_, _, true) => Vec::new(),
            _ => push_fault(client, repository).await.into_iter().collect(),
        }
    });
    join_all(checks).await.into_iter().flatten().collect()
}

async fn push_fault(client: &Client, repository: &Repository) -> Option<Error> {
    let refused = client.check_push(repository).await.err()?;
    Some(refused.into_error(Class::Push).context(format!("cannot push to {repository}")))
}

/// The tags that can't be moved to another image, each as an error, and whether these are all.
async fn kept_tags(client: &Client, tags: &[&Reference]) -> (Vec<Error>, bool) {
    let kept = tags.iter().map(|tag| async move {
        let there = push::kept(client, tag).await?;
        let error = push::PushError::Kept { destination: tag.whole(), there };
        Some(error.into_error())
    });
    let kept: Vec<Error> = join_all(kept).await.into_iter().flatten().collect();
    let all = !tags.is_empty() && kept.len() == tags.len();
    (kept, all)
}

/// Writes the artifact to every output.
pub async fn write(
    names: &[Reference],
    built: &[Built],
    artifact: &Artifact,
) -> Result<Written, Error> {
    let Some(first) = built.first() else { return Ok(Written::default()) };
    let request = first.solver.request();
    let mut pushes = false;
    for output in &request.outputs {
        match output {
            Output::OciDirectory(path) => export(built, artifact, names, path, Form::OCI).await?,
            Output::OciTar(path) => export(built, artifact, names, path, Form::OCI.tar()).await?,
            Output::DockerDirectory(path) => {
                export(built, artifact, names, path, Form::DOCKER).await?;
            }
            Output::DockerTar(path) => {
                export(built, artifact, names, path, Form::DOCKER.tar()).await?;
            }
            Output::FilesTar { path, split } => export_tar(built, path, *split).await?,
            Output::FilesDirectory { path, split, delete } => {
                export_directory(built, path, *split, *delete).await?;
            }
            Output::Registry { .. } => pushes = true,
        }
    }
    if !pushes {
        return Ok(Written::default());
    }
    let mut pushed_bytes = push_images(built).await?;
    if let Some(index) = artifact.index() {
        pushed_bytes += push_index(first, index, &self::pushes(request)?).await?;
    }
    Ok(Written { pushed_bytes })
}

/// How a layout is written.
#[derive(Clone, Copy)]
struct Form {
    tar: bool,
    docker: bool,
}

impl Form {
    const OCI: Form = Form { tar: false, docker: false };
    const DOCKER: Form = Form { tar: false, docker: true };

    fn tar(self) -> Form {
        Form { tar: true, ..self }
    }
}

async fn export(
    built: &[Built],
    artifact: &Artifact,
    names: &[Reference],
    path: &Path,
    form: Form,
) -> Result<(), Error> {
    let Some(Built { solver, .. }) = built.first() else { return Ok(()) };
    let vertex = solver.vertex(VertexKind::Export, format!("exporting to {}", path.display()));
    fetch_blobs(built).await?;
    let (store, artifact, path) = (solver.store().clone(), artifact.clone(), path.to_owned());
    let names: Vec<(String, String)> = names
        .iter()
        .map(|name| (name.to_string(), name.tag().unwrap_or("latest").to_owned()))
        .collect();
    let mtime = solver.request().source_date_epoch.unwrap_or(0).max(0) as u64;
    let done = blocking(move || {
        let docker = form.docker;
        let content = LayoutContent { store: &store, artifact: &artifact, names: &names, docker };
        let failed = |source| LayoutError::Write { path: path.clone(), source };
        match form.tar {
            false => layout::write_directory(&content, &path),
            true => to_file(&path, failed, |out| layout::write_tar(&content, mtime, out)),
        }
    });
    let result = done.await?.map_err(|error| Error::from_cause(Class::Host, error));
    vertex.end(result)
}

/// Has all layers' blobs in the store.
async fn fetch_blobs(built: &[Built]) -> Result<(), Error> {
    for Built { solver, solved } in built {
        try_join_all(solved.layers.iter().map(|layer| solver.layers().blob(layer))).await?;
    }
    Ok(())
}

/// Writes a file beside its place and renames it; what is no regular file (a pipe, a device) and standard output (`-`) are
/// written as they are.
fn to_file<E>(
    path: &Path,
    failed: impl Fn(io::Error) -> E,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    if path == Path::new("-") {
        return write(&mut io::stdout().lock());
    }
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        let file = File::options().write(true).open(path).map_err(failed)?;
        return write(&mut io::BufWriter::with_capacity(1 << 20, file));
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(&failed)?;
    let beside = tempfile::Builder::new().prefix(".bareboat-").tempfile_in(parent);
    let mut out = io::BufWriter::with_capacity(1 << 20, beside.map_err(&failed)?);
    write(&mut out)?;
    let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
    set_file_mode(file.path()).map_err(&failed)?;
    file.persist(path).map(drop).map_err(|error| failed(error.error))
}

fn set_file_mode(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

async fn export_tar(built: &[Built], path: &Path, split: PlatformSplit) -> Result<(), Error> {
    let Some(Built { solver, .. }) = built.first() else { return Ok(()) };
    let title = format!("exporting files to {}", path.display());
    let vertex = solver.vertex(VertexKind::Export, title);
    let systems = file_systems(built).await?;
    let (store, path) = (solver.store().clone(), path.to_owned());
    let (split, epoch) = (is_split(split, built), solver.request().source_date_epoch);
    let done = blocking(move || {
        let failed = |source| FilesError::Write { path: path.clone(), source };
        to_file(&path, failed, |out| files::write_tar(&store, &systems, split, epoch, out))
    });
    vertex.end(done.await?.map_err(FilesError::into_error))
}

async fn export_directory(
    built: &[Built],
    path: &Path,
    split: PlatformSplit,
    delete: bool,
) -> Result<(), Error> {
    let Some(Built { solver, .. }) = built.first() else { return Ok(()) };
    let title = format!("exporting files to {}", path.display());
    let vertex = solver.vertex(VertexKind::Export, title);
    let systems = file_systems(built).await?;
    let (store, path) = (solver.store().clone(), path.to_owned());
    let split = is_split(split, built);
    let options = ExportOptions {
        owners: rustix::process::geteuid().is_root()
            && solver.services().host.user_namespace.is_none(),
        delete,
        mtime_seconds: solver.request().source_date_epoch,
    };
    let done = blocking(move || files::write_directory(&store, &systems, split, options, &path));
    let left_out = vertex.end(done.await?.map_err(FilesError::into_error))?;
    warn_of(left_out, solver);
    Ok(())
}

fn is_split(split: PlatformSplit, built: &[Built]) -> bool {
    match split {
        PlatformSplit::Auto => built.len() > 1,
        PlatformSplit::Always => true,
        PlatformSplit::Never => false,
    }
}

fn warn_of(left_out: LeftOut, solver: &Solver) {
    let LeftOut { devices, capabilities } = left_out;
    if devices + capabilities == 0 {
        return;
    }
    let warning = Warning {
        message: format!(
            "{devices} device nodes and {capabilities} file capabilities are left out of the exported files: only root can make them"
        ),
        location: None,
        hint: Some("type=tar holds them, whoever writes it".into()),
    };
    solver.services().reporter.report(Event::Warning(warning));
}

/// What the images' layers make together, with their blobs in the store.
async fn file_systems(built: &[Built]) -> Result<Vec<FileSystem>, Error> {
    fetch_blobs(built).await?;
    let system = |Built { solver, solved }: &Built| {
        let (solver, solved) = (solver.clone(), solved.clone());
        async move {
            let snapshot = solver.layers().snapshot(&solved.layers).await?;
            let layers = solved.layers.iter().map(|layer| layer.descriptor.clone()).collect();
            Ok(FileSystem { platform: solved.image.platform.clone(), snapshot, layers })
        }
    };
    try_join_all(built.iter().map(system)).await
}

/// Ends the uploads that began with the build's first layer: each image under its names, or by its digest where it is one
/// of several.
async fn push_images(built: &[Built]) -> Result<u64, Error> {
    let several = built.len() > 1;
    let mut uploaded = 0;
    for Built { solver, solved } in built {
        let image = push_of(solver, solved).await?;
        let reports = solver.uploads().finish(&image, several).await?;
        uploaded += reports.iter().map(|report| report.uploaded_bytes).sum::<u64>();
    }
    Ok(uploaded)
}

/// Puts the index under its names, once all images are there.
async fn push_index(
    Built { solver, .. }: &Built,
    index: &ArtifactIndex,
    targets: &[PushTarget],
) -> Result<u64, Error> {
    let document = Document {
        bytes: Bytes::copy_from_slice(&index.bytes),
        media_type: index.media_type.to_owned(),
        digest: index.digest,
    };
    let mut uploaded = 0;
    for PushTarget { names, by_digest } in targets {
        for name in names {
            let name = match by_digest {
                true => push::pinned(name, index.digest),
                false => name.clone(),
            };
            let vertex = solver.vertex(VertexKind::Push, format!("pushing {name}"));
            let put = push::put_document(solver.client(), &document, &name).await;
            if vertex.end(put.map_err(push::PushError::into_error))? {
                uploaded += document.bytes.len() as u64;
            }
        }
    }
    Ok(uploaded)
}

async fn push_of(solver: &Solver, solved: &Solved) -> Result<push::PushImage, Error> {
    let image = &solved.image;
    let mut layers = Vec::new();
    for (layer, descriptor) in solved.layers.iter().zip(&image.layers) {
        layers.push(push_layer(solver, layer, descriptor).await?);
    }
    Ok(push::PushImage {
        manifest: image.manifest.clone().into(),
        manifest_media_type: image.media_type.into(),
        digest: image.digest,
        config: (image.config_digest, image.config.clone().into()),
        layers,
    })
}

/// Where the push finds a layer: in the store, else in the registry that it came from.
async fn push_layer(
    solver: &Solver,
    layer: &LayerRef,
    descriptor: &LayerDescriptor,
) -> Result<push::PushLayer, Error> {
    let known_in = match &layer.origin {
        Some(Origin::Registry(pinned)) => Some(pinned.repository.clone()),
        _ => None,
    };
    let source = match (solver.blob_if_there(layer), &known_in) {
        (Some(file), _) => push::LayerSource::File(file),
        (None, Some(repository)) => push::LayerSource::Registry(repository.clone()),
        (None, None) => {
            solver.layers().blob(layer).await?;
            push::LayerSource::File(solver.store().blob_path(&layer.descriptor.digest))
        }
    };
    Ok(push::PushLayer { digest: descriptor.digest, size: descriptor.size, source, known_in })
}
