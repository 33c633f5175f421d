//! A Dockerfile printed from its parsed form, and what parsing that again gives.

use std::{fmt::Write, fs, path::Path};

use super::*;

/// The plainest text that means the same: one line an instruction, no comments.
pub(crate) fn print(dockerfile: &Dockerfile) -> String {
    let mut printer = Printer { text: String::new(), escape: dockerfile.directives.escape };
    printer.directives(&dockerfile.directives);
    dockerfile.global_args.iter().for_each(|instruction| printer.kind(&instruction.kind));
    for stage in &dockerfile.stages {
        printer.from(&stage.from);
        stage.instructions.iter().for_each(|instruction| printer.kind(&instruction.kind));
    }
    printer.text
}

struct Printer {
    text: String,
    escape: Escape,
}

impl Printer {
    fn directives(&mut self, directives: &Directives) {
        let escape = (self.escape == Escape::Backtick).then_some("`");
        let all = [
            ("syntax", directives.syntax.as_deref()),
            ("escape", escape),
            ("check", directives.check.as_deref()),
        ];
        for (name, value) in all.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            self.text += &format!("# {name}={value}\n");
        }
    }

    fn from(&mut self, from: &From) {
        let name = from.written_name.as_ref().map_or(String::new(), |name| format!(" AS {name}"));
        let flags = self.flag("platform", from.platform.as_deref());
        self.line("FROM", &flags, &format!("{}{name}", from.image));
    }

    /// A line, with `--` where its text would be taken for a flag.
    fn line(&mut self, keyword: &str, flags: &str, text: &str) {
        let end = if text.starts_with("--") { " --" } else { "" };
        writeln!(self.text, "{keyword}{flags}{end} {text}").unwrap();
    }

    fn flag(&self, name: &str, value: Option<&str>) -> String {
        let Some(value) = value else { return String::new() };
        let escape = self.escape.as_char();
        let mut text = format!(" --{name}=");
        for c in value.chars() {
            if c.is_whitespace() || matches!(c, '"' | '\'') || c == escape {
                text.push(escape);
            }
            text.push(c);
        }
        text
    }

    fn flags(&self, name: &str, values: &[String]) -> String {
        values.iter().map(|value| self.flag(name, Some(value))).collect()
    }

    fn switch(&self, name: &str, value: Option<bool>) -> String {
        self.flag(name, value.map(|value| if value { "true" } else { "false" }))
    }

    fn kind(&mut self, kind: &InstructionKind) {
        match kind {
            InstructionKind::Arg(pairs) => self.line("ARG", "", &arguments(pairs)),
            InstructionKind::Env(all) => self.line("ENV", "", &pairs(all)),
            InstructionKind::Label(all) => self.line("LABEL", "", &pairs(all)),
            InstructionKind::Run(run) => self.run(run),
            InstructionKind::Copy(copy) => self.files("COPY", "", copy),
            InstructionKind::Add(add) => self.add(add),
            InstructionKind::Workdir(path) => self.line("WORKDIR", "", path),
            InstructionKind::User(user) => self.line("USER", "", user),
            InstructionKind::Expose(ports) => self.line("EXPOSE", "", &ports.join(" ")),
            InstructionKind::Volume(paths) => self.line("VOLUME", "", &json(paths)),
            InstructionKind::Cmd(command) => self.line("CMD", "", &text(command)),
            InstructionKind::Entrypoint(command) => self.line("ENTRYPOINT", "", &text(command)),
            InstructionKind::Shell(words) => self.line("SHELL", "", &json(words)),
            InstructionKind::Healthcheck(check) => self.healthcheck(check),
            InstructionKind::Stopsignal(signal) => self.line("STOPSIGNAL", "", signal),
            InstructionKind::Maintainer(name) => self.line("MAINTAINER", "", name),
            InstructionKind::Onbuild(trigger) => self.line("ONBUILD", "", trigger),
        }
    }

    fn run(&mut self, run: &Run) {
        let flags = self.flags("mount", &run.mounts)
            + &self.flag("network", run.network.as_deref())
            + &self.flag("security", run.security.as_deref());
        self.line("RUN", &flags, &text(&run.command));
        run.heredocs.iter().for_each(|heredoc| self.body(heredoc));
    }

    fn body(&mut self, heredoc: &Heredoc) {
        self.text += &format!("{}{}\n", heredoc.raw, heredoc.name);
    }

    fn add(&mut self, add: &Add) {
        let flags = self.flag("checksum", add.checksum.as_deref())
            + &self.switch("keep-git-dir", add.keep_git_dir)
            + &self.switch("unpack", add.unpack);
        self.files("ADD", &flags, &add.copy);
    }

    fn files(&mut self, keyword: &str, flags: &str, copy: &Copy) {
        let set = |value: bool| value.then_some(true);
        let flags = flags.to_owned()
            + &self.flag("from", copy.from.as_deref())
            + &self.flag("chown", copy.chown.as_deref())
            + &self.flag("chmod", copy.chmod.as_deref())
            + &self.switch("link", set(copy.link))
            + &self.switch("parents", set(copy.parents))
            + &self.flags("exclude", &copy.exclude);
        let mut words: Vec<String> = copy.sources.iter().map(source).collect();
        words.push(copy.destination.clone());
        let odd = |word: &String| {
            word.is_empty() || word.contains(|c: char| c.is_whitespace() || "[\"-".contains(c))
        };
        let heredocs = copy.sources.iter().any(|source| matches!(source, Source::Heredoc(_)));
        let text = match !heredocs && words.iter().any(odd) {
            true => json(&words),
            false => words.join(" "),
        };
        self.line(keyword, &flags, &text);
        for source in &copy.sources {
            if let Source::Heredoc(heredoc) = source {
                self.body(heredoc);
            }
        }
    }

    fn healthcheck(&mut self, check: &Healthcheck) {
        let time = |nanoseconds: i64| (nanoseconds != 0).then(|| format!("{nanoseconds}ns"));
        let retries = (check.retries != 0).then(|| check.retries.to_string());
        let flags = self.flag("interval", time(check.interval).as_deref())
            + &self.flag("timeout", time(check.timeout).as_deref())
            + &self.flag("start-period", time(check.start_period).as_deref())
            + &self.flag("start-interval", time(check.start_interval).as_deref())
            + &self.flag("retries", retries.as_deref());
        let text = match check.test.split_first() {
            Some((kind, words)) if kind == "CMD" => format!("CMD {}", json(words)),
            Some((kind, words)) if kind == "CMD-SHELL" => format!("CMD {}", words.join(" ")),
            _ => "NONE".to_owned(),
        };
        self.line("HEALTHCHECK", &flags, &text);
    }
}

fn arguments(pairs: &[ArgPair]) -> String {
    let word = |pair: &ArgPair| match &pair.value {
        Some(value) => format!("{}={value}", pair.key),
        None => pair.key.clone(),
    };
    pairs.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn pairs(pairs: &[Pair]) -> String {
    let word = |pair: &Pair| {
        let between = match pair.delimited {
            true => "=",
            // An escape before one blank would take that into the key.
            false if pair.key.ends_with(['\\', '`']) => "  ",
            false => " ",
        };
        format!("{}{between}{}", pair.key, pair.value)
    };
    pairs.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn source(source: &Source) -> String {
    match source {
        Source::Path(path) => path.clone(),
        Source::Heredoc(heredoc) => {
            let quote = if heredoc.expand { "" } else { "\"" };
            let dash = if heredoc.chomp { "-" } else { "" };
            let number = match heredoc.file_descriptor {
                0 => String::new(),
                number => number.to_string(),
            };
            format!("{number}<<{dash}{quote}{}{quote}", heredoc.name)
        }
    }
}

fn text(command: &Command) -> String {
    match command {
        Command::Shell(text) => text.clone(),
        Command::Exec(words) => json(words),
    }
}

fn json(words: &[String]) -> String {
    serde_json::to_string(words).unwrap()
}

/// What a Dockerfile means: all but places, comments and letter case.
fn meaning(dockerfile: &Dockerfile) -> impl PartialEq + std::fmt::Debug {
    let kinds = |all: &[Instruction]| all.iter().map(|one| one.kind.clone()).collect::<Vec<_>>();
    let stages = dockerfile.stages.iter().map(|stage| {
        let from = &stage.from;
        let from = (from.image.clone(), from.platform.clone(), from.written_name.clone());
        (from, kinds(&stage.instructions))
    });
    (dockerfile.directives.clone(), kinds(&dockerfile.global_args), stages.collect::<Vec<_>>())
}

/// Whether the plain form can say it: a text that ends in the escape would take the next line in, and quotes beside a
/// here-document decide whether that is one.
fn is_printable(dockerfile: &Dockerfile) -> bool {
    let kinds = dockerfile.stages.iter().flat_map(|stage| &stage.instructions);
    let plain = kinds.map(|instruction| &instruction.kind).all(|kind| match kind {
        InstructionKind::Copy(copy) | InstructionKind::Add(Add { copy, .. }) => is_plain(copy),
        _ => true,
    });
    plain && !print(dockerfile).lines().any(|line| line.trim_end().ends_with(['\\', '`']))
}

fn is_plain(copy: &Copy) -> bool {
    let words = copy.sources.iter().map(|source| match source {
        Source::Path(path) => path,
        Source::Heredoc(heredoc) => &heredoc.name,
    });
    let odd = |word: &String| word.contains(['"', '\'', '\\', '`', '<']);
    let heredocs = copy.sources.iter().any(|source| matches!(source, Source::Heredoc(_)));
    !heredocs || !words.chain([&copy.destination]).any(odd)
}

fn check(first: &Dockerfile, source: &str) {
    let printed = print(first);
    let again = parse("Dockerfile", printed.as_bytes())
        .unwrap_or_else(|errors| panic!("{source}\nis printed as\n{printed}\n{errors:?}"))
        .dockerfile;
    assert_eq!(
        format!("{:#?}", meaning(&again)),
        format!("{:#?}", meaning(first)),
        "{source}\nis printed as\n{printed}"
    );
    assert_eq!(print(&again), printed, "{source}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn soups_printed_mean_the_same(lines in proptest::collection::vec(soup(), 0..6)) {
        let text = format!("FROM x\n{}\n", lines.join("\n"));
        if let Ok(parsed) = parse("Dockerfile", text.as_bytes()) {
            prop_assume!(is_printable(&parsed.dockerfile));
            check(&parsed.dockerfile, &text);
        }
    }
}

#[test]
fn an_escape_at_the_end_of_a_key_is_printed_as_such() {
    let text = "FROM x\nENV \\ \\\n --from=\n";
    check(&parse("Dockerfile", text.as_bytes()).unwrap().dockerfile, text);
}

/// Every Dockerfile of the golden cases and of our own.
#[test]
fn cases_printed_mean_the_same() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests");
    let mut count = 0;
    for folder in ["golden/*/*/Dockerfile", "cases/*/*/Dockerfile"] {
        for path in paths(&root, folder) {
            let Ok(parsed) = parse("Dockerfile", &fs::read(&path).unwrap()) else { continue };
            if is_printable(&parsed.dockerfile) {
                check(&parsed.dockerfile, &path.to_string_lossy());
                count += 1;
            }
        }
    }
    assert!(count > 800, "{count}");
}

fn paths(root: &Path, pattern: &str) -> Vec<std::path::PathBuf> {
    let mut found = vec![root.to_owned()];
    for name in pattern.split('/') {
        found = match name {
            "*" => found
                .iter()
                .filter_map(|at| fs::read_dir(at).ok())
                .flatten()
                .map(|e| e.unwrap().path())
                .collect(),
            name => found.into_iter().map(|at| at.join(name)).filter(|at| at.exists()).collect(),
        };
    }
    found
}
