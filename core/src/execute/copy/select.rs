//! Which files of its sources a COPY or ADD takes (rules.md section 2, Sources).

use crate::{
    context::{ContextError, Glob, Matched, Node, Patterns, SourceTree, has_wildcard, resolve},
    tree::{EntryPath, Kind, LastLink, Metadata, ResolveError},
};

use super::{CopyError, CopyRequest, Source, SourcePath};

/// What a COPY or ADD takes: the sources that its words name or match, in order, each with the files in it.
pub struct Selected<'a> {
    pub(in crate::execute) trees: Vec<&'a dyn SourceTree>,
    pub(in crate::execute) sources: Vec<SelectedSource>,
}

/// One source: a file, or a directory with what is taken of it.
#[derive(Clone, Debug)]
pub struct SelectedSource {
    /// Which tree it is of, by number.
    pub(in crate::execute) tree: usize,
    /// The last part of its name as written or matched.
    pub name: Vec<u8>,
    /// Its path in the tree, links followed.
    pub root: EntryPath,
    pub node: Node,
    /// Whether an archive here is unpacked by ADD.
    pub(in crate::execute) may_unpack: bool,
    /// What lies below a directory, parents before what they hold.
    pub entries: Vec<SelectedEntry>,
}

/// One name below a copied directory.
#[derive(Clone, Debug)]
pub struct SelectedEntry {
    /// Relative to the copied directory.
    pub below: EntryPath,
    pub node: Node,
    /// A directory that is taken only because something in it is.
    pub leading: bool,
}

/// Finds what each source names. Reads directories and capabilities, no content.
pub fn select<'a>(
    sources: &[Source<'a>],
    request: &CopyRequest,
) -> Result<Selected<'a>, CopyError> {
    let mut selected = Selected { trees: Vec::new(), sources: Vec::new() };
    for source in sources {
        let number = selected.tree_number(source.tree);
        let found = match &source.path {
            SourcePath::Pattern(pattern) => {
                selector(source, pattern, request, number)?.select(pattern, request)?
            }
            SourcePath::Url(path) | SourcePath::Literal(path) => {
                let rules = Rules { include: None, exclude: exclude_patterns(request)? };
                let selector = Selector { tree: source.tree, number, rules };
                vec![selector.take(path, path.file_name())?]
            }
        };
        selected.sources.extend(
            found
                .into_iter()
                .map(|found| SelectedSource { may_unpack: source.may_unpack, ..found }),
        );
    }
    Ok(selected)
}

/// Whether what a source names literally is there. Wildcards are only parsed: they may match nothing.
pub fn check_named(
    tree: &dyn SourceTree,
    pattern: &str,
    request: &CopyRequest,
) -> Result<(), CopyError> {
    let path = SourcePath::Pattern(pattern.to_owned());
    let source = Source { tree, path, may_unpack: false };
    let selector = selector(&source, pattern, request, 0)?;
    if request.parents {
        return selector.require(pattern);
    }
    let path = EntryPath::clean(pattern.as_bytes()).map_err(ResolveError::from)?;
    if let Some(at) = path.components().position(has_wildcard) {
        let rest: Vec<&[u8]> = path.components().skip(at).collect();
        return parse_wildcard(&rest.join(&b'/'), &path).map(drop);
    }
    let root = resolve(tree, &path, LastLink::Follow)?;
    match tree.lookup(&root)? {
        Some(_) => Ok(()),
        None => Err(CopyError::NotFound(path)),
    }
}

fn parse_wildcard(rest: &[u8], whole: &EntryPath) -> Result<Glob, CopyError> {
    let wrong = |_| CopyError::Wildcard(String::from_utf8_lossy(whole.as_bytes()).into_owned());
    Glob::parse(rest).map_err(wrong)
}

impl<'a> Selected<'a> {
    /// Sources of one tree share its number, so that its contents are asked for once.
    fn tree_number(&mut self, tree: &'a dyn SourceTree) -> usize {
        let same = |other: &&dyn SourceTree| std::ptr::addr_eq(*other, tree);
        if let Some(number) = self.trees.iter().position(same) {
            return number;
        }
        self.trees.push(tree);
        self.trees.len() - 1
    }
}

/// What of a directory is taken.
struct Rules {
    /// `--parents`: only what matches.
    include: Option<Patterns>,
    exclude: Patterns,
}

struct Selector<'a> {
    tree: &'a dyn SourceTree,
    number: usize,
    rules: Rules,
}

fn exclude_patterns(request: &CopyRequest) -> Result<Patterns, CopyError> {
    let lines = request.exclude.iter().map(String::as_bytes);
    Patterns::parse(lines).map_err(CopyError::Exclude)
}

fn selector<'a>(
    source: &Source<'a>,
    pattern: &str,
    request: &CopyRequest,
    number: usize,
) -> Result<Selector<'a>, CopyError> {
    let include = request.parents.then(|| {
        let (_, below) = split_pivot(pattern);
        let cleaned = EntryPath::clean(below.as_bytes()).map_err(ResolveError::from)?;
        Patterns::parse([cleaned.as_bytes()]).map_err(CopyError::Parents)
    });
    let rules = Rules { include: include.transpose()?, exclude: exclude_patterns(request)? };
    Ok(Selector { tree: source.tree, number, rules })
}

/// `--parents`: what stands before `/./`, and the path that is kept.
fn split_pivot(pattern: &str) -> (&str, &str) {
    pattern.split_once("/./").unwrap_or(("/", pattern))
}

impl Selector<'_> {
    fn select(
        &self,
        pattern: &str,
        request: &CopyRequest,
    ) -> Result<Vec<SelectedSource>, CopyError> {
        let root = if request.parents { split_pivot(pattern).0 } else { pattern };
        if request.parents {
            self.require(pattern)?;
        }
        let cleaned = EntryPath::clean(root.as_bytes()).map_err(ResolveError::from)?;
        let paths = self.expand(&cleaned)?;
        paths.iter().map(|path| self.take(path, path.file_name())).collect()
    }

    /// `--parents` without any wildcard names something that must be there; no link below the root is followed.
    fn require(&self, pattern: &str) -> Result<(), CopyError> {
        let (root, below) = split_pivot(pattern);
        if has_wildcard(root.as_bytes()) || has_wildcard(below.as_bytes()) {
            return Ok(());
        }
        let root = EntryPath::clean(root.as_bytes()).map_err(ResolveError::from)?;
        let below = EntryPath::clean(below.as_bytes()).map_err(ResolveError::from)?;
        let root = resolve(self.tree, &root, LastLink::Follow)?;
        let whole = root.join(&below);
        match self.tree.lookup(&whole)? {
            Some(_) => Ok(()),
            None => Err(CopyError::NotFound(whole)),
        }
    }

    /// The paths that a source's words stand for: itself, or what its wildcards match.
    fn expand(&self, pattern: &EntryPath) -> Result<Vec<EntryPath>, CopyError> {
        let components: Vec<&[u8]> = pattern.components().collect();
        let Some(at) = components.iter().position(|part| has_wildcard(part)) else {
            return Ok(vec![pattern.clone()]);
        };
        let front = EntryPath::clean(&components[..at].join(&b'/')).map_err(ResolveError::from)?;
        let rest = components[at..].join(&b'/');
        let glob = parse_wildcard(&rest, pattern)?;
        let front = resolve(self.tree, &front, LastLink::Follow)?;
        let node = self.tree.lookup(&front)?.ok_or_else(|| CopyError::NotFound(front.clone()))?;
        if !node.kind.is_directory() {
            return Ok(Vec::new());
        }
        // A class may match a slash; nothing else crosses one.
        let depth_max = if glob.has_class() { usize::MAX } else { components.len() - at };
        self.walk_matches(&front, &glob, depth_max)
    }

    /// What matches below `front`, in order. What matches is not entered, nor is a link. Directories wait on a list of
    /// their own: a context may be deeper than a stack.
    fn walk_matches(
        &self,
        front: &EntryPath,
        glob: &Glob,
        depth_max: usize,
    ) -> Result<Vec<EntryPath>, CopyError> {
        let mut matches = Vec::new();
        let mut open = vec![self.tree.children(front)?.into_iter()];
        while let Some(children) = open.last_mut() {
            let Some((path, node)) = children.next() else {
                open.pop();
                continue;
            };
            let relative = path.strip_prefix(front).unwrap_or_default();
            if glob.matches(relative.as_bytes()) {
                matches.push(path);
            } else if node.kind.is_directory() && open.len() < depth_max {
                open.push(self.tree.children(&path)?.into_iter());
            }
        }
        Ok(matches)
    }

    /// One source, its links followed.
    fn take(&self, path: &EntryPath, name: &[u8]) -> Result<SelectedSource, CopyError> {
        let root = resolve(self.tree, path, LastLink::Follow)?;
        let node = self.tree.lookup(&root)?.ok_or_else(|| CopyError::NotFound(path.clone()))?;
        let mut taken = SelectedSource {
            tree: self.number,
            name: name.to_vec(),
            node: self.with_capability(&root, node)?,
            root,
            may_unpack: false,
            entries: Vec::new(),
        };
        if taken.node.kind.is_directory() {
            taken.entries = Walk::new(self, &taken.root).run()?;
        }
        Ok(taken)
    }

    fn with_capability(&self, path: &EntryPath, node: Node) -> Result<Node, CopyError> {
        let capability = match node.kind {
            Kind::File { .. } => self.tree.capability(path, &node)?,
            _ => None,
        };
        Ok(Node { metadata: Metadata { capability, ..node.metadata }, ..node })
    }
}

/// What the patterns said of a directory.
#[derive(Default)]
struct Both {
    include: Option<Matched>,
    exclude: Option<Matched>,
}

/// A directory that is being walked.
struct Open {
    children: std::vec::IntoIter<(EntryPath, Node)>,
    matched: Both,
    /// Whether it is among the leads, if nothing in it was taken yet.
    leads: bool,
}

/// Collects what is taken below one directory.
struct Walk<'a> {
    selector: &'a Selector<'a>,
    root: &'a EntryPath,
    open: Vec<Open>,
    /// Untaken directories that lead to where the walk is.
    leads: Vec<SelectedEntry>,
    entries: Vec<SelectedEntry>,
}

impl<'a> Walk<'a> {
    fn new(selector: &'a Selector<'a>, root: &'a EntryPath) -> Self {
        Walk { selector, root, open: Vec::new(), leads: Vec::new(), entries: Vec::new() }
    }

    fn run(mut self) -> Result<Vec<SelectedEntry>, CopyError> {
        self.enter(self.root, Both::default(), false)?;
        while let Some(directory) = self.open.last_mut() {
            match directory.children.next() {
                Some((path, node)) => self.child(path, node)?,
                None => {
                    // Still waiting: nothing below was taken.
                    if self.open.pop().is_some_and(|done| done.leads) {
                        self.leads.pop();
                    }
                }
            }
        }
        Ok(self.entries)
    }

    fn enter(&mut self, path: &EntryPath, matched: Both, leads: bool) -> Result<(), CopyError> {
        let children = self.selector.tree.children(path)?.into_iter();
        self.open.push(Open { children, matched, leads });
        Ok(())
    }

    fn child(&mut self, path: EntryPath, node: Node) -> Result<(), CopyError> {
        let below = path.strip_prefix(self.root).unwrap_or_default();
        let is_directory = node.kind.is_directory();
        let (is_included, excluded, matched) = self.matched(&below);
        let taken = is_included && !excluded;
        if taken {
            let node = self.selector.with_capability(&path, node)?;
            self.entries.append(&mut self.leads);
            self.open.iter_mut().for_each(|directory| directory.leads = false);
            self.entries.push(SelectedEntry { below, node, leading: false });
        } else if is_directory && self.may_hold(&below, is_included, excluded) {
            self.leads.push(SelectedEntry { below, node, leading: true });
        } else {
            return Ok(());
        }
        match is_directory {
            true => self.enter(&path, matched, !taken),
            false => Ok(()),
        }
    }

    /// Whether a path is included, whether it is excluded, and what its own children need to know.
    fn matched(&self, below: &EntryPath) -> (bool, bool, Both) {
        let Rules { include, exclude } = &self.selector.rules;
        let parent = self.open.last().map(|directory| &directory.matched);
        let name = below.as_bytes();
        let included = include.as_ref().map(|patterns| {
            patterns.matches(name, parent.and_then(|parent| parent.include.as_ref()))
        });
        let (excluded, exclude_info) =
            exclude.matches(name, parent.and_then(|parent| parent.exclude.as_ref()));
        let is_included = included.as_ref().is_none_or(|(matched, _)| *matched);
        let matched = Both { include: included.map(|(_, each)| each), exclude: Some(exclude_info) };
        (is_included, excluded, matched)
    }

    /// Whether something below an untaken directory can be taken.
    fn may_hold(&self, below: &EntryPath, is_included: bool, excluded: bool) -> bool {
        let Rules { include, exclude } = &self.selector.rules;
        let name = below.as_bytes();
        let reachable = !excluded || exclude.has_exceptions() && exclude.may_except_below(name);
        let may_include = |patterns: &Patterns| patterns.may_include_below(name);
        reachable && (is_included || include.as_ref().is_some_and(may_include))
    }
}

impl From<ContextError> for CopyError {
    fn from(error: ContextError) -> Self {
        match error {
            ContextError::Resolve(error) => CopyError::Resolve(error),
            other => CopyError::Source(other),
        }
    }
}
