//! Docker's profile as it is written, and which of its rules hold for a step.

use serde::Deserialize;

use crate::execute::sandbox::SandboxError;

/// The profile that Docker and BuildKit give every container.
const DOCKER_DEFAULT: &str = include_str!("docker-default-seccomp.json");

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Profile {
    default_action: String,
    default_errno_ret: u32,
    syscalls: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Vec<ArgumentEntry>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArgumentEntry {
    index: usize,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// What a filter does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Allow,
    Errno(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// The argument masked with this equals the value.
    MaskedEqual(u64),
}

/// A condition on one of the six arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Argument {
    pub index: usize,
    pub comparison: Comparison,
    pub value: u64,
}

/// One rule that holds: all `arguments` must be met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub name: String,
    pub arguments: Vec<Argument>,
    pub action: Action,
}

/// Where the rules are to hold.
pub(super) struct Situation<'a> {
    /// Go's name of the architecture (`amd64`, `arm64`).
    pub architecture: &'a str,
    /// Names such as `CAP_CHOWN`.
    pub capabilities: &'a [&'a str],
    /// Major and minor version.
    pub kernel: (u32, u32),
}

impl Profile {
    pub fn docker_default() -> Result<Self, SandboxError> {
        let profile: Profile = serde_json::from_str(DOCKER_DEFAULT)
            .map_err(|error| SandboxError::Seccomp { problem: error.to_string() })?;
        if profile.default_action != "SCMP_ACT_ERRNO" {
            return Err(unknown("default action", &profile.default_action));
        }
        Ok(profile)
    }

    /// What happens to a call that no rule names.
    pub fn default_action(&self) -> Action {
        Action::Errno(self.default_errno_ret)
    }

    /// The rules that hold in `situation`, one a name, in the profile's order.
    pub fn rules(&self, situation: &Situation<'_>) -> Result<Vec<Rule>, SandboxError> {
        let mut rules = Vec::new();
        for entry in self.syscalls.iter().filter(|entry| entry.holds(situation)) {
            let action = entry.action(self.default_errno_ret)?;
            let arguments =
                entry.args.iter().map(ArgumentEntry::resolve).collect::<Result<Vec<_>, _>>()?;
            rules.extend(entry.names.iter().map(|name| Rule {
                name: name.clone(),
                arguments: arguments.clone(),
                action,
            }));
        }
        Ok(rules)
    }

    #[cfg(test)]
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.syscalls.iter().flat_map(|entry| entry.names.iter().map(String::as_str))
    }
}

impl Entry {
    fn holds(&self, situation: &Situation<'_>) -> bool {
        let has_capability = |name: &String| situation.capabilities.contains(&name.as_str());
        let is_architecture = |name: &String| name == situation.architecture;
        let (wanted, unwanted) = (&self.includes, &self.excludes);
        (wanted.arches.is_empty() || wanted.arches.iter().any(is_architecture))
            && !unwanted.arches.iter().any(is_architecture)
            && wanted.caps.iter().all(has_capability)
            && !unwanted.caps.iter().any(has_capability)
            && wanted.min_kernel.as_deref().is_none_or(|least| situation.kernel >= version(least))
            && unwanted.min_kernel.as_deref().is_none_or(|least| situation.kernel < version(least))
    }

    fn action(&self, default_errno: u32) -> Result<Action, SandboxError> {
        match self.action.as_str() {
            "SCMP_ACT_ALLOW" => Ok(Action::Allow),
            "SCMP_ACT_ERRNO" => Ok(Action::Errno(self.errno_ret.unwrap_or(default_errno))),
            other => Err(unknown("action", other)),
        }
    }
}

impl ArgumentEntry {
    fn resolve(&self) -> Result<Argument, SandboxError> {
        let (comparison, value) = match self.op.as_str() {
            "SCMP_CMP_EQ" => (Comparison::Equal, self.value),
            "SCMP_CMP_NE" => (Comparison::NotEqual, self.value),
            "SCMP_CMP_LT" => (Comparison::Less, self.value),
            "SCMP_CMP_LE" => (Comparison::LessOrEqual, self.value),
            "SCMP_CMP_GT" => (Comparison::Greater, self.value),
            "SCMP_CMP_GE" => (Comparison::GreaterOrEqual, self.value),
            "SCMP_CMP_MASKED_EQ" => (Comparison::MaskedEqual(self.value), self.value_two),
            other => return Err(unknown("comparison", other)),
        };
        if self.index > 5 {
            return Err(unknown("argument", &self.index.to_string()));
        }
        Ok(Argument { index: self.index, comparison, value })
    }
}

fn unknown(what: &str, name: &str) -> SandboxError {
    SandboxError::Seccomp { problem: format!("unknown {what} {name}") }
}

/// Major and minor number of a kernel release such as `6.1.0-49-amd64`; what can't be read is 0.
pub(super) fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
