//! Inherited layers in the compression that was asked for (`force-compression`).

use futures_util::future::try_join_all;

use crate::{
    cache::KeyBuilder,
    error::{Class, Error},
    event::VertexKind,
    layer::{LayerDescriptor, LayerError, compressor_name, has_compression, recompress},
    resolve::LayerRef,
};

use super::{
    Solver,
    layers::{blocking, host},
};

/// What recompressed layers are remembered in.
const ROOM: &str = "records";

impl Solver {
    /// The layers, each of another compression replaced by one of the same tar.
    pub(super) async fn recompressed(&self, layers: Vec<LayerRef>) -> Result<Vec<LayerRef>, Error> {
        try_join_all(layers.into_iter().map(|layer| self.recompressed_one(layer))).await
    }

    async fn recompressed_one(&self, layer: LayerRef) -> Result<LayerRef, Error> {
        let options = self.write_options();
        if has_compression(&layer.descriptor.media_type, options.compression) {
            return Ok(layer);
        }
        let name = KeyBuilder::new("recompressed")
            .bytes("diff-id", layer.diff_id.as_bytes())
            .bytes("compressor", compressor_name(options.compression).as_bytes())
            .finish()
            .to_string();
        if let Some(descriptor) = self.remembered(&name) {
            return Ok(LayerRef { descriptor, origin: None, ..layer });
        }
        let what = format!("compressing layer {} anew", layer.descriptor.digest.short());
        let vertex = self.vertex(VertexKind::Export, what);
        let descriptor = vertex.end(self.write_recompressed(&layer).await)?;
        let bytes = serde_json::to_vec(&descriptor).map_err(host)?;
        self.store().put_document(ROOM, &name, &bytes).map_err(host)?;
        Ok(LayerRef { descriptor, origin: None, ..layer })
    }

    /// What an earlier build wrote, where its blob is still there.
    fn remembered(&self, name: &str) -> Option<LayerDescriptor> {
        let bytes = self.store().read_document(ROOM, name)?;
        let descriptor: LayerDescriptor = serde_json::from_slice(&bytes).ok()?;
        self.store().has_blob(&descriptor.digest, descriptor.size).then_some(descriptor)
    }

    async fn write_recompressed(&self, layer: &LayerRef) -> Result<LayerDescriptor, Error> {
        self.layers().blob(layer).await?;
        let (store, options, layer) = (self.store().clone(), self.write_options(), layer.clone());
        let written = blocking(move || {
            let LayerDescriptor { media_type, digest, size } = &layer.descriptor;
            let mut input = store.open_blob(digest, *size).map_err(host)?;
            let mut blob = store.unhashed_blob_writer().map_err(host)?;
            let written = recompress(&mut input, media_type, &layer.diff_id, &options, &mut blob);
            let written = written.map_err(|error| failed(&layer, error))?;
            blob.commit_as(&written.digest).map_err(host)?;
            Ok(written)
        });
        written.await?
    }
}

fn failed(layer: &LayerRef, error: LayerError) -> Error {
    let class = match error {
        LayerError::Write(_) | LayerError::Compress(_) => Class::Host,
        _ => Class::Source,
    };
    Error::from_cause(class, error).context(format!("layer {}", layer.descriptor.digest))
}
