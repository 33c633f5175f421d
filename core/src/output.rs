//! Outputs: OCI layouts and registries.

use std::{collections::BTreeSet, io::Write, path::Path, sync::Arc};

use futures_util::future::try_join_all;
use oci_distribution::Reference;

use crate::{
    build::Built,
    digest::Digest,
    error::{Class, Error},
    event::{Event, VertexKind},
    image::{
        Artifact, layout,
        manifest::{OCI_INDEX, OCI_MANIFEST},
    },
    layer::LayerDescriptor,
    push,
    registry::{PinnedReference, Repository, reference},
    request::{BuildRequest, Output},
    resolve::{LayerRef, Origin},
    solve::{Solved, Solver, blocking},
};

/// What writing the outputs did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    pub pushed_bytes: u64,
}

/// The request's tags as references. A tag may not hold a digest.
pub fn names(request: &BuildRequest) -> Result<Vec<Reference>, Error> {
    let pushed = request.outputs.iter().flat_map(|output| match output {
        Output::Registry { names } => names.as_slice(),
        _ => &[],
    });
    let mut seen = BTreeSet::new();
    let all: Vec<&String> = request.tags.iter().chain(pushed).filter(|n| seen.insert(*n)).collect();
    let pushes = request.outputs.iter().any(|output| matches!(output, Output::Registry { .. }));
    if pushes && all.is_empty() {
        let title = "a push needs a name";
        return Err(Error::new(Class::Usage, title).hint("name the image with -t or name=…"));
    }
    all.into_iter().map(|name| parse_name(name)).collect()
}

fn parse_name(name: &str) -> Result<Reference, Error> {
    let parsed = reference::parse(name).map_err(|e| Error::from_cause(Class::Usage, e))?;
    match parsed.digest() {
        Some(_) => Err(Error::new(Class::Usage, format!("tag {name:?} must not hold a digest"))),
        None => Ok(parsed),
    }
}

/// The names of each output that pushes.
pub fn pushes(request: &BuildRequest, names: &[Reference]) -> Result<Vec<Vec<Reference>>, Error> {
    let own = request.outputs.iter().filter_map(|output| match output {
        Output::Registry { names } => Some(names),
        _ => None,
    });
    let group = |own: &Vec<String>| match own.is_empty() {
        true => Ok(names.to_vec()),
        false => own.iter().map(|name| parse_name(name)).collect(),
    };
    own.map(group).collect()
}

/// Writes the artifact to every output: files first, because a push is seen by others.
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
            Output::OciDirectory(path) => export(built, artifact, names, path, false).await?,
            Output::OciTar(path) => export(built, artifact, names, path, true).await?,
            Output::Registry { .. } => pushes = true,
        }
    }
    let pushed_bytes = match (pushes, artifact.index()) {
        (false, _) => 0,
        (true, None) => push_image(first).await?,
        (true, Some(index)) => push_index(built, index, &self::pushes(request, names)?).await?,
    };
    Ok(Written { pushed_bytes })
}

async fn export(
    built: &[Built],
    artifact: &Artifact,
    names: &[Reference],
    path: &Path,
    tar: bool,
) -> Result<(), Error> {
    let Some(Built { solver, .. }) = built.first() else { return Ok(()) };
    let vertex = solver.vertex(VertexKind::Export, format!("exporting to {}", path.display()));
    for Built { solver, solved } in built {
        try_join_all(solved.layers.iter().map(|layer| solver.layers().blob(layer))).await?;
    }
    let (store, artifact, path) = (solver.store().clone(), artifact.clone(), path.to_owned());
    let names: Vec<(String, String)> = names
        .iter()
        .map(|name| (name.to_string(), name.tag().unwrap_or("latest").to_owned()))
        .collect();
    let mtime = solver.request().source_date_epoch.unwrap_or(0).max(0) as u64;
    let done = blocking(move || match tar {
        false => layout::write_directory(&store, &artifact, &names, &path),
        true => write_tar(&store, &artifact, &names, mtime, &path),
    });
    let result = done.await?.map_err(|error| Error::from_cause(Class::Host, error));
    vertex.end(result)
}

/// Writes the tar beside its place and renames it, or to standard output for `-`.
fn write_tar(
    store: &crate::store::Store,
    artifact: &Artifact,
    names: &[(String, String)],
    mtime: u64,
    path: &Path,
) -> Result<(), layout::LayoutError> {
    if path == Path::new("-") {
        let mut out = std::io::stdout().lock();
        return layout::write_tar(store, artifact, names, mtime, &mut out);
    }
    let failed = |source| layout::LayoutError::Write { path: path.to_owned(), source };
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(failed)?;
    let file = tempfile::Builder::new().prefix(".bareboat-").tempfile_in(parent).map_err(failed)?;
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    layout::write_tar(store, artifact, names, mtime, &mut out)?;
    out.flush().map_err(failed)?;
    let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
    set_file_mode(file.path()).map_err(failed)?;
    file.persist(path).map(drop).map_err(|error| failed(error.error))
}

fn set_file_mode(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

/// Ends the uploads that began with the build's first layer.
async fn push_image(Built { solver, solved }: &Built) -> Result<u64, Error> {
    let reports = solver.uploads().finish(&push_of(solver, solved).await?).await?;
    Ok(reports.iter().map(|report| report.uploaded_bytes).sum())
}

/// Pushes each image by its digest, and then the index under the names.
async fn push_index(
    built: &[Built],
    (bytes, digest): (&[u8], Digest),
    groups: &[Vec<Reference>],
) -> Result<u64, Error> {
    let mut names: Vec<&Reference> = groups.iter().flatten().collect();
    if let Some(Built { solver, .. }) = built.first() {
        let kept = push::kept_tags(solver.client(), &names, digest).await;
        let kept = kept.map_err(push::PushError::into_error)?;
        names.retain(|name| !kept.contains(&name.whole()));
        let report = push::PushReport { skipped: kept, ..push::PushReport::default() };
        for warning in report.warnings() {
            solver.services().reporter.report(Event::Warning(warning));
        }
    }
    let repositories: BTreeSet<Repository> =
        names.iter().map(|name| Repository::from(*name)).collect();
    let mut uploaded = 0;
    for Built { solver, solved } in built {
        let digest = solved.image.digest;
        let pinned = |repository: &Repository| {
            PinnedReference { repository: repository.clone(), digest }.to_reference()
        };
        let destinations: Vec<Reference> = repositories.iter().map(pinned).collect();
        let title = format!("pushing {} for {}", digest.short(), solved.image.platform);
        let vertex = solver.vertex(VertexKind::Push, title);
        let told = vertex.clone();
        let progress: push::PushProgress = Arc::new(move |repository, blob, done, total| {
            told.report_progress(format!("{} to {repository}", blob.short()), done, total);
        });
        let image = push_of(solver, solved).await?;
        let pushed = push::push(solver.client(), &image, &destinations, progress).await;
        uploaded += vertex.end(pushed.map_err(push::PushError::into_error))?.uploaded_bytes;
    }
    let Some(Built { solver, .. }) = built.first() else { return Ok(uploaded) };
    for name in names {
        let vertex = solver.vertex(VertexKind::Push, format!("pushing {name}"));
        let tag = name.tag().unwrap_or("latest");
        let bytes = bytes::Bytes::copy_from_slice(bytes);
        let put = solver.client().put_manifest(&name.into(), tag, OCI_INDEX, bytes).await;
        let put = put.map_err(|error| error.into_error(Class::Push));
        if vertex.end(put)? != digest {
            let title = format!("{name}: the registry took the index under another digest");
            return Err(Error::new(Class::Push, title));
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
        manifest_media_type: OCI_MANIFEST.into(),
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
