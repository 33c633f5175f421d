//! The instructions of a stage, one after the other, with the variables that each sees.

use std::{cell::RefCell, rc::Rc};

use crate::{error::Error, image::ImageConfig};

use super::{
    super::{
        ast::{Add, ArgPair, Command, Copy, Instruction, InstructionKind, Pair, Run, Source, Span},
        expose::{self, ExposeError},
        mount,
        words::{Expander, Reason, WordError},
    },
    Known,
    commands::{self, Last},
    copy::{self, Verb},
    linter::{Linter, Local},
    pairs,
    reach::Reach,
    scope::Scope,
    secrets,
    stages::{Origin, Stages},
    variables, workdir,
};

/// Bytes that all words of a file may expand to; far above what people write.
const EXPANDED_BYTES_MAX: usize = 256 << 20;

/// What is to be expanded.
enum Text<'t> {
    Word(&'t str),
    /// The body of a here-document of COPY or ADD.
    Heredoc(&'t str),
}

/// What a stage leaves to its children.
struct Inherited {
    scope: Rc<Scope>,
    has_shell: bool,
    has_workdir: bool,
}

/// Checks the instructions of the wanted stages.
pub(super) fn check(
    stages: &Stages<'_>,
    known: &Known<'_>,
    reach: &Reach,
    wanted: &dyn Fn(usize) -> bool,
    linter: &mut Linter,
) -> Result<(), Error> {
    let mut done: Vec<Option<Inherited>> = Vec::new();
    let mut expanded_bytes = 0;
    for (index, stage) in stages.dockerfile.stages.iter().enumerate() {
        if !wanted(index) {
            done.push(None);
            continue;
        }
        let mut work = Work::new(stages, known, start(stages, known, index, &done), linter);
        work.expanded_bytes = expanded_bytes;
        for instruction in reach.triggers(index).iter().chain(&stage.instructions) {
            work.instruction(instruction)?;
        }
        expanded_bytes = work.expanded_bytes;
        done.push(Some(work.finish()));
    }
    Ok(())
}

/// The state behind a stage's FROM.
fn start(
    stages: &Stages<'_>,
    known: &Known<'_>,
    index: usize,
    done: &[Option<Inherited>],
) -> (Scope, bool, bool) {
    let of_config = |config: Option<&ImageConfig>| {
        let environment = config.map(|config| config.config.env.as_slice());
        let has_shell = config.is_some_and(|config| !config.config.shell.is_empty());
        (Scope::of_image(environment), has_shell, false)
    };
    match stages.origin(index) {
        Origin::Plain => (Scope::of_image(Some(&[])), false, false),
        Origin::Image(image) | Origin::NamedImage(image) => of_config(known.images.get(image)),
        Origin::Stage(parent) => match done.get(*parent).and_then(Option::as_ref) {
            Some(parent) => (Scope::of_parent(&parent.scope), parent.has_shell, parent.has_workdir),
            None => of_config(None),
        },
    }
}

/// One stage being checked.
struct Work<'w> {
    stages: &'w Stages<'w>,
    known: &'w Known<'w>,
    linter: &'w mut Linter,
    scope: Scope,
    has_shell: bool,
    has_workdir: bool,
    last: Last,
    expanded_bytes: usize,
}

impl<'w> Work<'w> {
    fn new(
        stages: &'w Stages<'w>,
        known: &'w Known<'w>,
        (scope, has_shell, has_workdir): (Scope, bool, bool),
        linter: &'w mut Linter,
    ) -> Self {
        let (last, expanded_bytes) = (Last::default(), 0);
        Work { stages, known, linter, scope, has_shell, has_workdir, last, expanded_bytes }
    }

    fn finish(self) -> Inherited {
        let Work { scope, has_shell, has_workdir, .. } = self;
        Inherited { scope: scope.shared(), has_shell, has_workdir }
    }

    fn instruction(&mut self, instruction: &Instruction) -> Result<(), Error> {
        let local = &Local::of(&instruction.comments);
        let span = instruction.span;
        match &instruction.kind {
            InstructionKind::Arg(pairs) => self.arg(pairs, span, local)?,
            InstructionKind::Env(pairs) => self.env(instruction, pairs, local)?,
            InstructionKind::Label(pairs) => {
                self.pairs(pairs, span, local)?;
                for pair in pairs {
                    pairs::check(instruction, pair, local, self.linter);
                }
            }
            InstructionKind::Run(run) => self.run(run, span, local)?,
            InstructionKind::Copy(copy) => self.copy(copy, span, local)?,
            InstructionKind::Add(add) => self.add(add, span, local)?,
            InstructionKind::Workdir(path) => self.workdir(path, span, local)?,
            InstructionKind::User(word) | InstructionKind::Stopsignal(word) => {
                self.expand(word, span, local)?;
            }
            InstructionKind::Volume(words) => self.expand_all(words, span, local)?,
            InstructionKind::Expose(words) => self.expose(words, span, local)?,
            InstructionKind::Cmd(command) => {
                commands::check_once(instruction, &mut self.last.cmd, local, self.linter);
                self.form(instruction, command, local);
            }
            InstructionKind::Entrypoint(command) => {
                commands::check_once(instruction, &mut self.last.entrypoint, local, self.linter);
                self.form(instruction, command, local);
            }
            InstructionKind::Healthcheck(_) => {
                commands::check_once(instruction, &mut self.last.healthcheck, local, self.linter);
            }
            InstructionKind::Shell(_) => self.has_shell = true,
            InstructionKind::Maintainer(_) | InstructionKind::Onbuild(_) => {}
        }
        Ok(())
    }

    fn form(&mut self, instruction: &Instruction, command: &Command, local: &Local) {
        commands::check_form(instruction, command, self.has_shell, local, self.linter);
    }

    fn expand(&mut self, word: &str, span: Span, local: &Local) -> Result<String, Error> {
        self.expand_text(Text::Word(word), span, local)
    }

    fn expand_text(&mut self, text: Text<'_>, span: Span, local: &Local) -> Result<String, Error> {
        let lookup = |name: &str| self.scope.get(name).map(str::to_owned);
        let expanded = match text {
            Text::Word(word) => self.expander(&lookup).expand(word),
            Text::Heredoc(body) => Expander::heredoc(&lookup).expand(body),
        };
        let expanded = match expanded {
            Err(error) if self.may_be_set(&error) => return Ok(String::new()),
            expanded => expanded.map_err(|error| self.stages.wrong(span, error))?,
        };
        variables::check(&expanded.unmatched, &self.scope, span, local, self.linter);
        self.expanded_bytes += expanded.value.len();
        if self.expanded_bytes > EXPANDED_BYTES_MAX {
            let title =
                format!("the Dockerfile's words expand to more than {EXPANDED_BYTES_MAX} bytes");
            return Err(self.stages.refuse(span, title));
        }
        Ok(expanded.value)
    }

    fn expander<'l>(&self, lookup: &'l dyn Fn(&str) -> Option<String>) -> Expander<'l> {
        Expander::new(self.stages.dockerfile.directives.escape, lookup)
    }

    /// Whether `${name:?}` may have a value after all, from a base that is not known.
    fn may_be_set(&self, error: &WordError) -> bool {
        self.scope.is_open() && matches!(error.reason, Reason::Required { .. })
    }

    fn expand_all(&mut self, words: &[String], span: Span, local: &Local) -> Result<(), Error> {
        words.iter().try_for_each(|word| self.expand(word, span, local).map(drop))
    }

    fn pairs(
        &mut self,
        pairs: &[Pair],
        span: Span,
        local: &Local,
    ) -> Result<Vec<(String, String)>, Error> {
        let expand = |pair: &Pair| {
            let key = self.expand(&pair.key, span, local)?;
            Ok((key, self.expand(&pair.value, span, local)?))
        };
        pairs.iter().map(expand).collect()
    }

    fn env(
        &mut self,
        instruction: &Instruction,
        pairs: &[Pair],
        local: &Local,
    ) -> Result<(), Error> {
        let expanded = self.pairs(pairs, instruction.span, local)?;
        for (pair, (name, value)) in pairs.iter().zip(&expanded) {
            pairs::check(instruction, pair, local, self.linter);
            secrets::check("ENV", name, instruction.span, local, self.linter);
            self.scope.env(name, value);
        }
        Ok(())
    }

    /// Each ARG sees the ones before it, in one instruction too. A default that is not used is not looked at.
    fn arg(&mut self, pairs: &[ArgPair], span: Span, local: &Local) -> Result<(), Error> {
        for pair in pairs {
            secrets::check("ARG", &pair.key, span, local, self.linter);
            let given = self.stages.request.build_args.get(&pair.key);
            let value = match (given, &pair.value) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(self.expand(default, span, local)?),
                (None, None) => self.stages.globals.get(&pair.key).map(str::to_owned),
            };
            self.scope.arg(&pair.key, value.as_deref());
        }
        Ok(())
    }

    fn workdir(&mut self, path: &str, span: Span, local: &Local) -> Result<(), Error> {
        let path = self.expand(path, span, local)?;
        if !std::mem::replace(&mut self.has_workdir, true) {
            workdir::check(&path, span, local, self.linter);
        }
        Ok(())
    }

    fn run(&mut self, run: &Run, span: Span, local: &Local) -> Result<(), Error> {
        for text in &run.mounts {
            let unmatched = RefCell::new(Vec::new());
            let lookup = |name: &str| self.scope.get(name).map(str::to_owned);
            let expander = self.expander(&lookup);
            let expand = |value: &str| {
                let expanded = expander.expand(value)?;
                unmatched.borrow_mut().push(expanded.unmatched);
                Ok(expanded.value)
            };
            let parsed = mount::parse(text, &expand);
            let unmatched = unmatched.into_inner();
            for names in &unmatched {
                variables::check(names, &self.scope, span, local, self.linter);
            }
            match parsed {
                // A variable of an unknown base may be what makes it right.
                Err(_) if self.scope.is_open() && text.contains('$') => {}
                parsed => drop(parsed.map_err(|error| self.stages.wrong(span, error))?),
            }
        }
        Ok(())
    }

    fn expose(&mut self, words: &[String], span: Span, local: &Local) -> Result<(), Error> {
        for word in words {
            let lookup = |name: &str| self.scope.get(name).map(str::to_owned);
            let expander = self.expander(&lookup);
            let ports = match expander.expand_words(word) {
                Err(error) if self.may_be_set(&error) => continue,
                ports => ports.map_err(|error| self.stages.wrong(span, error))?,
            };
            let is_certain = !self.scope.is_open() || !word.contains('$');
            for port in ports {
                let parsed = expose::parse(&port);
                let refused_first = matches!(
                    parsed,
                    Err(ExposeError::NoPort { .. } | ExposeError::Protocol { .. })
                );
                if !refused_first {
                    super::expose::check(&port, span, local, self.linter);
                }
                if let Err(error) = parsed
                    && is_certain
                {
                    return Err(self.stages.wrong(span, error));
                }
            }
        }
        Ok(())
    }

    fn copy(&mut self, copy: &Copy, span: Span, local: &Local) -> Result<(), Error> {
        self.expand_all(&[&copy.chown, &copy.chmod].map(flag), span, local)?;
        let from_context = copy.from.is_none();
        self.files(copy, Verb::Copy, from_context, span, local)
    }

    fn add(&mut self, add: &Add, span: Span, local: &Local) -> Result<(), Error> {
        let flags = [&add.copy.chown, &add.copy.chmod, &add.checksum].map(flag);
        self.expand_all(&flags, span, local)?;
        self.files(&add.copy, Verb::Add, true, span, local)
    }

    /// Paths, the destination, then here-documents: BuildKit's order.
    fn files(
        &mut self,
        files: &Copy,
        verb: Verb,
        from_context: bool,
        span: Span,
        local: &Local,
    ) -> Result<(), Error> {
        let mut paths = Vec::new();
        for source in &files.sources {
            if let Source::Path(word) = source {
                paths.push(self.expand(word, span, local)?);
            }
        }
        self.expand(&files.destination, span, local)?;
        for source in &files.sources {
            if let Source::Heredoc(heredoc) = source
                && heredoc.expand
            {
                self.expand_text(Text::Heredoc(&heredoc.content), span, local)?;
            }
        }
        if let Some(ignored) = self.known.ignored.filter(|_| from_context) {
            for path in &paths {
                copy::check(verb, path, ignored, span, local, self.linter);
            }
        }
        Ok(())
    }
}

/// A flag's value; one that is not given expands to nothing.
fn flag(value: &Option<String>) -> String {
    value.clone().unwrap_or_default()
}
