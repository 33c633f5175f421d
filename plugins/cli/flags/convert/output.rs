//! `--output`, `--push` and `-t`: where the image goes (BuildKit's exporter keys).

use std::path::PathBuf;

use bareboat_core::{
    Class, Error,
    request::{Compression, Output},
};

use super::csv;
use crate::flags::Environment;

const FLAG: &str = "output";
const GZIP_LEVEL: u8 = 6;
const ZSTD_LEVEL: u8 = 3;

/// All that the output flags say together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outputs {
    pub outputs: Vec<Output>,
    pub compression: Compression,
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
    matches!(output, Output::OciTar(path) if path.as_os_str() == "-")
}

/// Where one `-o` goes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Destination {
    Oci { path: PathBuf, tar: bool },
    Image { names: Vec<String>, push: bool },
}

/// One `-o`.
#[derive(Debug)]
struct Entry {
    destination: Destination,
    compression: Option<Compression>,
}

/// Combines all `-o`, `--push` and `-t`. As with buildx, `--push` pushes every image output, and makes one where none is.
pub fn outputs(
    values: &[String],
    push: bool,
    tags: Vec<String>,
    environment: &Environment,
) -> Result<Outputs, Error> {
    if tags.iter().any(|tag| tag.trim().is_empty()) {
        return Err(usage("--tag: an empty name"));
    }
    let mut entries = values.iter().map(|value| entry(value)).collect::<Result<Vec<_>, _>>()?;
    if push {
        push_images(&mut entries);
    }
    let compression = one_compression(&entries)?;
    let mut all = Outputs { outputs: Vec::new(), compression, tags };
    for entry in entries {
        all.add(entry.destination)?;
    }
    all.check(environment)?;
    Ok(all)
}

fn push_images(entries: &mut Vec<Entry>) {
    let mut any = false;
    for entry in entries.iter_mut() {
        if let Destination::Image { push, .. } = &mut entry.destination {
            (*push, any) = (true, true);
        }
    }
    if !any {
        let destination = Destination::Image { names: Vec::new(), push: true };
        entries.push(Entry { destination, compression: None });
    }
}

impl Outputs {
    fn add(&mut self, destination: Destination) -> Result<(), Error> {
        let output = match destination {
            Destination::Oci { path, tar: true } => Output::OciTar(path),
            Destination::Oci { path, tar: false } => Output::OciDirectory(path),
            Destination::Image { names, push: true } => Output::Registry { names },
            Destination::Image { names, push: false } => {
                self.tags.extend(names);
                return Ok(());
            }
        };
        if self.outputs.contains(&output) {
            return Err(usage("--output: the same output twice"));
        }
        self.outputs.push(output);
        Ok(())
    }

    fn check(&self, environment: &Environment) -> Result<(), Error> {
        let nameless =
            |output: &Output| matches!(output, Output::Registry { names } if names.is_empty());
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

/// Layers are compressed once, so all outputs that say how must agree.
fn one_compression(entries: &[Entry]) -> Result<Compression, Error> {
    let mut said = entries.iter().filter_map(|entry| entry.compression);
    let first = said.next();
    match first {
        Some(first) if said.any(|other| other != first) => {
            Err(usage("--output: two outputs want different compression")
                .hint("one build makes one image; build twice, the second from the cache"))
        }
        first => Ok(first.unwrap_or_default()),
    }
}

fn entry(text: &str) -> Result<Entry, Error> {
    let fields = csv::fields(FLAG, text)?;
    if fields.len() == 1 && fields[0] == text && !text.starts_with("type=") {
        return Err(match text {
            "" => usage("--output: an empty value"),
            "-" => unsupported("tar"),
            _ => unsupported("local").context(format!("-o {text}")),
        });
    }
    let mut keys = Keys(csv::pairs(FLAG, text)?);
    let kind =
        keys.take("type").ok_or_else(|| usage(&format!("--output: {text:?} has no type=")))?;
    let destination = destination(&kind, &mut keys)?;
    let compression = compression(&mut keys)?;
    keys.only("oci-mediatypes", true, "the image is always written with OCI media types")?;
    keys.only("rewrite-timestamp", true, "SOURCE_DATE_EPOCH always caps the times in new layers")?;
    keys.only("force-compression", false, "inherited layers are never compressed again")?;
    match keys.0.first() {
        Some((key, _)) => {
            Err(usage(&format!("--output type={kind}: the key {key} is not supported")))
        }
        None => Ok(Entry { destination, compression }),
    }
}

fn destination(kind: &str, keys: &mut Keys) -> Result<Destination, Error> {
    match kind {
        "oci" => oci(keys),
        "image" => {
            let push = keys.boolean("push")?.unwrap_or(false);
            Ok(Destination::Image { names: keys.names()?, push })
        }
        "registry" => match keys.boolean("push")? {
            Some(false) => Err(usage("--output: type=registry with push=false is a contradiction")),
            _ => Ok(Destination::Image { names: keys.names()?, push: true }),
        },
        _ => Err(unsupported(kind)),
    }
}

fn oci(keys: &mut Keys) -> Result<Destination, Error> {
    let path = keys.take("dest").filter(|path| !path.is_empty()).unwrap_or_else(|| "-".to_owned());
    let tar = keys.boolean("tar")?.unwrap_or(true);
    if !tar && path == "-" {
        return Err(usage("--output: type=oci,tar=false is a directory and needs dest=PATH"));
    }
    Ok(Destination::Oci { path: path.into(), tar })
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

fn unsupported(kind: &str) -> Error {
    usage(&format!("--output: type={kind} is not supported"))
        .hint("use type=oci,dest=PATH (with tar=false a directory), type=registry, or type=image,push=true,name=NAME")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(values: &[&str], push: bool, tags: &[&str]) -> Result<Outputs, Error> {
        let owned =
            |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
        outputs(&owned(values), push, owned(tags), &Environment::default())
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
        assert_eq!(one("type=registry"), Output::Registry { names: vec![] });
        assert_eq!(
            one(r#"type=image,"name=a,b:1",push=true"#),
            Output::Registry { names: vec!["a".into(), "b:1".into()] }
        );
    }

    #[test]
    fn push_turns_image_outputs_into_pushes_and_makes_one_where_none_is() {
        let names = |name: &str| Output::Registry { names: vec![name.into()] };
        assert_eq!(parsed(&["type=image,name=a"], true, &[]).unwrap().outputs, [names("a")]);
        assert_eq!(
            parsed(&[], true, &["t"]).unwrap().outputs,
            [Output::Registry { names: vec![] }]
        );
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
            ("out", "type=local"),
            ("-", "type=tar"),
            ("", "empty"),
            ("dest=x", "type=local"),
            ("dest=x,name=y", "no type="),
            ("type=docker,dest=x", "type=docker"),
            ("type=local,dest=x", "type=local"),
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
            ("type=registry,oci-mediatypes=false", "oci-mediatypes"),
            ("type=registry,force-compression=true", "force-compression"),
            ("type=registry,push-by-digest=true", "push-by-digest"),
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
        assert!(outputs(&["type=oci".into()], false, vec![], &environment).is_err());
    }
}
