//! Choosing an index's entry for a platform, by containerd's order of variants.

use super::manifest::{Descriptor, DescriptorPlatform, ImageIndex};
use crate::image::platform::Platform;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no image for {wanted}; there are: {}", list(.available))]
pub struct SelectError {
    pub wanted: Platform,
    /// In the index's order, without attestations.
    pub available: Vec<String>,
}

fn list(available: &[String]) -> String {
    if available.is_empty() { "none".to_owned() } else { available.join(", ") }
}

/// The entry for `wanted`: the best variant that its CPU can run (`arm/v7` takes v7, v6, v5; `amd64/v3` takes v3, v2,
/// none), the first of equals. Attestations (`unknown/unknown`) are never chosen. An index with one entry and no
/// platform on it stands for every platform.
///
/// # Errors
/// Lists what exists.
pub fn select_platform<'a>(
    index: &'a ImageIndex,
    wanted: &Platform,
) -> Result<&'a Descriptor, SelectError> {
    let wanted = wanted.clone().normalized();
    let ranked = index.manifests.iter().filter_map(|entry| {
        let platform = normalized(entry.platform.as_ref()?);
        Some((rank(&wanted, &platform)?, entry))
    });
    // `min_by_key` keeps the first of equals.
    if let Some((_, entry)) = ranked.min_by_key(|(rank, _)| *rank) {
        return Ok(entry);
    }
    match index.manifests.as_slice() {
        [only] if only.platform.is_none() => Ok(only),
        _ => Err(SelectError { wanted, available: available(index) }),
    }
}

fn normalized(platform: &DescriptorPlatform) -> Platform {
    Platform {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
    }
    .normalized()
}

fn available(index: &ImageIndex) -> Vec<String> {
    let mut names = Vec::new();
    for entry in &index.manifests {
        let name = match &entry.platform {
            Some(platform) if platform.os == "unknown" => continue,
            Some(platform) => normalized(platform).to_string(),
            None => "an entry without platform".to_owned(),
        };
        let name = super::error::printable(&name, 80);
        if !names.contains(&name) && names.len() < 40 {
            names.push(name);
        }
    }
    names
}

/// 0 for an exact match, more for older variants; `None` where `wanted` can't run it.
fn rank(wanted: &Platform, offered: &Platform) -> Option<u32> {
    let version_fits = wanted.os_version.is_empty() || wanted.os_version == offered.os_version;
    if wanted.os != offered.os || wanted.architecture != offered.architecture || !version_fits {
        return None;
    }
    if wanted.variant == offered.variant {
        return Some(0);
    }
    let level = |variant: &str| variant.strip_prefix('v').and_then(|level| level.parse().ok());
    let base: u32 = match wanted.architecture.as_str() {
        "arm" => 7,
        "arm64" => 8,
        "amd64" => 1,
        _ => return None,
    };
    let level = |variant: &str| if variant.is_empty() { Some(base) } else { level(variant) };
    level(&wanted.variant)?.checked_sub(level(&offered.variant)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn index(platforms: &[&str]) -> ImageIndex {
        let entry = |(at, text): (usize, &&str)| {
            let mut parts = text.split('/').map(str::to_owned);
            let mut next = || parts.next().unwrap_or_default();
            let (os, architecture, variant) = (next(), next(), next());
            let platform = DescriptorPlatform { os, architecture, variant, ..<_>::default() };
            Descriptor {
                media_type: String::new(),
                digest: Digest::of(&at.to_be_bytes()),
                size: at as u64,
                urls: Vec::new(),
                annotations: <_>::default(),
                data: None,
                artifact_type: None,
                platform: (!text.is_empty()).then_some(platform),
            }
        };
        ImageIndex {
            manifests: platforms.iter().enumerate().map(entry).collect(),
            artifact_type: None,
            subject: None,
            annotations: <_>::default(),
        }
    }

    fn chosen(platforms: &[&str], wanted: &str) -> Option<u64> {
        select_platform(&index(platforms), &wanted.parse().unwrap()).ok().map(|entry| entry.size)
    }

    #[test]
    fn variants() {
        let arms = ["linux/arm/v5", "linux/arm/v7", "linux/arm/v6", "linux/arm64/v8"];
        assert_eq!(chosen(&arms, "linux/arm/v7"), Some(1));
        assert_eq!(chosen(&arms, "linux/arm"), Some(1));
        assert_eq!(chosen(&arms, "linux/arm/v6"), Some(2));
        assert_eq!(chosen(&arms, "linux/arm64"), Some(3));
        assert_eq!(chosen(&["linux/arm/v6"], "linux/arm/v7"), Some(0));
        assert_eq!(chosen(&["linux/arm/v7"], "linux/arm/v6"), None);
        assert_eq!(chosen(&["linux/amd64"], "linux/amd64/v3"), Some(0));
        assert_eq!(chosen(&["linux/amd64", "linux/amd64/v2"], "linux/amd64/v3"), Some(1));
        assert_eq!(chosen(&["linux/amd64/v3"], "linux/amd64"), None);
        assert_eq!(chosen(&["linux/x86_64"], "linux/amd64"), Some(0));
    }

    #[test]
    fn odd_entries() {
        assert_eq!(
            chosen(&["unknown/unknown", "linux/amd64", "linux/amd64"], "linux/amd64"),
            Some(1)
        );
        assert_eq!(chosen(&["linux/arm/v7/v7", "linux/arm//v7"], "linux/arm64"), None);
        assert_eq!(chosen(&[""], "linux/amd64"), Some(0));
        assert_eq!(chosen(&["", ""], "linux/amd64"), None);
    }

    #[test]
    fn the_error_lists_what_exists() {
        let index = index(&["linux/arm64/v8", "windows/amd64", "unknown/unknown", "linux/arm64"]);
        let error = select_platform(&index, &"linux/s390x".parse().unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no image for linux/s390x; there are: linux/arm64, windows/amd64"
        );
    }
}
