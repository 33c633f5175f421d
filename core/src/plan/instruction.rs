//! What each instruction does to its stage's state, and the step it makes.

use std::sync::Arc;

use crate::{
    dockerfile::{
        ast::{
            Add, ArgPair, Command, Copy, Healthcheck, Instruction, InstructionKind, Pair, Run,
            Source, Span,
        },
        command, expose,
        mount::{self, MountType},
    },
    error::Error,
    fetch::{self, AddSource},
    image::{HealthConfig, config::Empty},
};

use super::{
    CopyOp, CopySource, Network, Op, PlannedMount, RunOp, TreeSource, WorkdirOp,
    dispatch::StageWork, go, references::Named, scope,
};

impl StageWork<'_, '_> {
    pub fn instruction(&mut self, instruction: &Instruction) -> Result<(), Error> {
        let span = instruction.span;
        match &instruction.kind {
            InstructionKind::Arg(pairs) => self.arg(instruction, pairs),
            InstructionKind::Env(pairs) => self.env(instruction, pairs),
            InstructionKind::Label(pairs) => self.label(instruction, pairs),
            InstructionKind::Run(run) => self.run(instruction, run),
            InstructionKind::Copy(copy) => self.copy(instruction, copy),
            InstructionKind::Add(add) => self.add(instruction, add),
            InstructionKind::Workdir(path) => self.workdir(instruction, path),
            InstructionKind::User(user) => {
                let user = self.expand(user, span)?;
                self.state.container().user.clone_from(&user);
                self.metadata(instruction, format!("USER {user}"))
            }
            InstructionKind::Expose(words) => self.expose(instruction, words),
            InstructionKind::Volume(words) => self.volume(instruction, words),
            InstructionKind::Cmd(command) => self.cmd(instruction, command),
            InstructionKind::Entrypoint(command) => self.entrypoint(instruction, command),
            InstructionKind::Shell(words) => {
                self.state.container().shell.clone_from(words);
                self.metadata(instruction, format!("SHELL {}", go::plain_list(words)))
            }
            InstructionKind::Healthcheck(check) => self.healthcheck(instruction, check),
            InstructionKind::Stopsignal(signal) => self.stop_signal(instruction, signal),
            InstructionKind::Maintainer(author) => {
                Arc::make_mut(&mut self.state.config).author.clone_from(author);
                self.metadata(instruction, format!("MAINTAINER {author}"))
            }
            InstructionKind::Onbuild(trigger) => {
                self.state.container().on_build.push(trigger.clone());
                self.commit_silently(instruction);
                Ok(())
            }
        }
    }

    fn metadata(&mut self, instruction: &Instruction, created_by: String) -> Result<(), Error> {
        self.commit(instruction, Op::Metadata, created_by);
        Ok(())
    }

    /// CLI value, then the stage's default, then the global's value.
    fn arg(&mut self, instruction: &Instruction, pairs: &[ArgPair]) -> Result<(), Error> {
        let mut shown = Vec::new();
        for pair in pairs {
            // Each of several ARGs in a line sees those before it.
            let given = self.planner.request.build_args.get(&pair.key).cloned();
            let value = match (given, &pair.value) {
                (Some(given), _) => Some(given),
                (None, Some(default)) => Some(self.expand(default, instruction.span)?),
                (None, None) => self.planner.globals.get(&pair.key).map(str::to_owned),
            };
            shown.push(match &value {
                Some(value) => format!("{}={value}", pair.key),
                None => pair.key.clone(),
            });
            self.declare(ArgPair { key: pair.key.clone(), value });
        }
        self.metadata(instruction, format!("ARG {}", shown.join(" ")))
    }

    fn pairs(&self, pairs: &[Pair], span: Span) -> Result<Vec<(String, String)>, Error> {
        let expand =
            |pair: &Pair| Ok((self.expand(&pair.key, span)?, self.expand(&pair.value, span)?));
        pairs.iter().map(expand).collect()
    }

    fn env(&mut self, instruction: &Instruction, pairs: &[Pair]) -> Result<(), Error> {
        let pairs = self.pairs(pairs, instruction.span)?;
        for (name, value) in &pairs {
            self.state.environment.set_image(name, value);
        }
        self.metadata(instruction, format!("ENV {}", join_pairs(&pairs)))
    }

    fn label(&mut self, instruction: &Instruction, pairs: &[Pair]) -> Result<(), Error> {
        let pairs = self.pairs(pairs, instruction.span)?;
        self.state.container().labels.extend(pairs.iter().cloned());
        self.metadata(instruction, format!("LABEL {}", join_pairs(&pairs)))
    }

    /// The words that a shell form becomes: SHELL, or `/bin/sh -c`, and the text.
    fn with_shell(&self, text: &str) -> Vec<String> {
        let mut words = self.state.config.config.shell.clone();
        if words.is_empty() {
            words = vec!["/bin/sh".into(), "-c".into()];
        }
        words.push(text.to_owned());
        words
    }

    fn command(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Shell(text) => self.with_shell(text),
            Command::Exec(words) => words.clone(),
        }
    }

    fn cmd(&mut self, instruction: &Instruction, command: &Command) -> Result<(), Error> {
        let words = self.command(command);
        let created_by = format!("CMD {}", go::quote_list(&words));
        let container = self.state.container();
        container.cmd = Some(words);
        container.args_escaped = true;
        self.state.command_set = true;
        self.metadata(instruction, created_by)
    }

    fn entrypoint(&mut self, instruction: &Instruction, command: &Command) -> Result<(), Error> {
        let words = self.command(command);
        let created_by = format!("ENTRYPOINT {}", go::quote_list(&words));
        self.state.container().entrypoint = Some(words);
        if !self.state.command_set {
            self.state.container().cmd = None;
        }
        self.metadata(instruction, created_by)
    }

    fn healthcheck(&mut self, instruction: &Instruction, check: &Healthcheck) -> Result<(), Error> {
        let created_by = format!(
            "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
            go::plain_list(&check.test),
            go::duration(check.interval),
            go::duration(check.timeout),
            go::duration(check.start_period),
            go::duration(check.start_interval),
            check.retries
        );
        self.state.container().healthcheck = Some(HealthConfig {
            test: check.test.clone(),
            interval: check.interval,
            timeout: check.timeout,
            start_period: check.start_period,
            start_interval: check.start_interval,
            retries: check.retries,
        });
        self.metadata(instruction, created_by)
    }

    fn stop_signal(&mut self, instruction: &Instruction, signal: &str) -> Result<(), Error> {
        let signal = self.expand(signal, instruction.span)?;
        crate::dockerfile::signal::validate(&signal)
            .map_err(|error| self.planner.wrong(instruction.span, error))?;
        self.state.container().stop_signal.clone_from(&signal);
        self.metadata(instruction, format!("STOPSIGNAL {signal}"))
    }

    fn expose(&mut self, instruction: &Instruction, words: &[String]) -> Result<(), Error> {
        // BuildKit sorts the words as written, and expands them then.
        let mut words = words.to_vec();
        words.sort();
        let mut expanded = Vec::new();
        for word in &words {
            let words = self.state.environment.expand_words(word, self.escape());
            expanded.extend(words.map_err(|error| self.planner.wrong(instruction.span, error))?);
        }
        let mut ports = Vec::new();
        for word in &expanded {
            let exposed =
                expose::parse(word).map_err(|error| self.planner.wrong(instruction.span, error))?;
            ports.extend(exposed.entries());
        }
        let exposed = &mut self.state.container().exposed_ports;
        exposed.extend(ports.iter().map(|port| (port.clone(), Empty {})));
        self.metadata(instruction, format!("EXPOSE {}", go::plain_list(&ports)))
    }

    fn volume(&mut self, instruction: &Instruction, words: &[String]) -> Result<(), Error> {
        let volumes = self.expand_all(words, instruction.span)?;
        if volumes.iter().any(String::is_empty) {
            return Err(self
                .planner
                .refuse(instruction.span, "VOLUME specified can not be an empty string"));
        }
        let known = &mut self.state.container().volumes;
        known.extend(volumes.iter().map(|volume| (volume.clone(), Empty {})));
        self.metadata(instruction, format!("VOLUME {}", go::plain_list(&volumes)))
    }

    fn workdir(&mut self, instruction: &Instruction, path: &str) -> Result<(), Error> {
        let path = self.expand(path, instruction.span)?;
        let path = join_directory(&self.state.config.config.working_dir, &path);
        self.state.container().working_dir.clone_from(&path);
        let created_by = format!("WORKDIR {path}");
        let op = match path.as_str() {
            "/" => Op::Metadata,
            _ => Op::Workdir(WorkdirOp { path, user: self.state.config.config.user.clone() }),
        };
        self.commit(instruction, op, created_by);
        Ok(())
    }

    fn run(&mut self, instruction: &Instruction, run: &Run) -> Result<(), Error> {
        let span = instruction.span;
        let request = self.planner.request;
        let insecure = run.security.as_deref() == Some("insecure");
        if insecure && !request.allow_insecure {
            return Err(self.not_allowed("security.insecure", span));
        }
        let build_wide = request.network.as_deref();
        let host = run.network.as_deref() == Some("host") && build_wide != Some("host");
        if host && !request.allow_host_network {
            return Err(self.not_allowed("network.host", span));
        }
        let mounts =
            run.mounts.iter().map(|text| self.mount(text, span)).collect::<Result<Vec<_>, _>>()?;
        let text = command::run_text(run);
        let argv = self.command(&text.command);
        let history = scope::run_history(&argv, &self.state.build_args, &self.state.environment);
        let op = RunOp {
            argv,
            environment: self.state.environment.clone(),
            proxies: self.undeclared_proxies(),
            working_directory: self.state.config.config.working_dir.clone(),
            user: self.state.config.config.user.clone(),
            mounts,
            network: self.network(run.network.as_deref(), span)?,
            insecure,
            script: text.script.map(|script| (script.name, script.content)),
            host_name: self.planner.request.build_args.get("BUILDKIT_SANDBOX_HOSTNAME").cloned(),
        };
        self.commit(instruction, Op::Run(Box::new(op)), format!("RUN {history} # buildkit"));
        Ok(())
    }

    /// What a Dockerfile asks for and only the command line can grant.
    fn not_allowed(&self, entitlement: &str, span: Span) -> Error {
        let hint = format!("if you trust this Dockerfile, add --allow {entitlement}");
        self.planner.refuse(span, format!("{entitlement} is not allowed")).hint(hint)
    }

    fn undeclared_proxies(&self) -> Vec<(String, String)> {
        let mut proxies = scope::proxies(&self.planner.request.build_args);
        proxies.retain(|(name, _)| self.state.environment.get(name).is_none());
        proxies
    }

    fn network(&self, flag: Option<&str>, span: Span) -> Result<Network, Error> {
        let asked = flag.or(self.planner.request.network.as_deref());
        Ok(match asked {
            None | Some("default" | "") => match self.planner.request.network.as_deref() {
                Some("none") if flag.is_none() => Network::None,
                _ => Network::Default,
            },
            Some("none") => Network::None,
            Some("host") => Network::Host,
            Some(other) => {
                return Err(self.planner.refuse(span, format!("invalid network mode {other:?}")));
            }
        })
    }

    fn mount(&mut self, text: &str, span: Span) -> Result<PlannedMount, Error> {
        let expand = |value: &str| self.state.environment.expand(value, self.escape());
        let mount = mount::parse(text, &expand).map_err(|error| {
            let hint = error.hint();
            let error = self.planner.wrong(span, error);
            error.maybe_hint(hint)
        })?;
        let from = match (&mount.from, mount.kind) {
            (Some(name), _) => {
                Some(self.planner.tree_source(Named::Mount(name), self.index, span)?)
            }
            (None, MountType::Bind) => Some(TreeSource::Context(None)),
            (None, _) => None,
        };
        Ok(PlannedMount { mount, from })
    }

    fn copy(&mut self, instruction: &Instruction, copy: &Copy) -> Result<(), Error> {
        let op = self.copy_op(copy, instruction.span)?;
        let created_by = copy_history("COPY", &op);
        self.commit(instruction, Op::Copy(Box::new(op)), created_by);
        Ok(())
    }

    fn add(&mut self, instruction: &Instruction, add: &Add) -> Result<(), Error> {
        let span = instruction.span;
        let mut op = self.copy_op(&add.copy, span)?;
        let created_by = copy_history("ADD", &op);
        op.add = true;
        op.unpack = add.unpack;
        let checksum = add.checksum.as_ref().map(|text| self.expand(text, span)).transpose()?;
        let checksum = checksum.as_deref();
        if checksum.is_some() && op.sources.len() != 1 {
            let title = "checksum can be specified for a single source only";
            return Err(self.planner.refuse(span, title));
        }
        for source in &mut op.sources {
            if let CopySource::Path(path) = source {
                *source = self.add_source(path, add.keep_git_dir, checksum, span)?;
            }
        }
        self.commit(instruction, Op::Copy(Box::new(op)), created_by);
        Ok(())
    }

    /// What a source of ADD is: a path of the context, a file on the network, or a Git repository.
    fn add_source(
        &self,
        text: &str,
        keep_git_dir: Option<bool>,
        checksum: Option<&str>,
        span: Span,
    ) -> Result<CopySource, Error> {
        let wrong = |error: fetch::GitReferenceError| self.planner.wrong(span, error);
        match AddSource::of(text).map_err(wrong)? {
            AddSource::Local if checksum.is_some() => {
                let title = "checksum can't be specified for non-HTTP(S) sources";
                Err(self.planner.refuse(span, title))
            }
            AddSource::Local => Ok(CopySource::Path(text.to_owned())),
            AddSource::Url => {
                let checksum = checksum.map(fetch::checksum::parse_digest).transpose();
                let checksum = checksum.map_err(|error| self.planner.wrong(span, error))?;
                Ok(CopySource::Url { url: text.to_owned(), checksum })
            }
            AddSource::Git(reference) => {
                let reference = reference.with_flags(keep_git_dir, checksum).map_err(wrong)?;
                Ok(CopySource::Git(Box::new(reference)))
            }
        }
    }

    fn copy_op(&mut self, copy: &Copy, span: Span) -> Result<CopyOp, Error> {
        let expanded = |this: &Self, word: &Option<String>| {
            word.as_ref().map(|word| this.expand(word, span)).transpose()
        };
        let from = match &copy.from {
            None => TreeSource::Context(None),
            Some(name) => self.planner.tree_source(Named::Copy(name), self.index, span)?,
        };
        let sources = copy.sources.iter().map(|source| self.copy_source(source, span));
        let op = CopyOp {
            add: false,
            sources: sources.collect::<Result<_, _>>()?,
            from,
            destination: self.expand(&copy.destination, span)?,
            working_directory: self.state.config.config.working_dir.clone(),
            chown: expanded(self, &copy.chown)?.filter(|owner| !owner.is_empty()),
            chmod: expanded(self, &copy.chmod)?.filter(|mode| !mode.is_empty()),
            link: copy.link,
            parents: copy.parents,
            exclude: copy.exclude.clone(),
            unpack: None,
        };
        Ok(op)
    }

    fn copy_source(&self, source: &Source, span: Span) -> Result<CopySource, Error> {
        Ok(match source {
            Source::Path(word) => CopySource::Path(self.expand(word, span)?),
            Source::Heredoc(heredoc) => {
                let content = match heredoc.expand {
                    false => heredoc.content.clone(),
                    true => self
                        .state
                        .environment
                        .expand_heredoc(&heredoc.content)
                        .map_err(|error| self.planner.wrong(span, error))?,
                };
                CopySource::File { name: heredoc.name.clone(), content }
            }
        })
    }
}

fn join_pairs(pairs: &[(String, String)]) -> String {
    pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

fn copy_history(keyword: &str, op: &CopyOp) -> String {
    let mut words = vec![keyword.to_owned()];
    if op.parents {
        words.push("--parents".into());
    }
    words.extend(op.chown.iter().map(|owner| format!("--chown={owner}")));
    words.extend(op.chmod.iter().map(|mode| format!("--chmod={mode}")));
    words.extend(op.sources.iter().map(|source| match source {
        CopySource::Path(path) => fetch::without_password(path),
        CopySource::File { name, .. } => format!("<<{name}"),
        // Histories are made of the words as they were expanded.
        CopySource::Url { url, .. } => fetch::without_password(url),
        CopySource::Git(reference) => reference.remote.url.clone(),
    }));
    words.push(op.destination.clone());
    format!("{} # buildkit", words.join(" "))
}

/// WORKDIR: an absolute one as it is, a relative one below the one before, cleaned (BuildKit's NormalizeWorkdir).
fn join_directory(before: &str, path: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    let whole = format!("{before}/{path}");
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn working_directories_are_joined_and_cleaned() {
        for (before, path, joined) in [
            ("/", "a", "/a"),
            ("/a", "../../b/./c", "/b/c"),
            ("", "x", "/x"),
            ("/a", "/", "/"),
            ("/a", "", "/a"),
            ("/a", "/x//y/../z/", "/x//y/../z/"),
        ] {
            assert_eq!(join_directory(before, path), joined);
        }
    }
}
