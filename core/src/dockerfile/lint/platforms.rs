//! The platforms of FROM and of the images behind it.

use crate::image::{ImageConfig, platform::Platform};

use super::{
    super::{
        ast::{From, Span},
        words::Expanded,
    },
    Rule,
    linter::{Linter, Local},
    scope::Globals,
};

pub(super) static INVALID_BASE_IMAGE_PLATFORM: Rule = Rule {
    name: "InvalidBaseImagePlatform",
    description: "Base image platform does not match expected target platform",
    page: None,
    experimental: false,
};

pub(super) static REDUNDANT_TARGET_PLATFORM: Rule = Rule::new(
    "RedundantTargetPlatform",
    "redundant-target-platform",
    "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
);

pub(super) static FROM_PLATFORM_FLAG_CONST_DISALLOWED: Rule = Rule::new(
    "FromPlatformFlagConstDisallowed",
    "from-platform-flag-const-disallowed",
    "FROM --platform flag should not use a constant value",
);

const TARGET: &str = "TARGETPLATFORM";

/// What `--platform` of FROM shows: `written`, which expanded to `expanded`.
pub(super) fn check_flag(
    from: &From,
    written: &str,
    expanded: &Expanded,
    globals: &Globals,
    local: &Local,
    linter: &mut Linter,
) {
    let only_target = expanded.matched == [TARGET] && expanded.unmatched.is_empty();
    if only_target && globals.get(TARGET).unwrap_or_default() == expanded.value {
        let detail = format!(
            "Setting platform to predefined {written} in FROM is redundant as this is the default behavior"
        );
        linter.add_at(&REDUNDANT_TARGET_PLATFORM, from.span, local, detail);
    }
    let is_constant = expanded.matched.is_empty() && expanded.unmatched.is_empty();
    if is_constant && !is_in_name(&expanded.value, from.name.as_deref().unwrap_or_default()) {
        let detail =
            format!("FROM --platform flag should not use constant value {:?}", expanded.value);
        linter.add_at(&FROM_PLATFORM_FLAG_CONST_DISALLOWED, from.span, local, detail);
    }
}

/// Whether the stage's name tells of its platform. What is no platform fails later and is not reported.
fn is_in_name(platform: &str, name: &str) -> bool {
    platform.parse::<Platform>().map_or(true, |platform| {
        name.contains(&platform.os) || name.contains(&platform.architecture)
    })
}

/// Whether an image is for the platform that it was pulled for.
pub(super) fn check_image(
    name: &str,
    image: &ImageConfig,
    expected: &Platform,
    span: Span,
    linter: &mut Linter,
) {
    let actual = Platform {
        os: image.os.clone(),
        architecture: image.architecture.clone(),
        variant: image.variant.clone(),
        os_version: image.os_version.clone(),
    };
    if actual.os != expected.os || actual.architecture != expected.architecture {
        let actual = actual.normalized().to_string();
        let expected = expected.to_string();
        let detail = format!(
            "Base image {name} was pulled with platform {actual:?}, expected {expected:?} for current build"
        );
        linter.add(&INVALID_BASE_IMAGE_PLATFORM, span, detail);
    }
}
