//! THE flag table: every option of every command, once. Help and parsing are filled from it, and an option that is not
//! here is refused by name.

/// A command of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    Build,
    Check,
    Plan,
    Push,
    Copy,
    Join,
    CacheDu,
    CachePrune,
    Doctor,
}

/// What a flag's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// On or off: `--push`, `--push=false`.
    Switch,
    /// Its occurrences are counted: `-vv`.
    Count,
    Text,
    Path,
    Number,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `KEY=VALUE`.
    Pair,
    /// `key=value,key=value`, one CSV record.
    Fields,
    /// The same, or nothing at all, which stands for the defaults: `--name`, `--name=key=value`.
    #[cfg(feature = "aws")]
    OptionalFields,
}

/// Under which heading help shows a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Source,
    Step,
    Cache,
    Output,
    Registry,
    Host,
    Log,
}

impl Group {
    pub fn heading(self) -> &'static str {
        match self {
            Group::Source => "What to build",
            Group::Step => "How steps run",
            Group::Cache => "Cache",
            Group::Output => "Where the image goes",
            Group::Registry => "Registries",
            Group::Host => "This host",
            Group::Log => "Log",
        }
    }
}

/// One option.
#[derive(Debug)]
pub struct Flag {
    /// Its long name, without dashes.
    pub name: &'static str,
    pub short: Option<char>,
    /// What help calls its value; empty where it takes none.
    pub value: &'static str,
    pub kind: Kind,
    /// Given several times, each value counts; otherwise the last one does.
    pub repeatable: bool,
    pub commands: &'static [Command],
    pub group: Group,
    /// What holds where it is not given, in words for help.
    pub default: Option<&'static str>,
    /// The environment variable that stands in where it is not given.
    pub environment: Option<&'static str>,
    pub help: &'static str,
}

/// What a command's own argument is.
#[derive(Debug)]
pub struct Argument {
    pub name: &'static str,
    pub help: &'static str,
}

/// A command's place and words in help.
#[derive(Debug)]
pub struct CommandRow {
    pub command: Command,
    /// Its words after `bareboat`.
    pub words: &'static [&'static str],
    pub about: &'static str,
    pub argument: Option<Argument>,
}

/// What CONTEXT may be.
const CONTEXT_HELP: &str = "The build context: a directory, a tar file, a Git repository (URL#REF:FOLDER), an http(s) URL of a tar or a Dockerfile, or - for either on standard input";

/// What LAYOUT may be.
const LAYOUT_HELP: &str = "An OCI layout, a directory or a tar: PATH[:NAME][@DIGEST], where NAME and DIGEST choose one of several images";

/// Every command.
pub const COMMANDS: &[CommandRow] = &[
    CommandRow {
        command: Command::Build,
        words: &["build"],
        about: "Build an image from a Dockerfile",
        argument: Some(Argument { name: "CONTEXT", help: CONTEXT_HELP }),
    },
    CommandRow {
        command: Command::Check,
        words: &["check"],
        about: "Check a Dockerfile by BuildKit's build checks, without building it",
        argument: Some(Argument { name: "CONTEXT", help: CONTEXT_HELP }),
    },
    CommandRow {
        command: Command::Plan,
        words: &["plan"],
        about: "Show what a build would run, without running it; takes the options of build",
        argument: Some(Argument { name: "CONTEXT", help: CONTEXT_HELP }),
    },
    CommandRow {
        command: Command::Push,
        words: &["push"],
        about: "Push an image of an OCI layout to registries, byte for byte",
        argument: Some(Argument { name: "LAYOUT", help: LAYOUT_HELP }),
    },
    CommandRow {
        command: Command::Copy,
        words: &["copy"],
        about: "Copy an image, or an index with all its platforms, byte for byte",
        argument: Some(Argument {
            name: "SRC",
            help: "An image in a registry, or oci:PATH[:NAME][@DIGEST]",
        }),
    },
    CommandRow {
        command: Command::Join,
        words: &["join"],
        about: "Make one index of images that were pushed one by one, a platform each, and push it",
        argument: Some(Argument { name: "REF", help: "The name of the index" }),
    },
    CommandRow {
        command: Command::CacheDu,
        words: &["cache", "du"],
        about: "Show what the state directory holds",
        argument: None,
    },
    CommandRow {
        command: Command::CachePrune,
        words: &["cache", "prune"],
        about: "Delete blobs, unpacked trees and cache records",
        argument: None,
    },
    CommandRow {
        command: Command::Doctor,
        words: &["doctor"],
        about: "Show how RUN can be executed here, what is missing for the rest, and whether registries answer",
        argument: None,
    },
];

/// What a command takes behind its argument, one or more.
pub fn more_arguments(command: Command) -> Option<Argument> {
    let (name, help) = match command {
        Command::Push => ("NAME", "What to push it as: REGISTRY/REPOSITORY:TAG"),
        Command::Copy => {
            ("DST", "Where to: an image in a registry, or oci:PATH[:NAME], a directory")
        }
        Command::Join => (
            "DIGEST",
            "An image or index: its digest, in the repository of REF, or its whole name, in any repository",
        ),
        _ => return None,
    };
    Some(Argument { name, help })
}

/// Words between `bareboat` and a command that group several commands.
pub const COMMAND_GROUPS: &[(&str, &str)] = &[("cache", "Look at and empty the local cache")];

pub const PROGRESS: &[&str] = &["auto", "tty", "plain", "json", "quiet"];
pub const ENTITLEMENTS: &[&str] = &["network.host", "security.insecure"];
pub const NETWORKS: &[&str] = &["default", "none", "host"];
/// SARIF is for findings: a plan has none.
pub const FORMATS: &[&str] = &["human", "json", "sarif"];
pub const SANDBOXES: &[&str] = &["auto", "overlay", "swap", "none"];

const BUILD: &[Command] = &[Command::Build];
const PLAN: &[Command] = &[Command::Plan];
/// What has its part in a build's steps, or comes after them: a build's command line can be planned as it is.
const BUILD_AND_PLAN: &[Command] = &[Command::Build, Command::Plan];
const CHECK_AND_PLAN: &[Command] = &[Command::Check, Command::Plan];
const READS: &[Command] = &[Command::Build, Command::Check, Command::Plan];
const DOCTOR: &[Command] = &[Command::Doctor];
/// What keeps something in the state directory.
const STATEFUL: &[Command] = &[
    Command::Build,
    Command::Check,
    Command::Plan,
    Command::CacheDu,
    Command::CachePrune,
    Command::Doctor,
];
/// What talks to registries.
const REGISTRY: &[Command] = &[
    Command::Build,
    Command::Check,
    Command::Plan,
    Command::Push,
    Command::Copy,
    Command::Join,
    Command::Doctor,
];
/// What transfers bytes, and shows how far it is.
const LOGGED: &[Command] =
    &[Command::Build, Command::Plan, Command::Push, Command::Copy, Command::Join];
const TRANSFERS: &[Command] = &[Command::Push, Command::Copy];
const ANNOTATES: &[Command] = &[Command::Build, Command::Plan, Command::Join];
const CHOOSES_PLATFORM: &[Command] =
    &[Command::Build, Command::Check, Command::Plan, Command::Push, Command::Copy];
const EVERY: &[Command] = &[
    Command::Build,
    Command::Check,
    Command::Plan,
    Command::Push,
    Command::Copy,
    Command::Join,
    Command::CacheDu,
    Command::CachePrune,
    Command::Doctor,
];

/// A row with nothing in it, for struct update.
const ROW: Flag = Flag {
    name: "",
    short: None,
    value: "",
    kind: Kind::Text,
    repeatable: false,
    commands: BUILD_AND_PLAN,
    group: Group::Source,
    default: None,
    environment: None,
    help: "",
};

/// Every option.
pub const FLAGS: &[Flag] = &[
    Flag {
        name: "file",
        short: Some('f'),
        value: "PATH",
        kind: Kind::Path,
        default: Some("CONTEXT/Dockerfile"),
        commands: READS,
        help: "The Dockerfile; - reads it from standard input",
        ..ROW
    },
    Flag {
        name: "target",
        value: "STAGE",
        default: Some("the last stage"),
        commands: READS,
        help: "The stage to build",
        ..ROW
    },
    Flag {
        name: "build-arg",
        value: "KEY=VALUE",
        kind: Kind::Pair,
        repeatable: true,
        commands: READS,
        help: "Set an ARG; KEY alone takes its value from the environment",
        ..ROW
    },
    Flag {
        name: "build-context",
        value: "NAME=SOURCE",
        kind: Kind::Pair,
        repeatable: true,
        commands: READS,
        help: "A named context: a directory, docker-image://REF, oci-layout://PATH[:TAG][@DIGEST], a Git repository or an http(s) URL",
        ..ROW
    },
    Flag {
        name: "base-config",
        value: "REF=FILE",
        kind: Kind::Pair,
        repeatable: true,
        commands: PLAN,
        help: "The configuration (JSON) of an image that the build reads, so that no registry is asked for it",
        ..ROW
    },
    Flag {
        name: "platform",
        value: "OS/ARCH",
        repeatable: true,
        default: Some("this host's; for push and copy all that an index has"),
        commands: CHOOSES_PLATFORM,
        help: "The platforms to build for, separated by commas; several make an index. For push and copy: the one platform whose image is taken out of an index",
        ..ROW
    },
    Flag {
        name: "all",
        kind: Kind::Switch,
        commands: TRANSFERS,
        help: "Take an index with all its platforms, which is the default; excludes --platform",
        ..ROW
    },
    Flag {
        name: "label",
        value: "KEY=VALUE",
        kind: Kind::Pair,
        repeatable: true,
        help: "A label for the image's configuration",
        ..ROW
    },
    Flag {
        name: "annotation",
        value: "[LEVEL:]KEY=VALUE",
        kind: Kind::Pair,
        repeatable: true,
        commands: ANNOTATES,
        help: "An annotation; LEVEL is manifest (the default), index, manifest-descriptor or index-descriptor, maybe with [PLATFORM]. For join: index (the default) or manifest-descriptor",
        ..ROW
    },
    Flag {
        name: "check",
        kind: Kind::Switch,
        commands: BUILD,
        help: "Check the Dockerfile, as `bareboat check` does, and build nothing",
        ..ROW
    },
    Flag {
        name: "secret",
        value: "id=ID[,src=PATH|,env=NAME]",
        kind: Kind::Fields,
        repeatable: true,
        commands: READS,
        group: Group::Step,
        help: "A secret that steps may mount; it reaches no layer, no log and no cache record",
        ..ROW
    },
    Flag {
        name: "ssh",
        value: "ID[=SOCKET|KEY[,KEY…]]",
        repeatable: true,
        commands: READS,
        group: Group::Step,
        help: "An ssh agent, or keys without a passphrase, that steps may mount; `default` is the agent of SSH_AUTH_SOCK, and what Git over ssh uses",
        ..ROW
    },
    Flag {
        name: "network",
        value: "MODE",
        kind: Kind::Choice(NETWORKS),
        group: Group::Step,
        default: Some("default"),
        help: "The network of RUN",
        ..ROW
    },
    Flag {
        name: "allow",
        value: "ENTITLEMENT",
        kind: Kind::Choice(ENTITLEMENTS),
        repeatable: true,
        group: Group::Step,
        help: "Let the Dockerfile use RUN --network=host (network.host) or RUN --security=insecure (security.insecure)",
        ..ROW
    },
    Flag {
        name: "add-host",
        value: "NAME:IP",
        repeatable: true,
        group: Group::Step,
        help: "A line for /etc/hosts during RUN (NAME=IP is the same)",
        ..ROW
    },
    Flag {
        name: "ulimit",
        value: "NAME=SOFT[:HARD]",
        repeatable: true,
        group: Group::Step,
        help: "A resource limit for RUN; -1 is unlimited",
        ..ROW
    },
    Flag {
        name: "shm-size",
        value: "BYTES",
        group: Group::Step,
        default: Some("64m"),
        help: "The size of /dev/shm during RUN, with a unit such as 64m or 1g",
        ..ROW
    },
    Flag {
        name: "sandbox",
        value: "RUNG",
        kind: Kind::Choice(SANDBOXES),
        group: Group::Step,
        default: Some("auto"),
        help: "How RUN is kept apart from this host",
        ..ROW
    },
    Flag {
        name: "no-cache",
        kind: Kind::Switch,
        group: Group::Cache,
        help: "Run every step",
        ..ROW
    },
    Flag {
        name: "no-cache-filter",
        value: "STAGE",
        repeatable: true,
        group: Group::Cache,
        help: "Run every step of these stages (several: commas, or repeat it)",
        ..ROW
    },
    Flag {
        name: "pull",
        kind: Kind::Switch,
        group: Group::Cache,
        help: "Ask the registry for base images even where a tag's digest is remembered",
        ..ROW
    },
    Flag {
        name: "no-preflight",
        kind: Kind::Switch,
        group: Group::Host,
        help: "Start without looking first for what is known to fail: the right to push, images, sources, secrets, room, a sandbox",
        ..ROW
    },
    Flag {
        name: "preflight-only",
        kind: Kind::Switch,
        commands: BUILD,
        group: Group::Host,
        help: "Look for what is known to fail, tell all of it, and build nothing",
        ..ROW
    },
    Flag {
        name: "tag",
        short: Some('t'),
        value: "NAME[:TAG]",
        repeatable: true,
        group: Group::Output,
        help: "Name the image; with --push it is pushed to each name",
        ..ROW
    },
    Flag {
        name: "push",
        kind: Kind::Switch,
        group: Group::Output,
        help: "Push the image to the names of -t; short for -o type=registry",
        ..ROW
    },
    Flag {
        name: "output",
        short: Some('o'),
        value: "type=TYPE[,KEY=VALUE…]",
        kind: Kind::Fields,
        repeatable: true,
        group: Group::Output,
        help: "Where the image goes; several may be given. type=oci or type=docker,dest=PATH[,tar=false]; \
               type=tar,dest=PATH and type=local,dest=DIR write its files (-o DIR, and -o - for a tar on standard output); \
               type=image,push=true,name=NAME[,push-by-digest=true] and type=registry push it. Keys of images: \
               compression=gzip|zstd|uncompressed, compression-level=N, gzip-members=true, force-compression=true, \
               oci-mediatypes=false, annotation-LEVEL[PLATFORM].KEY=VALUE. Keys of files: platform-split=BOOL, \
               mode=copy|delete",
        ..ROW
    },
    Flag {
        name: "metadata-file",
        value: "PATH",
        kind: Kind::Path,
        group: Group::Output,
        commands: LOGGED,
        help: "Write digests, names, steps and figures as JSON",
        ..ROW
    },
    Flag {
        name: "iidfile",
        value: "PATH",
        kind: Kind::Path,
        group: Group::Output,
        help: "Write the image's ID, the digest of its configuration",
        ..ROW
    },
    Flag {
        name: "format",
        value: "FORM",
        kind: Kind::Choice(FORMATS),
        commands: CHECK_AND_PLAN,
        group: Group::Output,
        default: Some("human"),
        help: "How a plan or findings are printed: for people or as JSON (findings as `docker buildx build \
               --call=check,format=json` prints them), findings also as SARIF 2.1.0",
        ..ROW
    },
    Flag {
        name: "registry",
        value: "REF",
        repeatable: true,
        commands: DOCTOR,
        group: Group::Registry,
        help: "Ask for this image, and say whether the registry answers and where credentials for it come from",
        ..ROW
    },
    Flag {
        name: "json",
        kind: Kind::Switch,
        commands: DOCTOR,
        group: Group::Output,
        help: "Print JSON",
        ..ROW
    },
    Flag {
        name: "insecure-registry",
        value: "HOST[:PORT]",
        repeatable: true,
        commands: REGISTRY,
        group: Group::Registry,
        help: "A registry, or a network in CIDR form, that may speak plain http (localhost always may)",
        ..ROW
    },
    Flag {
        name: "registry-mirror",
        value: "[HOST=]MIRROR[/PREFIX]",
        repeatable: true,
        commands: READS,
        group: Group::Registry,
        help: "Pull what HOST (docker.io where it is not given) serves from this mirror first; several are tried in order, then HOST",
        ..ROW
    },
    Flag {
        name: "registry-certificate",
        value: "HOST=PATH",
        kind: Kind::Pair,
        repeatable: true,
        commands: READS,
        group: Group::Registry,
        help: "Certificates (PEM) to trust for this registry besides the others; certs.d of Docker and of containers is read too",
        ..ROW
    },
    Flag {
        name: "registry-client-cert",
        value: "HOST=CERT,KEY",
        kind: Kind::Pair,
        repeatable: true,
        commands: READS,
        group: Group::Registry,
        help: "The client certificate and its key (PEM files) for this registry",
        ..ROW
    },
    Flag {
        name: "skip-tls-verify-registry",
        value: "HOST[:PORT]",
        repeatable: true,
        commands: READS,
        group: Group::Registry,
        help: "Take whatever certificate this registry shows: anybody on the way can then read and change what is sent",
        ..ROW
    },
    Flag {
        name: "ca-file",
        value: "PATH",
        kind: Kind::Path,
        repeatable: true,
        commands: REGISTRY,
        group: Group::Registry,
        help: "Certificates (PEM) to trust besides the system's; SSL_CERT_FILE replaces those",
        ..ROW
    },
    Flag {
        name: "authfile",
        value: "PATH",
        kind: Kind::Path,
        commands: REGISTRY,
        group: Group::Registry,
        environment: Some("REGISTRY_AUTH_FILE"),
        help: "Credentials for registries (in the form of Docker's config.json), asked before those of other places",
        ..ROW
    },
    Flag {
        name: "skip-immutable",
        kind: Kind::Switch,
        group: Group::Registry,
        help: "Leave a tag that can't be moved and names another image as it is, with a warning, instead of failing",
        ..ROW
    },
    #[cfg(feature = "aws")]
    Flag {
        name: "create-repository",
        value: "KEY=VALUE,…",
        kind: Kind::OptionalFields,
        group: Group::Registry,
        help: "Create a repository that ECR says is missing. Keys mutability=mutable|immutable, except=TAG|TAG*, \
               encryption=aes256|kms|kms-dsse, kms-key=ARN, scan=true, tag.KEY=VALUE, lifecycle=FILE",
        ..ROW
    },
    #[cfg(feature = "aws")]
    Flag {
        name: "aws-role-arn",
        value: "ARN",
        repeatable: true,
        commands: READS,
        group: Group::Registry,
        environment: Some("BAREBOAT_AWS_ROLE_ARN"),
        help: "The role for ECR: an ID token of GitHub or GitLab is exchanged for it, other keys assume it; repeat it \
               to go on to another role",
        ..ROW
    },
    #[cfg(feature = "aws")]
    Flag {
        name: "aws-registry-role",
        value: "HOST=ARN",
        repeatable: true,
        commands: READS,
        group: Group::Registry,
        help: "A role for one ECR registry, after those of --aws-role-arn",
        ..ROW
    },
    #[cfg(feature = "aws")]
    Flag {
        name: "aws-external-id",
        value: "ID",
        commands: READS,
        group: Group::Registry,
        help: "The external ID that a role's trust policy asks for",
        ..ROW
    },
    #[cfg(feature = "aws")]
    Flag {
        name: "aws-role-session-name",
        value: "NAME",
        commands: READS,
        group: Group::Registry,
        default: Some("bareboat"),
        help: "The name of the roles' sessions in AWS's logs",
        ..ROW
    },
    #[cfg(feature = "aws")]
    Flag {
        name: "aws-id-token-var",
        value: "NAME",
        commands: READS,
        group: Group::Registry,
        default: Some("AWS_ID_TOKEN"),
        help: "The variable that holds an ID token (GitLab's id_tokens) for --aws-role-arn",
        ..ROW
    },
    #[cfg(feature = "aws")]
    Flag {
        name: "ecr-registry",
        value: "HOST=REGION",
        repeatable: true,
        commands: READS,
        group: Group::Registry,
        help: "A private name of an ECR registry and its AWS Region",
        ..ROW
    },
    Flag {
        name: "state-dir",
        value: "PATH",
        kind: Kind::Path,
        commands: STATEFUL,
        group: Group::Host,
        default: Some(
            "$XDG_DATA_HOME/bareboat or ~/.local/share/bareboat, for root /var/lib/bareboat",
        ),
        environment: Some("BAREBOAT_STATE_DIR"),
        help: "Where blobs, unpacked trees and cache records are kept",
        ..ROW
    },
    Flag {
        name: "jobs",
        value: "N",
        kind: Kind::Number,
        group: Group::Host,
        default: Some("the number of CPUs"),
        help: "How many RUN steps and compression workers run at once",
        ..ROW
    },
    Flag {
        name: "progress",
        value: "FORM",
        kind: Kind::Choice(PROGRESS),
        group: Group::Log,
        default: Some("auto"),
        commands: LOGGED,
        help: "What standard error shows: a live list (tty), lines (plain), one JSON object a line, or only errors (quiet)",
        ..ROW
    },
    Flag {
        name: "verbose",
        short: Some('v'),
        kind: Kind::Count,
        commands: EVERY,
        group: Group::Log,
        help: "Show diagnostics of bareboat itself; repeat it for more",
        ..ROW
    },
];

/// The row of a flag's name.
pub fn flag(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_rows_are_whole() {
        let mut names = BTreeSet::new();
        let mut shorts = BTreeSet::new();
        for flag in FLAGS {
            assert!(names.insert(flag.name), "--{} twice", flag.name);
            assert!(flag.short.is_none_or(|short| shorts.insert(short)), "--{}", flag.name);
            let bare = matches!(flag.kind, Kind::Switch | Kind::Count);
            assert_eq!(bare, flag.value.is_empty(), "--{}", flag.name);
            assert!(!flag.help.is_empty() && !flag.help.ends_with('.'), "--{}", flag.name);
            assert!(!flag.commands.is_empty(), "--{}", flag.name);
        }
    }

    #[test]
    fn every_command_has_words() {
        for row in COMMANDS {
            if let [group, _] = row.words {
                assert!(COMMAND_GROUPS.iter().any(|(name, _)| name == group), "{group}");
            }
        }
    }
}
