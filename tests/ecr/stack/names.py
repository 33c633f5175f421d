"""Who answers for which name inside the stack: the real names, on loopback addresses and port 443."""

# account of the registry that keeps to the specification, and of the one that behaves as ECR does
CLEAN_ACCOUNT, SHAPED_ACCOUNT = "123456789012", "111122223333"

CONTROL_PLANE, CLEAN, SHAPED, BUCKET = "127.0.0.2", "127.0.0.3", "127.0.0.5", "127.0.0.6"
HUB, GHCR, PUBLIC, FOREIGN = "127.0.0.7", "127.0.0.8", "127.0.0.9", "127.0.0.10"
MIRROR, CLIENT_CERTIFICATE, UNTRUSTED, DEAD = "127.0.0.11", "127.0.0.12", "127.0.0.13", "127.0.0.14"

METADATA = "169.254.169.254"
CONTAINER, POD_IDENTITY, POD_IDENTITY_V6 = "169.254.170.2", "169.254.170.23", "fd00:ec2::23"
ID_TOKEN_PORT = 8099

# region: (suffix of its names, suffix of its dual-stack names)
REGIONS = {
    "us-east-1": ("amazonaws.com", "aws"),
    "us-west-2": ("amazonaws.com", "aws"),
    "eu-central-1": ("amazonaws.com", "aws"),
    "us-gov-west-1": ("amazonaws.com", "aws"),
    "cn-north-1": ("amazonaws.com.cn", "amazonwebservices.com.cn"),
    "eusc-de-east-1": ("amazonaws.eu", None),
    "us-iso-east-1": ("c2s.ic.gov", None),
}

OTHERS = {
    CONTROL_PLANE: ["sts.amazonaws.com", "api.ecr-public.us-east-1.amazonaws.com", "ecr-public.us-east-1.api.aws"],
    BUCKET: [
        "prod-us-east-1-starport-layer-bucket.s3.us-east-1.amazonaws.com",
        "production.cloudflare.docker.com",
        "pkg-containers.githubusercontent.com",
    ],
    HUB: ["registry-1.docker.io", "index.docker.io", "docker.io", "auth.docker.io"],
    GHCR: ["ghcr.io"],
    PUBLIC: ["public.ecr.aws", "ecr-public.aws.com"],
    # Names of somebody else, look-alikes among them.
    FOREIGN: [
        "foreign.example",
        "123456789012.dkr.ecr.us-east-1.amazonaws.com.evil.example",
        "123456789012.dkr.ecr.evil.amazonaws.com",
    ],
    MIRROR: ["mirror.example"],
    CLIENT_CERTIFICATE: ["client-certificate.example"],
    UNTRUSTED: ["untrusted.example", "folder.example"],
    # Nobody listens there.
    DEAD: ["dead.example"],
}


def registry_names(account, region):
    suffix, dual = REGIONS[region]
    names = [f"{account}.dkr.ecr.{region}.{suffix}", f"{account}.dkr.ecr-fips.{region}.{suffix}"]
    if dual:
        names += [f"{account}.dkr-ecr.{region}.on.{dual}", f"{account}.dkr-ecr-fips.{region}.on.{dual}"]
    return names


def control_names(region):
    suffix, dual = REGIONS[region]
    names = [f"{name}.{region}.{suffix}" for name in ("api.ecr", "api.ecr-fips", "ecr-fips", "sts", "sts-fips")]
    if dual:
        names += [f"{name}.{region}.api.{dual}" for name in ("ecr", "ecr-fips", "sts")]
    return names


def table():
    """address: its names"""
    all_names = {address: list(names) for address, names in OTHERS.items()}
    all_names[CLEAN], all_names[SHAPED] = [], []
    for region in REGIONS:
        all_names[CONTROL_PLANE] += control_names(region)
        all_names[CLEAN] += registry_names(CLEAN_ACCOUNT, region)
        all_names[SHAPED] += registry_names(SHAPED_ACCOUNT, region)
    return all_names


def hosts_file():
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    for address, names in table().items():
        lines += [f"{address} {name}" for name in names]
    return "\n".join(lines) + "\n"
