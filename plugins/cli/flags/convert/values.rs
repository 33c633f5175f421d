//! Values of single flags: pairs, hosts, limits, sizes, platforms.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use bareboat_core::{Class, Error, image::platform::Platform};

use crate::flags::Environment;

fn usage(title: String) -> Error {
    Error::new(Class::Usage, title)
}

/// `--label` and the like: `KEY=VALUE`, `KEY` alone has an empty value; later wins.
pub fn pairs(flag: &str, values: Vec<String>) -> Result<BTreeMap<String, String>, Error> {
    values.into_iter().map(|value| pair(flag, &value)).collect()
}

fn pair(flag: &str, text: &str) -> Result<(String, String), Error> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err(usage(format!("--{flag}: {text:?} has no key")));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// `--base-config`: `REF=FILE`.
pub fn base_configs(values: Vec<String>) -> Result<Vec<(String, PathBuf)>, Error> {
    let parts = values.into_iter().map(|text| match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(file)))
        }
        _ => Err(usage(format!("--base-config: {text:?} is not REF=FILE"))),
    });
    parts.collect()
}

/// `--build-arg`: `KEY` alone takes its value from the environment, and is not set where that has none.
pub fn build_args(
    values: Vec<String>,
    environment: &Environment,
) -> Result<BTreeMap<String, String>, Error> {
    let mut args = BTreeMap::new();
    for text in values {
        let (key, value) = pair("build-arg", &text)?;
        if text.contains('=') {
            args.insert(key, value);
        } else if let Some(value) = environment.raw(&key) {
            let value = value.to_str().ok_or_else(|| {
                usage(format!("--build-arg {key}: its value in the environment is not UTF-8"))
            })?;
            args.insert(key, value.to_owned());
        }
    }
    Ok(args)
}

/// `--add-host`: `NAME:IP` or `NAME=IP`; an IPv6 address may stand in brackets.
pub fn add_host(text: &str) -> Result<(String, String), Error> {
    let wrong = || {
        usage(format!("--add-host: {text:?} is not NAME:IP"))
            .hint("for example --add-host db.test:10.0.0.5 or --add-host db.test=fd00::5")
    };
    let separator = if text.contains('=') { '=' } else { ':' };
    let (name, address) = text.split_once(separator).ok_or_else(wrong)?;
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    if address == "host-gateway" {
        return Err(usage(format!("--add-host {name}: host-gateway is not supported")).hint(
            "there is no gateway: steps share the builder's network, so name the address itself",
        ));
    }
    let good = !name.is_empty()
        && !name.starts_with('#')
        && !name.contains(|c: char| c.is_whitespace() || c.is_control());
    if !good || bare.parse::<IpAddr>().is_err() {
        return Err(wrong());
    }
    Ok((name.to_owned(), bare.to_owned()))
}

/// The resource limits that Linux has, as Docker names them.
const ULIMITS: &[&str] = &[
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// `--ulimit NAME=SOFT[:HARD]`; -1 is unlimited, HARD is SOFT where it is not given.
pub fn ulimit(text: &str) -> Result<(String, i64, i64), Error> {
    let wrong = |what: &str| {
        usage(format!("--ulimit: {text:?} {what}")).hint("for example --ulimit nofile=1024:4096")
    };
    let (name, limits) = text.split_once('=').ok_or_else(|| wrong("is not NAME=SOFT[:HARD]"))?;
    if !ULIMITS.contains(&name) {
        return Err(wrong("names no limit").hint(format!("the limits are {}", ULIMITS.join(", "))));
    }
    let number = |text: &str| {
        let number = text.parse::<i64>().ok().filter(|number| *number >= -1);
        number.ok_or_else(|| wrong("has a limit that is not a number from -1 up"))
    };
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(wrong("has a soft limit above its hard limit"));
    }
    Ok((name.to_owned(), soft, hard))
}

/// Bytes with a unit of 1024: `67108864`, `64m`, `64MiB`, `1.5g` (as Docker's `--shm-size`).
pub fn bytes(flag: &str, text: &str) -> Result<u64, Error> {
    let wrong = || {
        usage(format!("--{flag}: {text:?} is not a size"))
            .hint("bytes, or a number with a unit such as 64m or 1g")
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let scale = scale(unit.strip_prefix(' ').unwrap_or(unit)).ok_or_else(wrong)?;
    scaled(number, scale).ok_or_else(wrong)
}

fn scale(unit: &str) -> Option<u64> {
    let unit = unit.to_lowercase();
    let power = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit) {
        "" if unit != "ib" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    Some(1 << (10 * power))
}

/// `number` (digits, maybe a fraction) times `scale`, a power of two; fractions of a byte are dropped.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let limit = i64::MAX as u64;
    let fraction = match fraction {
        "" => 0,
        digits if digits.len() <= 15 => {
            let digits_value = digits.parse::<u128>().ok()?;
            (digits_value * u128::from(scale) / 10u128.pow(digits.len() as u32)) as u64
        }
        _ => return None,
    };
    let whole = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    whole.checked_add(fraction).filter(|bytes| *bytes <= limit)
}

/// `--platform`: several, separated by commas or given one by one.
pub fn platforms(values: Vec<String>) -> Result<Vec<Platform>, Error> {
    let names = values.iter().flat_map(|value| value.split(',')).filter(|name| !name.is_empty());
    let mut platforms = Vec::new();
    for name in names {
        let platform = name.trim().parse::<Platform>();
        let platform = platform.map_err(|error| usage(format!("--platform: {error}")))?;
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    Ok(platforms)
}

/// `--no-cache-filter`: several values, each maybe several stages.
pub fn stages(values: Vec<String>) -> Vec<String> {
    let names = values.iter().flat_map(|value| value.split(','));
    names.map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// `--jobs`: 1 to 256.
pub fn jobs(text: &str) -> Result<usize, Error> {
    let jobs = text.parse().ok().filter(|jobs| (1..=256).contains(jobs));
    jobs.ok_or_else(|| usage(format!("--jobs: {text:?} is not a number from 1 to 256")))
}

/// A registry as images name it: `HOST` or `HOST:PORT`.
pub fn registry_host(flag: &str, text: &str) -> Result<String, Error> {
    let is_host =
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:[]".contains(c));
    if is_host {
        return Ok(text.to_ascii_lowercase());
    }
    Err(usage(format!("--{flag}: {text:?} is not a registry"))
        .hint("name the registry as images do, such as registry.test:5000, with no scheme or path"))
}

/// `--insecure-registry`: `HOST`, `HOST:PORT` or a network in CIDR form.
pub fn registry_or_network(flag: &str, text: &str) -> Result<String, Error> {
    if is_network(text) { Ok(text.to_owned()) } else { registry_host(flag, text) }
}

/// `--registry-certificate`: `HOST=PATH`.
pub fn registry_file(flag: &str, text: &str) -> Result<(String, PathBuf), Error> {
    match text.split_once('=') {
        Some((host, path)) if !path.is_empty() => Ok((registry_host(flag, host)?, path.into())),
        _ => Err(usage(format!("--{flag}: {text:?} is not HOST=PATH"))),
    }
}

/// `--registry-client-cert`: `HOST=CERT,KEY`.
pub fn registry_files(flag: &str, text: &str) -> Result<(String, PathBuf, PathBuf), Error> {
    let parts = text.split_once('=').and_then(|(host, files)| Some((host, files.split_once(',')?)));
    match parts {
        Some((host, (certificate, key))) if !certificate.is_empty() && !key.is_empty() => {
            Ok((registry_host(flag, host)?, certificate.into(), key.into()))
        }
        _ => Err(usage(format!("--{flag}: {text:?} is not HOST=CERT,KEY"))),
    }
}

/// `--registry-mirror`: `[HOST=]MIRROR[/PREFIX]`; the mirror may say `http://`.
pub fn mirror(flag: &str, text: &str) -> Result<(String, String), Error> {
    let (host, mirror) = text.split_once('=').unwrap_or(("docker.io", text));
    let plain = mirror.strip_prefix("http://").or_else(|| mirror.strip_prefix("https://"));
    let (name, prefix) = plain.unwrap_or(mirror).split_once('/').unwrap_or_default();
    let name = if name.is_empty() { plain.unwrap_or(mirror) } else { name };
    let is_prefix = prefix
        .trim_end_matches('/')
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c));
    if !is_prefix || prefix.contains("//") || prefix.contains("..") {
        return Err(usage(format!("--{flag}: {prefix:?} is not the beginning of repositories"))
            .hint("a mirror is HOST[:PORT][/PREFIX]"));
    }
    registry_host(flag, name)?;
    Ok((registry_host(flag, host)?, mirror.trim_end_matches('/').to_owned()))
}

fn is_network(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let bits_max = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.parse::<u8>().is_ok_and(|bits| bits <= bits_max)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn owned(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn labels_split_at_the_first_equals_sign() {
        let labels = pairs("label", owned(&["a=b=c", "d", "a=e"])).unwrap();
        assert_eq!(labels, [("a".into(), "e".into()), ("d".into(), String::new())].into());
        assert!(pairs("label", owned(&["=x"])).unwrap_err().title().contains("--label"));
        assert!(pairs("label", owned(&[""])).is_err());
    }

    #[test]
    fn a_bare_build_arg_comes_from_the_environment_or_is_not_set() {
        let mut environment = Environment::default();
        environment.variables.insert("TOKEN".into(), "t".into());
        environment.variables.insert("EMPTY".into(), "".into());
        let args = build_args(owned(&["TOKEN", "EMPTY", "GONE", "X="]), &environment).unwrap();
        let expected = [("TOKEN", "t"), ("EMPTY", ""), ("X", "")];
        assert_eq!(args, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }

    #[test]
    fn a_build_arg_that_is_not_text_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let mut environment = Environment::default();
        environment.variables.insert("BAD".into(), OsString::from_vec(vec![0xff]));
        assert!(build_args(owned(&["BAD"]), &environment).is_err());
    }

    #[test]
    fn hosts_take_both_separators_and_both_families() {
        let host = |text| add_host(text).unwrap().1;
        assert_eq!(host("a.test:10.1.2.3"), "10.1.2.3");
        assert_eq!(host("a.test=10.1.2.3"), "10.1.2.3");
        assert_eq!(host("a.test:fd00::1"), "fd00::1");
        assert_eq!(host("a.test:[fd00::1]"), "fd00::1");
        assert_eq!(host("a.test=[::1]"), "::1");
        for bad in
            ["a", ":1.2.3.4", "a:1.2.3", "a b:1.2.3.4", "a:host-gateway", "a\nb:1.2.3.4", "a:"]
        {
            assert_eq!(add_host(bad).unwrap_err().class(), Class::Usage, "{bad}");
        }
    }

    #[test]
    fn ulimits_have_a_soft_and_a_hard_value() {
        assert_eq!(ulimit("nofile=321:654").unwrap(), ("nofile".into(), 321, 654));
        assert_eq!(ulimit("core=-1").unwrap(), ("core".into(), -1, -1));
        assert_eq!(ulimit("nproc=5:-1").unwrap(), ("nproc".into(), 5, -1));
        for bad in [
            "nofile",
            "nofiles=1",
            "nofile=2:1",
            "nofile=-1:5",
            "nofile=x",
            "nofile=-2",
            "nofile=1:2:3",
        ] {
            assert!(ulimit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_units_of_1024() {
        let size = |text| bytes("shm-size", text).unwrap();
        assert_eq!(size("67108864"), 64 << 20);
        assert_eq!(size("32m"), 32 << 20);
        assert_eq!(size("32MB"), 32 << 20);
        assert_eq!(size("32 MiB"), 32 << 20);
        assert_eq!(size("1.5g"), 3 << 29);
        assert_eq!(size("10b"), 10);
        for bad in [
            "",
            "m",
            "-1",
            "1x",
            "1.2.3g",
            "1ib",
            "9999999999g",
            "1  m",
            "0.0000000000000001g",
            "1e3",
        ] {
            assert!(bytes("shm-size", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn platforms_are_normal_and_each_once() {
        assert_eq!(platforms(owned(&["linux/arm"])).unwrap()[0].to_string(), "linux/arm/v7");
        assert_eq!(platforms(owned(&["linux/amd64,linux/x86_64"])).unwrap().len(), 1);
        assert!(platforms(Vec::new()).unwrap().is_empty());
        assert_eq!(platforms(owned(&["linux/amd64,linux/arm64"])).unwrap().len(), 2);
        assert_eq!(platforms(owned(&["linux/amd64", "linux/arm64"])).unwrap().len(), 2);
        assert!(
            platforms(owned(&["linux/amd64/v1/x"])).unwrap_err().title().contains("--platform")
        );
    }

    #[test]
    fn stages_jobs_and_registries() {
        assert_eq!(stages(owned(&["a,b", " c ", ""])), ["a", "b", "c"]);
        assert_eq!(jobs("2").unwrap(), 2);
        assert!(["0", "257", "-1", "two"].iter().all(|bad| jobs(bad).is_err()));
        assert_eq!(
            registry_or_network("insecure-registry", "Registry.test:5000").unwrap(),
            "registry.test:5000"
        );
        assert_eq!(registry_or_network("insecure-registry", "[::1]:5000").unwrap(), "[::1]:5000");
        assert_eq!(registry_or_network("insecure-registry", "10.0.0.0/8").unwrap(), "10.0.0.0/8");
        assert!(
            ["http://a", "a/b", "", "a@b", "10.0.0.0/33", "::1/200"]
                .iter()
                .all(|bad| registry_or_network("insecure-registry", bad).is_err())
        );
    }
}
