//! Platforms as `os/architecture[/variant]` (OCI image-index.md), normalised as containerd does.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty")]
    pub os_version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a platform: expected os/architecture or os/architecture/variant, such as linux/arm64"
)]
pub struct PlatformError(String);

impl Platform {
    /// The platform that this program runs on.
    pub fn host() -> Self {
        Platform::linux(std::env::consts::ARCH)
    }

    fn linux(architecture: &str) -> Self {
        Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: String::new(),
            os_version: String::new(),
        }
        .normalized()
    }

    /// containerd's spelling: `x86_64` is `amd64`, `aarch64` and `arm64/v8` are `arm64`, `arm` is `arm/v7`.
    pub fn normalized(mut self) -> Self {
        self.os = self.os.to_lowercase();
        if self.os == "macos" {
            self.os = "darwin".into();
        }
        let architecture = self.architecture.to_lowercase();
        let variant = self.variant.to_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386" | "x86", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", v) => ("amd64", v),
            ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
            ("aarch64" | "arm64", v) => ("arm64", v),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            ("riscv64gc", v) => ("riscv64", v),
            ("powerpc64le", v) => ("ppc64le", v),
            (a, v) => (a, v),
        };
        (self.architecture, self.variant) = (architecture.to_owned(), variant.to_owned());
        self
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let wrong = || PlatformError(text.to_owned());
        let part = |part: &str| {
            let good = !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
            good.then(|| part.to_owned()).ok_or_else(wrong)
        };
        let mut parts = text.split('/');
        let os = parts.next().unwrap_or_default();
        let (os, os_version) = match os.strip_suffix(')').and_then(|os| os.split_once('(')) {
            Some((os, version)) => (part(os)?, part(version)?),
            None => (part(os)?, String::new()),
        };
        let Some(architecture) = parts.next() else {
            // One part alone names an operating system or an architecture.
            return match os.as_str() {
                "linux" | "windows" | "darwin" | "freebsd" => Ok(Platform {
                    os,
                    architecture: Platform::host().architecture,
                    variant: String::new(),
                    os_version,
                }),
                "amd64" | "arm64" | "arm" | "386" | "riscv64" | "ppc64le" | "s390x" | "x86_64"
                | "aarch64" | "armhf" | "armel" | "i386" | "mips64le" | "loong64" => {
                    Ok(Platform::linux(&os))
                }
                _ => Err(wrong()),
            };
        };
        let architecture = part(architecture)?;
        let variant = parts.next().map(part).transpose()?.unwrap_or_default();
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Platform { os, architecture, variant, os_version }.normalized())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}
