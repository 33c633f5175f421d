//! `--output`, `--push` and `-t`: where the image goes (BuildKit's exporter keys).

use std::path::{Path, PathBuf};

use bareboat_core::{
    Class, Error,
    image::annotations::{Annotation, Annotations},
    request::{Compression, ImageOptions, Output, PlatformSplit},
};

use super::{annotations, csv};
use crate::flags::Environment;

const FLAG: &str = "output";
const GZIP_LEVEL: u8 = 6;
const ZSTD_LEVEL: u8 = 3;

/// All that the output flags say together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outputs {
    pub outputs: Vec<Output>,
    pub compression: Compression,
    pub image: ImageOptions,
    /// `-t`, and the names of an image output that is not pushed.
    pub tags: Vec<String>,
}

impl Outputs {
    /// A tar goes to standard output, so nothing else may.
    pub fn take_stdout(&self) -> bool {
        self.outputs.iter().any(is_stdout)
    }
}

fn is_stdout(output: &Output) -> bool {
    match output {
        Output::OciTar(path) | Output::DockerTar(path) | Output::FilesTar { path, .. } => {
            path == Path::new("-")
        }
        _ => false,
    }
}

/// One `-o`.
#[derive(Debug)]
struct Entry {
    /// `None`: an image that is only named.
    output: Option<Output>,
    /// Of an image that is not pushed.
    tags: Vec<String>,
    shape: Shape,
}

/// What one `-o` says of the image itself. Layers and documents are written once, so all that say something must agree.
#[derive(Debug, Default)]
struct Shape {
    compression: Option<Compression>,
    force_compression: Option<bool>,
    docker_media_types: Option<bool>,
    annotations: Option<Vec<Annotation>>,
}

/// Combines all `-o`, `--push`, `-t` and `--annotation`. As with buildx, `--push` pushes every image output, and makes one
/// where none is.
pub fn outputs(
    values: &[String],
    push: bool,
    tags: Vec<String>,
    annotations: Vec<Annotation>,
    environment: &Environment,
) -> Result<Outputs, Error> {
    if tags.iter().any(|tag| tag.trim().is_empty()) {
        return Err(usage("--tag: an empty name"));
    }
    let mut entries = Vec::new();
    for value in values {
        entries.push(entry(value, push)?);
    }
    let is_push = |entry: &Entry| matches!(entry.output, Some(Output::Registry { .. }));
    if push && !entries.iter().any(is_push) {
        let output = Output::Registry { names: Vec::new(), by_digest: false, canonical: false };
        entries.push(Entry { output: Some(output), tags: Vec::new(), shape: Shape::default() });
    }
    let mut all = Outputs { tags, ..Outputs::default() };
    all.shape(&entries, annotations)?;
    for entry in entries {
        all.add(entry)?;
    }
    all.check(environment)?;
    Ok(all)
}

impl Outputs {
    fn add(&mut self, entry: Entry) -> Result<(), Error> {
        self.tags.extend(entry.tags);
        let Some(output) = entry.output else { return Ok(()) };
        if self.outputs.contains(&output) {
            return Err(usage("--output: the same output twice"));
        }
        self.outputs.push(output);
        Ok(())
    }

    /// How the image is written: what the outputs say, where they agree.
    fn shape(&mut self, entries: &[Entry], mut given: Vec<Annotation>) -> Result<(), Error> {
        let shapes = || entries.iter().map(|entry| &entry.shape);
        self.compression =
            agreed("compression", shapes().map(|shape| shape.compression))?.unwrap_or_default();
        let force = agreed("force-compression", shapes().map(|shape| shape.force_compression))?;
        let docker = agreed("media types", shapes().map(|shape| shape.docker_media_types))?;
        let own = agreed("annotations", shapes().map(|shape| shape.annotations.clone()))?;
        given.extend(own.unwrap_or_default());
        self.image = ImageOptions {
            force_compression: force.unwrap_or(false),
            docker_media_types: docker.unwrap_or(false),
            annotations: Annotations(given),
        };
        self.check_docker()
    }

    fn check_docker(&self) -> Result<(), Error> {
        if !self.image.docker_media_types {
            return Ok(());
        }
        if matches!(self.compression, Compression::Zstd { .. }) {
            return Err(usage("--output: compression=zstd needs OCI media types")
                .hint("leave oci-mediatypes=false out"));
        }
        if !self.image.annotations.is_empty() {
            return Err(usage("--output: annotations need OCI media types")
                .hint("leave oci-mediatypes=false out, or set labels instead"));
        }
        Ok(())
    }

    fn check(&self, environment: &Environment) -> Result<(), Error> {
        let nameless =
            |output: &Output| matches!(output, Output::Registry { names, .. } if names.is_empty());
        if self.tags.is_empty() && self.outputs.iter().any(nameless) {
            return Err(usage("a push needs a name")
                .hint("name the image with -t REGISTRY/NAME:TAG, or with name= in --output"));
        }
        if self.outputs.iter().filter(|output| is_stdout(output)).count() > 1 {
            return Err(usage("--output: two outputs want standard output"));
        }
        if self.take_stdout() && environment.stdout_is_terminal {
            return Err(usage("--output: a tar is not written to a terminal")
                .hint("add dest=PATH, or redirect standard output"));
        }
        Ok(())
    }
}

/// What all that say something say.
fn agreed<T: PartialEq>(
    what: &str,
    said: impl Iterator<Item = Option<T>>,
) -> Result<Option<T>, Error> {
    let mut said = said.flatten();
    let first = said.next();
    match first.is_some() && said.any(|other| Some(&other) != first.as_ref()) {
        true => Err(usage(&format!("--output: two outputs want different {what}"))
            .hint("one build makes one image; build twice, the second from the cache")),
        false => Ok(first),
    }
}

fn entry(text: &str, push: bool) -> Result<Entry, Error> {
    let fields = csv::fields(FLAG, text)?;
    if fields.len() == 1 && fields[0] == text && !text.starts_with("type=") {
        return bare(text);
    }
    let mut keys = Keys(csv::pairs(FLAG, text)?);
    let kind =
        keys.take("type").ok_or_else(|| usage(&format!("--output: {text:?} has no type=")))?;
    let (output, tags) = destination(&kind, &mut keys, push)?;
    let is_image = !matches!(output, Some(Output::FilesTar { .. } | Output::FilesDirectory { .. }));
    let shape = if is_image { shape(&mut keys)? } else { Shape::default() };
    match keys.0.first() {
        Some((key, _)) => {
            let hint = refused_key(key, &kind);
            let title = format!("--output type={kind}: the key {key} is not supported");
            Err(usage(&title).maybe_hint(hint.map(str::to_owned)))
        }
        None => Ok(Entry { output, tags, shape }),
    }
}

/// `-o PATH` is type=local, `-o -` is type=tar, as with buildx.
fn bare(text: &str) -> Result<Entry, Error> {
    let split = PlatformSplit::Auto;
    let output = match text {
        "" => return Err(usage("--output: an empty value")),
        "-" => Output::FilesTar { path: "-".into(), split },
        _ => Output::FilesDirectory { path: text.into(), split, delete: false },
    };
    Ok(Entry { output: Some(output), tags: Vec::new(), shape: Shape::default() })
}

/// Why a key that buildx has is refused.
fn refused_key(key: &str, kind: &str) -> Option<&'static str> {
    match key {
        "unpack" | "store" | "dangling-name-prefix" => {
            Some("there is no image store of a daemon: push the image, or write it to a file")
        }
        "context" => Some("there is no daemon to load the image into: name a file with dest="),
        "push" | "name" if kind != "image" => Some("push and name are keys of type=image"),
        _ => None,
    }
}

type OutputAndTags = (Option<Output>, Vec<String>);

fn destination(kind: &str, keys: &mut Keys, push: bool) -> Result<OutputAndTags, Error> {
    let output = match kind {
        "oci" => archive(keys, kind, Output::OciTar, Output::OciDirectory)?,
        "docker" => docker(keys)?,
        "tar" => Output::FilesTar { path: dest(keys).into(), split: split(keys)? },
        "local" => local(keys)?,
        "image" => {
            let push = keys.boolean("push")?.unwrap_or(false) || push;
            return image(keys, push);
        }
        "registry" => match keys.boolean("push")? {
            Some(false) => {
                return Err(usage("--output: type=registry with push=false is a contradiction"));
            }
            _ => return image(keys, true),
        },
        _ => {
            return Err(usage(&format!("--output: type={kind} is not supported"))
                .hint("the types are oci, docker, tar, local, image and registry"));
        }
    };
    Ok((Some(output), Vec::new()))
}

/// Where a tar goes; standard output where nothing is said.
fn dest(keys: &mut Keys) -> String {
    keys.take("dest").filter(|path| !path.is_empty()).unwrap_or_else(|| "-".to_owned())
}

fn archive(
    keys: &mut Keys,
    kind: &str,
    tar: fn(PathBuf) -> Output,
    directory: fn(PathBuf) -> Output,
) -> Result<Output, Error> {
    let path = dest(keys);
    let is_tar = keys.boolean("tar")?.unwrap_or(true);
    if !is_tar && path == "-" {
        return Err(usage(&format!(
            "--output: type={kind},tar=false is a directory and needs dest=PATH"
        )));
    }
    Ok(if is_tar { tar(path.into()) } else { directory(path.into()) })
}

/// Without `dest`, buildx loads the image into the daemon.
fn docker(keys: &mut Keys) -> Result<Output, Error> {
    if !keys.0.iter().any(|(key, value)| key == "dest" && !value.is_empty()) {
        return Err(usage("--output: type=docker needs dest=PATH, for there is no daemon").hint(
            "dest=- is standard output: bareboat build -o type=docker,dest=- . | docker load",
        ));
    }
    archive(keys, "docker", Output::DockerTar, Output::DockerDirectory)
}

fn local(keys: &mut Keys) -> Result<Output, Error> {
    let path = dest(keys);
    if path == "-" {
        return Err(usage("--output: type=local is a directory and needs dest=PATH")
            .hint("type=tar goes to standard output"));
    }
    let delete = match keys.take("mode").as_deref() {
        None | Some("copy") => false,
        Some("delete") => true,
        Some(mode) => {
            return Err(usage(&format!("--output type=local: mode={mode} is not supported")).hint(
                "copy merges into the directory, delete also deletes what the image has not",
            ));
        }
    };
    Ok(Output::FilesDirectory { path: path.into(), split: split(keys)?, delete })
}

fn split(keys: &mut Keys) -> Result<PlatformSplit, Error> {
    Ok(match keys.boolean("platform-split")? {
        None => PlatformSplit::Auto,
        Some(true) => PlatformSplit::Always,
        Some(false) => PlatformSplit::Never,
    })
}

fn image(keys: &mut Keys, push: bool) -> Result<OutputAndTags, Error> {
    let names = keys.names()?;
    if !push {
        // They say how a push is named, and would be ignored here.
        return Ok((None, names));
    }
    let by_digest = keys.boolean("push-by-digest")?.unwrap_or(false);
    let canonical = keys.boolean("name-canonical")?.unwrap_or(false);
    Ok((Some(Output::Registry { names, by_digest, canonical }), Vec::new()))
}

fn shape(keys: &mut Keys) -> Result<Shape, Error> {
    let shape = Shape {
        compression: compression(keys)?,
        force_compression: keys.boolean("force-compression")?,
        docker_media_types: keys.boolean("oci-mediatypes")?.map(|oci| !oci),
        annotations: keys.annotations()?,
    };
    keys.only("rewrite-timestamp", true, "SOURCE_DATE_EPOCH always caps the times in new layers")?;
    Ok(shape)
}

fn compression(keys: &mut Keys) -> Result<Option<Compression>, Error> {
    let name = keys.take("compression");
    let level = keys.take("compression-level");
    let members = keys.boolean("gzip-members")?;
    if name.is_none() && level.is_none() && members.is_none() {
        return Ok(None);
    }
    let name = name.unwrap_or_else(|| "gzip".to_owned());
    if members == Some(true) && name != "gzip" {
        return Err(usage(&format!(
            "--output: gzip-members has no meaning with compression={name}"
        )));
    }
    Ok(Some(match name.as_str() {
        "gzip" => Compression::Gzip {
            level: level_of(level, GZIP_LEVEL, 9)?,
            members: members.unwrap_or(false),
        },
        "zstd" => Compression::Zstd { level: level_of(level, ZSTD_LEVEL, 22)? },
        "uncompressed" if level.is_none() => Compression::Uncompressed,
        "uncompressed" => return Err(usage("--output: compression=uncompressed has no level")),
        _ => {
            return Err(usage(&format!("--output: compression={name} is not supported"))
                .hint("gzip, zstd or uncompressed"));
        }
    }))
}

fn level_of(level: Option<String>, default: u8, max: u8) -> Result<u8, Error> {
    let Some(level) = level else { return Ok(default) };
    let number = level.parse().ok().filter(|number| (1..=max).contains(number));
    number.ok_or_else(|| {
        usage(&format!("--output: compression-level={level} is not a number from 1 to {max}"))
    })
}

/// The keys of one `-o` that nobody has taken yet.
struct Keys(Vec<(String, String)>);

impl Keys {
    fn take(&mut self, key: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == key)?;
        Some(self.0.remove(at).1)
    }

    fn boolean(&mut self, key: &str) -> Result<Option<bool>, Error> {
        self.take(key).map(|value| csv::boolean(FLAG, key, &value)).transpose()
    }

    fn names(&mut self) -> Result<Vec<String>, Error> {
        let Some(names) = self.take("name") else { return Ok(Vec::new()) };
        let names: Vec<_> = names.split(',').map(|name| name.trim().to_owned()).collect();
        if names.iter().any(String::is_empty) {
            return Err(usage("--output: name= has an empty name"));
        }
        Ok(names)
    }

    /// Takes `annotation.KEY`, `annotation-LEVEL.KEY` and `annotation-LEVEL[PLATFORM].KEY`.
    fn annotations(&mut self) -> Result<Option<Vec<Annotation>>, Error> {
        let (own, rest) =
            std::mem::take(&mut self.0).into_iter().partition(|(key, _)| annotations::is_key(key));
        self.0 = rest;
        let own: Vec<(String, String)> = own;
        let own: Result<Vec<_>, _> =
            own.iter().map(|(key, value)| annotations::of_key(key, value)).collect();
        own.map(|own| Some(own).filter(|own| !own.is_empty()))
    }

    /// Takes a switch that has only one setting here.
    fn only(&mut self, key: &str, setting: bool, why: &str) -> Result<(), Error> {
        match self.boolean(key)? {
            Some(value) if value != setting => {
                Err(usage(&format!("--output: {key}={value} is not supported")).hint(why))
            }
            _ => Ok(()),
        }
    }
}

fn usage(title: &str) -> Error {
    Error::new(Class::Usage, title)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(values: &[&str], push: bool, tags: &[&str]) -> Result<Outputs, Error> {
        let owned =
            |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
        outputs(&owned(values), push, owned(tags), Vec::new(), &Environment::default())
    }

    fn one(value: &str) -> Output {
        parsed(&[value], false, &["t"]).unwrap().outputs.remove(0)
    }

    #[test]
    fn buildx_forms() {
        assert_eq!(one("type=oci,dest=d,tar=false"), Output::OciDirectory("d".into()));
        assert_eq!(one("type=oci,dest=a.tar"), Output::OciTar("a.tar".into()));
        assert_eq!(one("type=oci"), Output::OciTar("-".into()));
        assert_eq!(one("dest=-,type=oci"), Output::OciTar("-".into()));
        assert_eq!(one("type=registry"), registry(&[]));
        assert_eq!(one(r#"type=image,"name=a,b:1",push=true"#), registry(&["a", "b:1"]));
        let split = PlatformSplit::Auto;
        let local = Output::FilesDirectory { path: "out".into(), split, delete: false };
        assert_eq!(one("out"), local);
        assert_eq!(one("type=local,dest=out"), local);
        assert_eq!(one("-"), Output::FilesTar { path: "-".into(), split });
        assert_eq!(one("type=tar"), Output::FilesTar { path: "-".into(), split });
        assert_eq!(
            one("type=tar,dest=x,platform-split=false"),
            Output::FilesTar { path: "x".into(), split: PlatformSplit::Never }
        );
        assert_eq!(
            one("type=local,dest=x,mode=delete,platform-split=true"),
            Output::FilesDirectory { path: "x".into(), split: PlatformSplit::Always, delete: true }
        );
        assert_eq!(one("type=docker,dest=-"), Output::DockerTar("-".into()));
        assert_eq!(one("type=docker,dest=d,tar=false"), Output::DockerDirectory("d".into()));
        assert_eq!(
            one("type=image,name=a,push-by-digest=true,name-canonical=true,push=true"),
            Output::Registry { names: vec!["a".into()], by_digest: true, canonical: true }
        );
    }

    fn registry(names: &[&str]) -> Output {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Output::Registry { names, by_digest: false, canonical: false }
    }

    #[test]
    fn image_keys() {
        let image = |values: &[&str]| parsed(values, false, &["t"]).unwrap().image;
        assert_eq!(image(&["type=registry"]), ImageOptions::default());
        let docker = image(&["type=registry,oci-mediatypes=false,force-compression=true"]);
        assert!(docker.docker_media_types && docker.force_compression);
        let annotated = image(&[
            "type=registry,annotation.a=1,annotation-index.b=2,annotation-manifest[linux/arm64].C=3",
            "type=oci,dest=x",
        ]);
        let found: Vec<_> = annotated.annotations.0.iter().map(|a| a.key.as_str()).collect();
        assert_eq!(found, ["a", "b", "C"]);
        assert!(
            parsed(&["type=oci,annotation.a=1", "type=registry,annotation.a=2"], false, &["t"])
                .is_err()
        );
        for bad in [
            "type=registry,oci-mediatypes=false,compression=zstd",
            "type=registry,oci-mediatypes=false,annotation.a=1",
            "type=registry,annotation-nowhere.a=1",
            "type=registry,annotation.=1",
            "type=registry,annotation-manifest[neverland].a=1",
            "type=tar,annotation.a=1",
        ] {
            let error = parsed(&[bad], false, &["t"]).unwrap_err();
            assert_eq!(error.class(), Class::Usage, "{bad}");
        }
    }

    #[test]
    fn push_turns_image_outputs_into_pushes_and_makes_one_where_none_is() {
        let outputs = parsed(&["type=image,name=a"], true, &[]).unwrap().outputs;
        assert_eq!(outputs, [registry(&["a"])]);
        assert_eq!(parsed(&[], true, &["t"]).unwrap().outputs, [registry(&[])]);
        let both = parsed(&["type=oci,dest=x"], true, &["t"]).unwrap().outputs;
        assert_eq!(both.len(), 2);
        assert_eq!(parsed(&["type=registry"], true, &["t"]).unwrap().outputs.len(), 1);
    }

    #[test]
    fn an_image_that_is_not_pushed_is_only_named() {
        let all = parsed(&["type=image,name=a,push=false"], false, &["t"]).unwrap();
        assert!(all.outputs.is_empty());
        assert_eq!(all.tags, ["t", "a"]);
    }

    #[test]
    fn compression_keys() {
        let compression = |value: &str| parsed(&[value], false, &["t"]).unwrap().compression;
        assert_eq!(compression("type=registry"), Compression::default());
        assert_eq!(compression("type=registry,compression=zstd"), Compression::Zstd { level: 3 });
        assert_eq!(
            compression("type=registry,compression-level=9,gzip-members=true"),
            Compression::Gzip { level: 9, members: true }
        );
        assert_eq!(
            compression("type=oci,dest=x,compression=uncompressed"),
            Compression::Uncompressed
        );
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (value, word) in [
            ("", "empty"),
            ("dest=x,name=y", "no type="),
            ("type=docker", "dest=PATH"),
            ("type=docker,dest=x,context=y", "context"),
            ("type=local", "dest=PATH"),
            ("type=local,dest=x,mode=move", "mode=move"),
            ("type=local,dest=x,compression=gzip", "compression"),
            ("type=tar,tar=false", "tar"),
            ("type=cacheonly", "cacheonly"),
            ("type=image,unpack=true,push=true,name=a", "unpack"),
            ("type=image,store=true,push=true,name=a", "store"),
            ("type=image,dangling-name-prefix=x,push=true,name=a", "dangling-name-prefix"),
            ("type=image,push-by-digest=true,name=a", "push-by-digest"),
            ("type=image,name-canonical=true,name=a", "name-canonical"),
            ("type=oci,tar=false", "dest=PATH"),
            ("type=oci,dest=x,tar=perhaps", "perhaps"),
            ("type=oci,dest=x,push=true", "push"),
            ("type=registry,push=false", "contradiction"),
            ("type=registry,dest=x", "dest"),
            ("type=image,name=,push=true", "empty name"),
            ("type=registry,compression=estargz", "estargz"),
            ("type=registry,compression-level=10", "10"),
            ("type=registry,compression=zstd,compression-level=0", "0"),
            ("type=registry,compression=zstd,gzip-members=true", "gzip-members"),
            ("type=registry,compression=uncompressed,compression-level=1", "level"),
            ("type=registry,rewrite-timestamp=false", "rewrite-timestamp"),
        ] {
            let error = parsed(&[value], false, &["t"]).unwrap_err();
            assert_eq!(error.class(), Class::Usage);
            assert!(error.to_string().contains(word), "{value}: {error}");
        }
    }

    #[test]
    fn settings_that_bareboat_always_has_are_taken() {
        one("type=registry,oci-mediatypes=true,force-compression=false,rewrite-timestamp=true");
    }

    #[test]
    fn combinations_that_make_no_sense_are_refused() {
        assert!(parsed(&[], true, &[]).unwrap_err().title().contains("needs a name"));
        assert!(parsed(&[], false, &[""]).is_err());
        assert!(parsed(&["type=oci", "type=oci,dest=-"], false, &[]).is_err());
        assert!(parsed(&["type=oci,dest=a", "type=oci,dest=a"], false, &[]).is_err());
        let zstd = "type=oci,dest=a,compression=zstd";
        assert!(parsed(&[zstd, "type=registry,compression=gzip"], false, &["t"]).is_err());
        assert!(parsed(&[zstd, "type=registry"], false, &["t"]).is_ok());
    }

    #[test]
    fn a_terminal_gets_no_tar() {
        let environment = Environment { stdout_is_terminal: true, ..Environment::default() };
        assert!(outputs(&["type=oci".into()], false, vec![], vec![], &environment).is_err());
    }
}
