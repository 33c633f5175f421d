//! The table of rules, as the Dockerfile frontend documents them.

use std::fmt;

use super::{
    casing, commands, copy, definitions, expose, from_args, names, pairs, platforms, secrets, text,
    variables, workdir,
};

/// A check.
#[derive(PartialEq, Eq)]
pub struct Rule {
    /// The name that `skip=` and `experimental=` use.
    pub name: &'static str,
    pub description: &'static str,
    /// The last part of its page's address; `None` where there is no page.
    pub(super) page: Option<&'static str>,
    /// Runs only where `experimental=` asks for it.
    pub experimental: bool,
}

impl Rule {
    pub(super) const fn new(
        name: &'static str,
        page: &'static str,
        description: &'static str,
    ) -> Self {
        Rule { name, description, page: Some(page), experimental: false }
    }

    /// Where the rule is documented.
    pub fn url(&self) -> Option<String> {
        self.page.map(|page| format!("https://docs.docker.com/go/dockerfile/rule/{page}/"))
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Every rule.
pub static RULES: [&Rule; 22] = [
    &names::STAGE_NAME_CASING,
    &names::FROM_AS_CASING,
    &text::NO_EMPTY_CONTINUATION,
    &casing::CONSISTENT_INSTRUCTION_CASING,
    &names::DUPLICATE_STAGE_NAME,
    &names::RESERVED_STAGE_NAME,
    &commands::JSON_ARGS_RECOMMENDED,
    &text::MAINTAINER_DEPRECATED,
    &from_args::UNDEFINED_ARG_IN_FROM,
    &workdir::WORKDIR_RELATIVE_PATH,
    &variables::UNDEFINED_VAR,
    &commands::MULTIPLE_INSTRUCTIONS_DISALLOWED,
    &pairs::LEGACY_KEY_VALUE_FORMAT,
    &platforms::INVALID_BASE_IMAGE_PLATFORM,
    &platforms::REDUNDANT_TARGET_PLATFORM,
    &secrets::SECRETS_USED_IN_ARG_OR_ENV,
    &from_args::INVALID_DEFAULT_ARG_IN_FROM,
    &platforms::FROM_PLATFORM_FLAG_CONST_DISALLOWED,
    &copy::COPY_IGNORED_FILE,
    &definitions::INVALID_DEFINITION_DESCRIPTION,
    &expose::EXPOSE_PROTO_CASING,
    &expose::EXPOSE_INVALID_FORMAT,
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_and_pages_agree() {
        let mut names = BTreeSet::new();
        for rule in RULES {
            assert!(names.insert(rule.name), "{rule:?} twice");
            let Some(page) = rule.page else {
                assert_eq!(rule.name, "InvalidBaseImagePlatform");
                continue;
            };
            assert_eq!(page.replace('-', ""), rule.name.to_lowercase());
            assert_eq!(rule.experimental, rule.name == "InvalidDefinitionDescription");
        }
    }
}
