//! The second pass: a node's meaning. The order of the checks within an instruction is BuildKit's, because the first
//! failing one is what the user reads.

use super::{
    ast::{
        Add, ArgPair, Command, Copy, From, Healthcheck, Heredoc, Instruction,
        InstructionKind as Kind, Pair, Run, Source,
    },
    duration,
    error::Problem,
    flags::{self, Flags},
    heredoc, mount,
    node::{Arguments, Node},
};

/// What a node is.
pub(super) enum Meaning {
    From(Box<From>),
    Instruction(Box<Instruction>),
}

type Read<T> = Result<T, Problem>;

/// Whether flags on this instruction go unread, as in BuildKit.
pub(super) fn ignores_flags(node: &Node<'_>) -> bool {
    let none = |kind: &str| kind.eq_ignore_ascii_case("none");
    match node.keyword.to_ascii_lowercase().as_str() {
        "arg" | "stopsignal" => true,
        "healthcheck" => matches!(&node.arguments, Arguments::Test { kind, .. } if none(kind)),
        _ => false,
    }
}

pub(super) fn read(node: Node<'_>) -> Read<Meaning> {
    let (span, keyword, comments) = (node.span, node.keyword.clone(), node.comments.clone());
    let original = node.original.trim().to_owned();
    let kind = match keyword.to_ascii_lowercase().as_str() {
        "from" => return Ok(Meaning::From(Box::new(from(node)?))),
        "add" => add(node)?,
        "arg" => arg(node)?,
        "cmd" => Kind::Cmd(unflagged_command("CMD", node)?),
        "copy" => copy(node)?,
        "entrypoint" => Kind::Entrypoint(unflagged_command("ENTRYPOINT", node)?),
        "env" => Kind::Env(pairs("ENV", node)?),
        "expose" => expose(node)?,
        "healthcheck" => healthcheck(node)?,
        "label" => Kind::Label(pairs("LABEL", node)?),
        "maintainer" => Kind::Maintainer(one_argument("MAINTAINER", node)?),
        "onbuild" => onbuild(node)?,
        "run" => run(node)?,
        "shell" => shell(node)?,
        "stopsignal" => {
            Kind::Stopsignal(one_argument("STOPSIGNAL", Node { flags: Vec::new(), ..node })?)
        }
        "user" => Kind::User(one_argument("USER", node)?),
        "volume" => volume(node)?,
        "workdir" => Kind::Workdir(one_argument("WORKDIR", node)?),
        _ => return Err(Problem::UnknownInstruction { keyword }),
    };
    Ok(Meaning::Instruction(Box::new(Instruction { span, keyword, original, comments, kind })))
}

/// The node's words, whether they were an array or not.
fn words(arguments: Arguments) -> Vec<String> {
    match arguments {
        Arguments::Words(words) | Arguments::Json(words) => words,
        Arguments::Pairs(_) | Arguments::Test { .. } | Arguments::Trigger(_) => Vec::new(),
    }
}

fn no_flags(instruction: &'static str, words: &[String]) -> Read<Flags> {
    flags::parse(instruction, words, flags::NONE)
}

fn one_argument(instruction: &'static str, node: Node<'_>) -> Read<String> {
    let mut arguments = words(node.arguments).into_iter();
    let (Some(argument), None) = (arguments.next(), arguments.next()) else {
        return Err(Problem::ExactlyOne { instruction });
    };
    no_flags(instruction, &node.flags)?;
    Ok(argument)
}

fn from(node: Node<'_>) -> Read<From> {
    let arguments = words(node.arguments);
    let (image, name) = match &arguments[..] {
        [image] => (image, None),
        [image, keyword, name] if keyword.eq_ignore_ascii_case("as") => {
            (image, Some((keyword, name)))
        }
        _ => return Err(Problem::FromArguments),
    };
    let lower = name.map(|(_, name)| name.to_lowercase());
    if let (Some(lower), Some((_, name))) = (&lower, name)
        && !is_stage_name(lower)
    {
        return Err(Problem::StageName { name: name.clone() });
    }
    let flags = flags::parse("FROM", &node.flags, flags::FROM)?;
    Ok(From {
        span: node.span,
        image: image.clone(),
        platform: flags.text("platform"),
        name: lower,
        written_name: name.map(|(_, name)| name.clone()),
        as_keyword: name.map(|(keyword, _)| keyword.clone()),
        original: node.original.trim().to_owned(),
        keyword: node.keyword,
        comments: node.comments,
    })
}

fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.'))
}

fn arg(node: Node<'_>) -> Read<Kind> {
    let arguments = words(node.arguments);
    if arguments.is_empty() {
        return Err(Problem::AtLeastOne { instruction: "ARG" });
    }
    let pair = |word: String| match word.split_once('=') {
        Some(("", _)) => Err(Problem::BlankName { instruction: "ARG" }),
        Some((key, value)) => Ok(ArgPair { key: key.to_owned(), value: Some(value.to_owned()) }),
        None => Ok(ArgPair { key: word, value: None }),
    };
    Ok(Kind::Arg(arguments.into_iter().map(pair).collect::<Read<_>>()?))
}

fn pairs(instruction: &'static str, node: Node<'_>) -> Read<Vec<Pair>> {
    no_flags(instruction, &node.flags)?;
    let Arguments::Pairs(pairs) = node.arguments else {
        return Err(Problem::AtLeastOne { instruction });
    };
    if pairs.iter().any(|pair| pair.key.is_empty()) {
        return Err(Problem::BlankName { instruction });
    }
    Ok(pairs)
}

fn command(arguments: Arguments) -> Command {
    match arguments {
        Arguments::Json(words) => Command::Exec(words),
        other => Command::Shell(words(other).join(" ")),
    }
}

fn unflagged_command(instruction: &'static str, node: Node<'_>) -> Read<Command> {
    no_flags(instruction, &node.flags)?;
    Ok(command(node.arguments))
}

fn run(node: Node<'_>) -> Read<Kind> {
    let flags = flags::parse("RUN", &node.flags, flags::RUN)?;
    if flags.given("device").is_some() {
        return Err(Problem::Device);
    }
    let mounts = flags.list("mount");
    mounts.iter().try_for_each(|value| mount::check(value))?;
    let network =
        mode(&flags, "network", &["default", "none", "host"], |mode| Problem::Network { mode })?;
    let security =
        mode(&flags, "security", &["sandbox", "insecure"], |mode| Problem::Security { mode })?;
    Ok(Kind::Run(Run {
        command: command(node.arguments),
        heredocs: node.heredocs,
        mounts,
        network,
        security,
    }))
}

fn mode(
    flags: &Flags,
    name: &str,
    known: &[&str],
    problem: fn(String) -> Problem,
) -> Read<Option<String>> {
    match flags.given(name) {
        Some(mode) if !known.contains(&mode) => Err(problem(mode.to_owned())),
        mode => Ok(mode.map(str::to_owned)),
    }
}

fn copy(node: Node<'_>) -> Read<Kind> {
    let mut arguments = words(node.arguments);
    let destination = destination("COPY", &mut arguments)?;
    let flags = flags::parse("COPY", &node.flags, flags::COPY)?;
    Ok(Kind::Copy(files("COPY", arguments, destination, node.heredocs, &flags)?))
}

fn add(node: Node<'_>) -> Read<Kind> {
    let mut arguments = words(node.arguments);
    let destination = destination("ADD", &mut arguments)?;
    let flags = flags::parse("ADD", &node.flags, flags::ADD)?;
    Ok(Kind::Add(Add {
        copy: files("ADD", arguments, destination, node.heredocs, &flags)?,
        checksum: flags.text("checksum"),
        keep_git_dir: flags.boolean("keep-git-dir"),
        unpack: flags.boolean("unpack"),
    }))
}

/// Takes the last argument off, if another one is left.
fn destination(instruction: &'static str, arguments: &mut Vec<String>) -> Read<String> {
    match arguments.len() {
        0 | 1 => Err(Problem::NoDestination { instruction }),
        _ => arguments.pop().ok_or(Problem::NoDestination { instruction }),
    }
}

fn files(
    instruction: &'static str,
    arguments: Vec<String>,
    destination: String,
    heredocs: Vec<Heredoc>,
    flags: &Flags,
) -> Read<Copy> {
    if matches!(heredoc::mark(&destination), Ok(Some(_))) {
        return Err(Problem::HeredocDestination { instruction });
    }
    Ok(Copy {
        sources: sources(arguments, &heredocs),
        destination,
        from: flags.text("from"),
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.boolean("link").unwrap_or(false),
        parents: flags.boolean("parents").unwrap_or(false),
        exclude: flags.list("exclude"),
    })
}

/// Paths, then here-documents. A mark takes the last body of its name; one that has none (in a JSON array) is empty.
fn sources(arguments: Vec<String>, heredocs: &[Heredoc]) -> Vec<Source> {
    let bodies: std::collections::HashMap<&str, &str> =
        heredocs.iter().map(|heredoc| (heredoc.name.as_str(), heredoc.raw.as_str())).collect();
    let mut paths = Vec::new();
    let mut inline = Vec::new();
    for argument in arguments {
        match heredoc::mark(&argument) {
            Ok(Some(mark)) => {
                let raw = bodies.get(mark.name.as_str()).copied().unwrap_or_default().to_owned();
                inline.push(Source::Heredoc(mark.with_body(raw)));
            }
            _ => paths.push(Source::Path(argument)),
        }
    }
    paths.append(&mut inline);
    paths
}

fn expose(node: Node<'_>) -> Read<Kind> {
    let mut ports = words(node.arguments);
    if ports.is_empty() {
        return Err(Problem::AtLeastOne { instruction: "EXPOSE" });
    }
    no_flags("EXPOSE", &node.flags)?;
    ports.sort();
    Ok(Kind::Expose(ports))
}

fn volume(node: Node<'_>) -> Read<Kind> {
    let volumes = words(node.arguments);
    if volumes.is_empty() {
        return Err(Problem::AtLeastOne { instruction: "VOLUME" });
    }
    no_flags("VOLUME", &node.flags)?;
    let volumes: Vec<String> = volumes.iter().map(|volume| volume.trim().to_owned()).collect();
    if volumes.iter().any(String::is_empty) {
        return Err(Problem::EmptyVolume);
    }
    Ok(Kind::Volume(volumes))
}

fn shell(node: Node<'_>) -> Read<Kind> {
    no_flags("SHELL", &node.flags)?;
    match node.arguments {
        Arguments::Json(words) if !words.is_empty() => Ok(Kind::Shell(words)),
        Arguments::Words(words) if !words.is_empty() => {
            Err(Problem::NotJson { instruction: "SHELL" })
        }
        _ => Err(Problem::AtLeastOne { instruction: "SHELL" }),
    }
}

fn onbuild(node: Node<'_>) -> Read<Kind> {
    let Arguments::Trigger(trigger) = &node.arguments else {
        return Err(Problem::AtLeastOne { instruction: "ONBUILD" });
    };
    no_flags("ONBUILD", &node.flags)?;
    match trigger.keyword.to_uppercase().as_str() {
        "ONBUILD" => return Err(Problem::ChainedOnbuild),
        keyword @ ("MAINTAINER" | "FROM") => {
            return Err(Problem::NotATrigger { keyword: keyword.to_owned() });
        }
        _ => {}
    }
    let line = node.original.trim_start();
    let mut text = line
        .get(node.keyword.len()..)
        .unwrap_or_default()
        .trim_start_matches(is_regex_blank)
        .to_owned();
    for heredoc in &node.heredocs {
        text.extend(["\n", &heredoc.raw, &heredoc.name]);
    }
    Ok(Kind::Onbuild(text))
}

/// What `\s` of Go's regular expressions takes for a blank.
fn is_regex_blank(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\x0c' | '\r' | ' ')
}

fn healthcheck(node: Node<'_>) -> Read<Kind> {
    let Arguments::Test { kind, command } = node.arguments else {
        return Err(Problem::AtLeastOne { instruction: "HEALTHCHECK" });
    };
    let kind = kind.to_uppercase();
    if kind == "NONE" {
        return match command.count() {
            0 => Ok(Kind::Healthcheck(Healthcheck { test: vec![kind], ..Healthcheck::default() })),
            _ => Err(Problem::HealthNone),
        };
    }
    let flags = flags::parse("HEALTHCHECK", &node.flags, flags::HEALTHCHECK)?;
    let test = test(kind, *command)?;
    Ok(Kind::Healthcheck(Healthcheck {
        test,
        interval: interval(&flags, "interval")?,
        timeout: interval(&flags, "timeout")?,
        start_period: interval(&flags, "start-period")?,
        start_interval: interval(&flags, "start-interval")?,
        retries: retries(&flags)?,
    }))
}

fn test(kind: String, command: Arguments) -> Read<Vec<String>> {
    if kind != "CMD" {
        return Err(Problem::HealthType { kind });
    }
    let kind = if matches!(command, Arguments::Json(_)) { "CMD" } else { "CMD-SHELL" };
    let words = words(command);
    if words.is_empty() {
        return Err(Problem::HealthWithoutCommand);
    }
    Ok(std::iter::once(kind.to_owned()).chain(words).collect())
}

/// A duration in nanoseconds: 0, or at least a millisecond.
fn interval(flags: &Flags, name: &'static str) -> Read<i64> {
    const MINIMUM: i64 = 1_000_000;
    let Some(text) = flags.text(name) else { return Ok(0) };
    match duration::parse(&text)? {
        0 => Ok(0),
        nanoseconds if nanoseconds < MINIMUM => Err(Problem::TooShort { flag: name }),
        nanoseconds => Ok(nanoseconds),
    }
}

fn retries(flags: &Flags) -> Read<i64> {
    let Some(text) = flags.text("retries") else { return Ok(0) };
    match text.parse::<i32>() {
        Err(_) => Err(Problem::Retries { value: text }),
        Ok(retries) if retries < 0 => Err(Problem::NegativeRetries(retries)),
        Ok(retries) => Ok(retries.into()),
    }
}
