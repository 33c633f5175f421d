//! Which host names are ECR's, and what they say: partition, region, account, FIPS, dual stack.
//!
//! A look-alike would get a token, so names match whole, label by label, with the exact suffixes of AWS's partitions.

/// What a registry's name says about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EcrHost {
    Private(PrivateHost),
    /// ECR Public, whose API is in us-east-1.
    Public,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PrivateHost {
    pub partition: Partition,
    pub region: String,
    /// 12 digits; not known for a private alias.
    pub account: Option<String>,
    pub fips: bool,
    pub dual_stack: bool,
}

/// A part of AWS with accounts, keys and names of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Partition {
    Aws,
    China,
    GovCloud,
    EuropeanSovereignCloud,
    Iso,
    IsoB,
    IsoE,
    IsoF,
}

/// The region of the ECR Public API.
pub const PUBLIC_REGION: &str = "us-east-1";
const PUBLIC_HOSTS: &[&str] = &["public.ecr.aws", "ecr-public.aws.com"];

/// Suffix of registry names and what it belongs to; of dual-stack names where there are some.
const SUFFIXES: &[(&str, &[Partition])] = &[
    ("amazonaws.com", &[Partition::Aws, Partition::GovCloud]),
    ("amazonaws.com.cn", &[Partition::China]),
    ("amazonaws.eu", &[Partition::EuropeanSovereignCloud]),
    ("c2s.ic.gov", &[Partition::Iso]),
    ("sc2s.sgov.gov", &[Partition::IsoB]),
    ("cloud.adc-e.uk", &[Partition::IsoE]),
    ("csp.hci.ic.gov", &[Partition::IsoF]),
];
const DUAL_STACK_SUFFIXES: &[(&str, &[Partition])] = &[
    ("on.aws", &[Partition::Aws, Partition::GovCloud]),
    ("on.amazonwebservices.com.cn", &[Partition::China]),
];

/// First words of a region's name, for the partitions that are not the commercial one.
const REGIONS: &[(&str, Partition)] = &[
    ("cn-", Partition::China),
    ("us-gov-", Partition::GovCloud),
    ("eusc-", Partition::EuropeanSovereignCloud),
    ("us-iso-", Partition::Iso),
    ("us-isob-", Partition::IsoB),
    ("eu-isoe-", Partition::IsoE),
    ("us-isof-", Partition::IsoF),
    ("eu-isof-", Partition::IsoF),
];

impl Partition {
    /// The partition of a region; `None` for what is not a region's name.
    pub fn of_region(region: &str) -> Option<Self> {
        if !is_region(region) {
            return None;
        }
        let special = REGIONS.iter().find(|(first, _)| region.starts_with(first));
        Some(special.map_or(Partition::Aws, |(_, partition)| *partition))
    }

    /// Its name in ARNs.
    pub fn name(self) -> &'static str {
        match self {
            Partition::Aws => "aws",
            Partition::China => "aws-cn",
            Partition::GovCloud => "aws-us-gov",
            Partition::EuropeanSovereignCloud => "aws-eusc",
            Partition::Iso => "aws-iso",
            Partition::IsoB => "aws-iso-b",
            Partition::IsoE => "aws-iso-e",
            Partition::IsoF => "aws-iso-f",
        }
    }

    /// For whom an ID token that STS takes is made.
    pub fn token_audience(self) -> &'static str {
        match self {
            Partition::China => "sts.amazonaws.com.cn",
            _ => "sts.amazonaws.com",
        }
    }
}

impl EcrHost {
    /// Reads a registry's name as it stands in a reference: any case, maybe with a port.
    pub fn parse(registry: &str) -> Option<Self> {
        let name = without_port(registry)?.to_ascii_lowercase();
        if PUBLIC_HOSTS.contains(&name.as_str()) {
            return Some(EcrHost::Public);
        }
        private(&name).map(EcrHost::Private)
    }

    /// A private DNS name for a registry in `region`.
    pub fn alias(region: &str) -> Option<Self> {
        Some(EcrHost::Private(PrivateHost {
            partition: Partition::of_region(region)?,
            region: region.to_owned(),
            account: None,
            fips: false,
            dual_stack: false,
        }))
    }

    pub fn region(&self) -> &str {
        match self {
            EcrHost::Private(host) => &host.region,
            EcrHost::Public => PUBLIC_REGION,
        }
    }

    pub fn partition(&self) -> Partition {
        match self {
            EcrHost::Private(host) => host.partition,
            EcrHost::Public => Partition::Aws,
        }
    }
}

fn without_port(registry: &str) -> Option<&str> {
    match registry.split_once(':') {
        Some((name, port)) => port.parse::<u16>().is_ok().then_some(name),
        None => Some(registry),
    }
}

/// `<account>.dkr.ecr[-fips].<region>.<suffix>` or `<account>.dkr-ecr[-fips].<region>.<dual-stack suffix>`
fn private(name: &str) -> Option<PrivateHost> {
    let (account, rest) = name.split_once('.')?;
    if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (rest, dual_stack) = match rest.strip_prefix("dkr.") {
        Some(rest) => (rest, false),
        None => (rest.strip_prefix("dkr-")?, true),
    };
    let (service, rest) = rest.split_once('.')?;
    let fips = match service {
        "ecr" => false,
        "ecr-fips" => true,
        _ => return None,
    };
    let (region, suffix) = rest.split_once('.')?;
    let suffixes = if dual_stack { DUAL_STACK_SUFFIXES } else { SUFFIXES };
    let (_, partitions) = suffixes.iter().find(|(known, _)| *known == suffix)?;
    let partition = Partition::of_region(region).filter(|found| partitions.contains(found))?;
    Some(PrivateHost {
        partition,
        region: region.to_owned(),
        account: Some(account.to_owned()),
        fips,
        dual_stack,
    })
}

/// `us-east-1`, `us-gov-west-1`, `eusc-de-east-1`: words of letters, then a number.
fn is_region(text: &str) -> bool {
    let mut words: Vec<&str> = text.split('-').collect();
    let Some(number) = words.pop() else { return false };
    let is_word = |word: &&str| {
        (2..=12).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_lowercase())
    };
    let is_number =
        (1..=2).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    (2..=4).contains(&words.len()) && words.iter().all(is_word) && is_number
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str) -> Option<(Partition, String, bool, bool)> {
        match EcrHost::parse(name)? {
            EcrHost::Private(host) => {
                Some((host.partition, host.region, host.fips, host.dual_stack))
            }
            EcrHost::Public => None,
        }
    }

    #[test]
    fn every_form_is_known() {
        for (name, partition, region, fips, dual_stack) in [
            ("dkr.ecr.us-east-1.amazonaws.com", Partition::Aws, "us-east-1", false, false),
            (
                "dkr.ecr.ap-southeast-2.amazonaws.com",
                Partition::Aws,
                "ap-southeast-2",
                false,
                false,
            ),
            ("dkr.ecr-fips.us-west-2.amazonaws.com", Partition::Aws, "us-west-2", true, false),
            (
                "dkr.ecr-fips.us-gov-west-1.amazonaws.com",
                Partition::GovCloud,
                "us-gov-west-1",
                true,
                false,
            ),
            ("dkr-ecr.eu-west-1.on.aws", Partition::Aws, "eu-west-1", false, true),
            ("dkr-ecr-fips.us-gov-east-1.on.aws", Partition::GovCloud, "us-gov-east-1", true, true),
            ("dkr.ecr.cn-north-1.amazonaws.com.cn", Partition::China, "cn-north-1", false, false),
            (
                "dkr-ecr.cn-northwest-1.on.amazonwebservices.com.cn",
                Partition::China,
                "cn-northwest-1",
                false,
                true,
            ),
            (
                "dkr.ecr.eusc-de-east-1.amazonaws.eu",
                Partition::EuropeanSovereignCloud,
                "eusc-de-east-1",
                false,
                false,
            ),
            ("dkr.ecr.us-iso-east-1.c2s.ic.gov", Partition::Iso, "us-iso-east-1", false, false),
            (
                "dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
                Partition::IsoB,
                "us-isob-east-1",
                false,
                false,
            ),
            (
                "dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
                Partition::IsoE,
                "eu-isoe-west-1",
                false,
                false,
            ),
            (
                "dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
                Partition::IsoF,
                "us-isof-south-1",
                false,
                false,
            ),
        ] {
            let expected = Some((partition, region.to_owned(), fips, dual_stack));
            for name in [
                format!("123456789012.{name}"),
                format!("123456789012.{name}:443"),
                format!("123456789012.{}", name.to_uppercase()),
            ] {
                assert_eq!(read(&name), expected, "{name}");
            }
        }
        for name in ["public.ecr.aws", "Public.ECR.aws:443", "ecr-public.aws.com"] {
            assert_eq!(EcrHost::parse(name), Some(EcrHost::Public), "{name}");
        }
    }

    #[test]
    fn look_alikes_are_not() {
        for name in [
            "dkr.ecr.us-east-1.amazonaws.com",
            "dkr.ecr.us-east-1.amazonaws.com.evil.tld",
            "123456789012.dkr.ecr.us-east-1.amazonaws.com.evil.tld",
            "1234.dkr.ecr.us-east-1.amazonaws.com",
            "1234567890123.dkr.ecr.us-east-1.amazonaws.com",
            "1234.dkr.ecr.evil.amazonaws.com",
            "123456789012.dkr.ecr.evil.amazonaws.com",
            "123456789012.dkr.ecr.us-east-1.evil.amazonaws.com",
            "123456789012.dkr.ecr.us-east-1.amazonaws.com@evil.tld",
            "123456789012.dkr.ecr.us-east-1.amazonaws.com:pw@evil.tld",
            "user@123456789012.dkr.ecr.us-east-1.amazonaws.com",
            "evil.tld:123456789012.dkr.ecr.us-east-1.amazonaws.com",
            "x.123456789012.dkr.ecr.us-east-1.amazonaws.com",
            "123456789012.dkr.ecr.us-east-1.amazonaws.org",
            "123456789012.dkr.ecr.us-east-1.xamazonaws.com",
            "123456789012.dkr.ecr.us-east-1..amazonaws.com",
            "123456789012.dkr.ecr.us-east-1.amazonaws.com.",
            "123456789012.dkr.ecr.cn-north-1.amazonaws.com",
            "123456789012.dkr.ecr.us-east-1.amazonaws.com.cn",
            "123456789012.dkr.ecr.us-east-1.on.aws",
            "123456789012.dkr-ecr.us-east-1.amazonaws.com",
            "123456789012.dkr-ecr.us-iso-east-1.on.aws",
            "123456789012.dkr.ecrx.us-east-1.amazonaws.com",
            "123456789012.dkr.ecr-fips-x.us-east-1.amazonaws.com",
            "123456789012.dkr.ecr.us-east-1.c2s.ic.gov",
            "１２３４５６７８９０１２.dkr.ecr.us-east-1.amazonaws.com",
            "public.ecr.aws.evil.tld",
            "xpublic.ecr.aws",
            "public.ecr.aws:evil",
            "ecr.aws",
            "",
        ] {
            assert_eq!(EcrHost::parse(name), None, "{name}");
        }
    }

    #[test]
    fn regions_name_their_partition() {
        assert_eq!(Partition::of_region("us-gov-west-1"), Some(Partition::GovCloud));
        assert_eq!(Partition::of_region("mx-central-1"), Some(Partition::Aws));
        for bad in ["", "us-east", "us-east-1a", "US-east-1", "1", "us--1", "../x-1", "a-b-c-d-e-1"]
        {
            assert_eq!(Partition::of_region(bad), None, "{bad}");
        }
        assert_eq!(EcrHost::alias("cn-north-1").unwrap().partition(), Partition::China);
        assert_eq!(EcrHost::alias("nowhere"), None);
    }
}
