//! What variables a word sees: the global ARGs, and a stage's ENV and ARG with its parents'.
//!
//! Values are kept because they decide about conditions, paths and ports. A stage shares its parents' maps instead of
//! copying them, so that thousands of stages on one big environment cost no more than what each adds.

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

use crate::{error::Error, image::platform::Platform, request::BuildRequest};

use super::super::{
    ast::{Dockerfile, Escape, InstructionKind},
    words::{Expanded, Expander, WordError},
};
use super::stages::wrong;

/// ARGs that steer an SBOM scan: never in the environment, never undefined.
const SWITCHES: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

pub(super) fn is_switch(name: &str) -> bool {
    SWITCHES.contains(&name)
}

/// ARGs before the first FROM, and the predefined ones.
pub(super) struct Globals {
    values: HashMap<String, String>,
    /// Names of ARG instructions, with a value or without.
    pub declared: HashSet<String>,
}

impl Globals {
    /// The globals of a build for `target`; `given` is the build arguments, which may be left out.
    pub(super) fn new(
        dockerfile: &Dockerfile,
        request: &BuildRequest,
        target: &Platform,
        use_build_args: bool,
    ) -> Result<Self, Error> {
        let mut globals = Globals { values: HashMap::new(), declared: HashSet::new() };
        for (name, value) in predefined(dockerfile, request, target) {
            let value = request.build_args.get(&name).cloned().unwrap_or(value);
            globals.values.insert(name, value);
        }
        let given = |name: &str| request.build_args.get(name).filter(|_| use_build_args).cloned();
        for instruction in &dockerfile.global_args {
            let InstructionKind::Arg(pairs) = &instruction.kind else { continue };
            for pair in pairs {
                let value = match (given(&pair.key), &pair.value) {
                    (None, Some(default)) => {
                        let expanded = globals.expand(default, dockerfile.directives.escape);
                        Some(expanded.map_err(|e| wrong(dockerfile, instruction.span, e))?.value)
                    }
                    (given, _) => given,
                };
                globals.declared.insert(pair.key.clone());
                if let Some(value) = value {
                    globals.values.insert(pair.key.clone(), value);
                }
            }
        }
        Ok(globals)
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    pub(super) fn expand(&self, word: &str, escape: Escape) -> Result<Expanded, WordError> {
        let lookup = |name: &str| self.get(name).map(str::to_owned);
        Expander::new(escape, &lookup).expand(word)
    }

    /// Every name that is declared or predefined, sorted.
    pub(super) fn names(&self) -> Vec<&str> {
        let all = self.values.keys().chain(&self.declared).map(String::as_str);
        let mut names: Vec<&str> = all.collect::<HashSet<_>>().into_iter().collect();
        names.sort_unstable();
        names
    }
}

fn predefined(
    dockerfile: &Dockerfile,
    request: &BuildRequest,
    target: &Platform,
) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (prefix, platform) in [("BUILD", &Platform::host()), ("TARGET", target)] {
        for (suffix, value) in [
            ("PLATFORM", platform.to_string()),
            ("OS", platform.os.clone()),
            ("OSVERSION", platform.os_version.clone()),
            ("ARCH", platform.architecture.clone()),
            ("VARIANT", platform.variant.clone()),
        ] {
            all.push((format!("{prefix}{suffix}"), value));
        }
    }
    let last = dockerfile.stages.last().and_then(|stage| stage.from.name.as_deref());
    let stage = request.target.as_deref().or(last).unwrap_or("default");
    all.push(("TARGETSTAGE".to_owned(), stage.to_owned()));
    all
}

/// A variable, and when it was set.
struct Variable {
    order: u64,
    value: String,
}

/// A stage's variables.
#[derive(Default)]
pub(super) struct Scope {
    parent: Option<Rc<Scope>>,
    depth: usize,
    /// ENV and ARG of this stage; the later one wins.
    set: HashMap<String, Variable>,
    /// ENV of this stage, and at the bottom of the image: what a child's FROM puts on top again.
    image: HashMap<String, Variable>,
    /// Names of the stage's ARGs, with a value or without.
    declared: HashSet<String>,
    /// The base is not known.
    open: bool,
    order: u64,
}

/// Parents that a look-up walks through; a stage with more gets maps of its own.
const DEPTH_MAX: usize = 64;

impl Scope {
    /// The scope of a stage on an image with these variables, or on one that is not known.
    pub(super) fn of_image(environment: Option<&[String]>) -> Self {
        let mut scope = Scope { open: environment.is_none(), ..Scope::default() };
        for pair in environment.unwrap_or_default() {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            scope.env(name, value);
        }
        if scope.get("PATH").is_none() {
            scope.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        }
        scope
    }

    pub(super) fn of_parent(parent: &Rc<Scope>) -> Self {
        Scope {
            parent: Some(parent.clone()),
            depth: parent.depth + 1,
            open: parent.open,
            order: parent.order,
            ..Scope::default()
        }
    }

    /// The scope as children inherit it.
    pub(super) fn shared(self) -> Rc<Scope> {
        Rc::new(if self.depth < DEPTH_MAX { self } else { self.flattened() })
    }

    fn flattened(self) -> Self {
        let top = Rc::new(self);
        let mut flat = Scope { open: top.open, order: top.order, ..Scope::default() };
        for scope in top.chain() {
            for (into, from) in [(&mut flat.set, &scope.set), (&mut flat.image, &scope.image)] {
                for (name, variable) in from {
                    let Variable { order, value } = variable;
                    into.entry(name.clone())
                        .or_insert_with(|| Variable { order: *order, value: value.clone() });
                }
            }
            flat.declared.extend(scope.declared.iter().cloned());
        }
        flat
    }

    /// This scope and its parents, the nearest first.
    fn chain(&self) -> impl Iterator<Item = &Scope> {
        std::iter::successors(Some(self), |scope| scope.parent.as_deref())
    }

    /// What this stage set; else what a parent's image holds, which FROM puts on top; else what a parent set.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let parents = || self.chain().skip(1);
        let found = self
            .set
            .get(name)
            .or_else(|| parents().find_map(|parent| parent.image.get(name)))
            .or_else(|| parents().find_map(|parent| parent.set.get(name)));
        found.map(|variable| variable.value.as_str())
    }

    fn variable(&mut self, value: &str) -> Variable {
        self.order += 1;
        Variable { order: self.order, value: value.to_owned() }
    }

    pub(super) fn env(&mut self, name: &str, value: &str) {
        let variable = self.variable(value);
        self.image.insert(name.to_owned(), variable);
        let variable = self.variable(value);
        self.set.insert(name.to_owned(), variable);
    }

    /// An ARG; one that is neither given nor has a default only declares its name.
    pub(super) fn arg(&mut self, name: &str, value: Option<&str>) {
        self.declared.insert(name.to_owned());
        if let Some(value) = value.filter(|_| !is_switch(name)) {
            let variable = self.variable(value);
            self.set.insert(name.to_owned(), variable);
        }
    }

    pub(super) fn declares(&self, name: &str) -> bool {
        self.chain().any(|scope| scope.declared.contains(name))
    }

    /// Whether there may be variables that are not known.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// All names with a value: in the order in which they were set, FROM setting the image's again.
    pub(super) fn names(&self) -> Vec<&str> {
        let mut seen = HashSet::new();
        let mut groups: [Vec<(u64, &str)>; 3] = Default::default();
        let own = std::iter::once((2, &self.set));
        let parents = || self.chain().skip(1);
        let images = parents().map(|parent| (1, &parent.image));
        let args = parents().map(|parent| (0, &parent.set));
        for (group, variables) in own.chain(images).chain(args) {
            for (name, variable) in variables {
                if seen.insert(name.as_str()) {
                    groups[group].push((variable.order, name));
                }
            }
        }
        groups.iter_mut().for_each(|group| group.sort_unstable());
        groups.iter().flatten().map(|(_, name)| *name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn env_wins_again_in_a_child() {
        let mut parent = Scope::of_image(Some(&["A=image".to_owned()]));
        parent.env("B", "env");
        parent.arg("B", Some("arg"));
        parent.arg("C", Some("c"));
        assert_eq!(parent.get("B"), Some("arg"));
        let mut child = Scope::of_parent(&parent.shared());
        assert_eq!(
            (child.get("A"), child.get("B"), child.get("C")),
            (Some("image"), Some("env"), Some("c"))
        );
        child.arg("A", Some("mine"));
        assert_eq!(child.get("A"), Some("mine"));
        assert_eq!(child.names(), ["C", "PATH", "B", "A"]);
        assert!(child.declares("C") && !child.declares("PATH"));
    }

    #[test]
    fn deep_chains_are_flattened_and_say_the_same() {
        let mut scope = Scope::of_image(None);
        for stage in 0..1000 {
            scope.env("LAST", &stage.to_string());
            scope.arg(&format!("N{stage}"), Some("x"));
            scope = Scope::of_parent(&scope.shared());
            assert!(scope.depth <= DEPTH_MAX && scope.is_open());
        }
        assert_eq!(scope.get("LAST"), Some("999"));
        assert_eq!(scope.get("N0"), Some("x"));
        assert_eq!(scope.names().len(), 1002);
    }
}
