//! What a Dockerfile says, before any word is expanded (Dockerfile reference 1.26). Pure data: parsing does no I/O.
//!
//! Strings are the raw words as BuildKit's parser keeps them: unexpanded, quotes and escapes in place, continuations
//! joined. `words::expand` turns them into values.

use std::sync::Arc;

/// Where something stands in its Dockerfile: 1-based lines, both ends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    pub first_line: u32,
    pub last_line: u32,
    /// 0-based byte column of the point of interest within `first_line`, where one is known.
    pub column: Option<u32>,
}

/// A parsed Dockerfile.
#[derive(Clone, Debug)]
pub struct Dockerfile {
    /// Its name as errors show it, such as `Dockerfile` or `docker/app.Dockerfile`.
    pub name: String,
    /// The bytes as read, for source frames.
    pub source: Arc<str>,
    pub directives: Directives,
    /// ARG instructions before the first FROM.
    pub global_args: Vec<Instruction>,
    pub stages: Vec<Stage>,
}

/// Parser directives (`# name=value` in the first lines).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directives {
    pub syntax: Option<String>,
    /// `\` unless the directive says a backtick.
    pub escape: Escape,
    pub check: Option<String>,
}

/// The escape character of a Dockerfile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Escape {
    #[default]
    Backslash,
    Backtick,
}

impl Escape {
    pub fn as_char(self) -> char {
        match self {
            Escape::Backslash => '\\',
            Escape::Backtick => '`',
        }
    }
}

/// One FROM and what follows it.
#[derive(Clone, Debug)]
pub struct Stage {
    pub from: From,
    pub instructions: Vec<Instruction>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct From {
    pub span: Span,
    /// The base as written, unexpanded.
    pub image: String,
    /// `--platform`, unexpanded.
    pub platform: Option<String>,
    /// The name after AS, lower-cased.
    pub name: Option<String>,
    /// The name after AS as written.
    pub written_name: Option<String>,
    /// `FROM` and `AS` as written, for the checks of letter case.
    pub keyword: String,
    pub as_keyword: Option<String>,
    /// The line as BuildKit keeps it (continuations joined), for the log.
    pub original: String,
    /// The comment lines directly above, without their `#` (checks and descriptions stand there).
    pub comments: Vec<String>,
}

/// One instruction of a stage (or a global ARG).
#[derive(Clone, Debug)]
pub struct Instruction {
    pub span: Span,
    /// The keyword as written, such as `Run`.
    pub keyword: String,
    /// The line as BuildKit keeps it (`node.Original`: continuations joined, comments dropped), for the log.
    pub original: String,
    /// The comment lines directly above, without their `#` (checks and descriptions stand there).
    pub comments: Vec<String>,
    pub kind: InstructionKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstructionKind {
    Arg(Vec<ArgPair>),
    /// Pairs in order; keys and values unexpanded.
    Env(Vec<Pair>),
    Label(Vec<Pair>),
    Run(Run),
    Copy(Copy),
    Add(Add),
    Workdir(String),
    User(String),
    Expose(Vec<String>),
    Volume(Vec<String>),
    Cmd(Command),
    Entrypoint(Command),
    Shell(Vec<String>),
    Healthcheck(Healthcheck),
    Stopsignal(String),
    Maintainer(String),
    /// The trigger's text as the image config stores it, here-documents included.
    Onbuild(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgPair {
    pub key: String,
    /// `None` for a bare `ARG NAME`.
    pub value: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub key: String,
    pub value: String,
    /// False for the old form `ENV key the rest`, whose value BuildKit treats otherwise.
    pub delimited: bool,
}

/// Shell form (the text as written) or exec form (a JSON array).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Shell(String),
    Exec(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub command: Command,
    pub heredocs: Vec<Heredoc>,
    /// Each `--mount` value, unexpanded and unparsed (`plan` expands, then calls `mount::parse`).
    pub mounts: Vec<String>,
    /// `--network`, validated: `default`, `none` or `host`.
    pub network: Option<String>,
    /// `--security`, validated: `sandbox` or `insecure`.
    pub security: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The delimiter without quotes.
    pub name: String,
    /// The body, tabs already stripped for `<<-`.
    pub content: String,
    /// The body as read, tabs in place: what goes into a shell's text and a trigger.
    pub raw: String,
    /// False where the delimiter was quoted.
    pub expand: bool,
    pub chomp: bool,
    pub file_descriptor: u32,
}

/// A source of COPY or ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A path, wildcard, URL or Git reference; unexpanded.
    Path(String),
    Heredoc(Heredoc),
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Copy {
    /// In BuildKit's order: paths first, then here-documents.
    pub sources: Vec<Source>,
    pub destination: String,
    /// `--from` as written.
    pub from: Option<String>,
    /// `--chown`, `--chmod`: unexpanded.
    pub chown: Option<String>,
    pub chmod: Option<String>,
    pub link: bool,
    pub parents: bool,
    pub exclude: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Add {
    /// What ADD shares with COPY (`from` is always `None`).
    pub copy: Copy,
    pub checksum: Option<String>,
    pub keep_git_dir: Option<bool>,
    pub unpack: Option<bool>,
}

/// HEALTHCHECK. Durations in nanoseconds, 0 where not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Healthcheck {
    /// Docker's form: `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", text]`.
    pub test: Vec<String>,
    pub interval: i64,
    pub timeout: i64,
    pub start_period: i64,
    pub start_interval: i64,
    pub retries: i64,
}
