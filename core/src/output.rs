//! Outputs: OCI layouts and registries.

use std::{collections::BTreeSet, io::Write, path::Path};

use futures_util::future::try_join_all;
use oci_distribution::Reference;

use crate::{
    error::{Class, Error},
    event::VertexKind,
    image::{layout, manifest::OCI_MANIFEST},
    layer::LayerDescriptor,
    push,
    registry::reference,
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

/// Writes the image to every output: files first, because a push is seen by others.
pub async fn write(
    request: &BuildRequest,
    names: &[Reference],
    solver: &Solver,
    solved: &Solved,
) -> Result<Written, Error> {
    let mut pushes = false;
    for output in &request.outputs {
        match output {
            Output::OciDirectory(path) => export(solver, solved, names, path, false).await?,
            Output::OciTar(path) => export(solver, solved, names, path, true).await?,
            Output::Registry { .. } => pushes = true,
        }
    }
    let pushed_bytes = if pushes { push(solver, solved).await? } else { 0 };
    Ok(Written { pushed_bytes })
}

async fn export(
    solver: &Solver,
    solved: &Solved,
    names: &[Reference],
    path: &Path,
    tar: bool,
) -> Result<(), Error> {
    let vertex = solver.vertex(VertexKind::Export, format!("exporting to {}", path.display()));
    try_join_all(solved.layers.iter().map(|layer| solver.layers().blob(layer))).await?;
    let (store, image, path) = (solver.store().clone(), solved.image.clone(), path.to_owned());
    let names: Vec<(String, String)> = names
        .iter()
        .map(|name| (name.to_string(), name.tag().unwrap_or("latest").to_owned()))
        .collect();
    let mtime = solver.request().source_date_epoch.unwrap_or(0).max(0) as u64;
    let done = blocking(move || match tar {
        false => layout::write_directory(&store, &image, &names, &path),
        true => write_tar(&store, &image, &names, mtime, &path),
    });
    let result = done.await?.map_err(|error| Error::from_cause(Class::Host, error));
    vertex.end(result)
}

/// Writes the tar beside its place and renames it, or to standard output for `-`.
fn write_tar(
    store: &crate::store::Store,
    image: &crate::image::Image,
    names: &[(String, String)],
    mtime: u64,
    path: &Path,
) -> Result<(), layout::LayoutError> {
    if path == Path::new("-") {
        let mut out = std::io::stdout().lock();
        return layout::write_tar(store, image, names, mtime, &mut out);
    }
    let failed = |source| layout::LayoutError::Write { path: path.to_owned(), source };
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(failed)?;
    let file = tempfile::Builder::new().prefix(".bareboat-").tempfile_in(parent).map_err(failed)?;
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    layout::write_tar(store, image, names, mtime, &mut out)?;
    out.flush().map_err(failed)?;
    let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
    set_file_mode(file.path()).map_err(failed)?;
    file.persist(path).map(drop).map_err(|error| failed(error.error))
}

fn set_file_mode(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

async fn push(solver: &Solver, solved: &Solved) -> Result<u64, Error> {
    let image = &solved.image;
    let mut layers = Vec::new();
    for (layer, descriptor) in solved.layers.iter().zip(&image.layers) {
        layers.push(push_layer(solver, layer, descriptor).await?);
    }
    let push = push::PushImage {
        manifest: image.manifest.clone().into(),
        manifest_media_type: OCI_MANIFEST.into(),
        digest: image.digest,
        config: (image.config_digest, image.config.clone().into()),
        layers,
    };
    let reports = solver.uploads().finish(&push).await?;
    Ok(reports.iter().map(|report| report.uploaded_bytes).sum())
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
