#!/usr/bin/env python3
"""Makes the base images of the tests once and prints the folder that holds them.

    busybox/   Debian's static busybox with its links: PATH, CMD
    debian/    debootstrap's minbase of the machine's own release and apt sources, plus libcap2-bin: PATH, CMD

Each is an OCI layout with the tag `latest`. They are kept in ${XDG_CACHE_HOME:-~/.cache}/bareboat-tests/KEY, where KEY is made of
this script, the release, the architecture and the apt sources; other keys' folders are older bases, deleted after a week.
Standard library only; needs root, debootstrap and busybox-static.
"""
import datetime, fcntl, glob, gzip, hashlib, json, os, platform, re, shutil, subprocess, sys, tarfile, tempfile

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x"}
DEFAULT_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# What of the machine's apt configuration a base needs to reach the same sources.
APT_OPTIONS = re.compile(r"^(Acquire::(http|https|ftp)(::.*)?|Acquire::Check-(Date|Valid-Until)|Acquire::Retries|Acquire::ForceIPv[46]|APT::Get::AllowUnauthenticated) ")


def say(text):
    print("== " + text, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------- apt sources
class Source:
    def __init__(self, uri, suite, components, options):
        self.uri, self.suite, self.components, self.options = uri, suite, components, options

    def line(self):
        options = " ".join(f"{key}={value}" for key, value in sorted(self.options.items()))
        return f"deb {'[' + options + '] ' if options else ''}{self.uri} {self.suite} {' '.join(self.components)}".rstrip()


def one_line_sources(text):
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)([^#]*)", line)
        if match:
            options = dict(pair.split("=", 1) for pair in (match[1] or "").split() if "=" in pair)
            yield Source(match[2], match[3], match[4].split(), options)


def deb822_sources(text):
    for paragraph in re.split(r"\n\s*\n", text):
        fields, last = {}, None
        for line in paragraph.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in (" ", "\t") and last:
                fields[last] += "\n" + line.strip()
            elif ":" in line:
                last, _, value = line.partition(":")
                last = last.strip().lower()
                fields[last] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        options = {}
        if "\n" not in fields.get("signed-by", ""):
            options = {key: fields[key] for key in ("signed-by", "trusted") if fields.get(key)}
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Source(uri, suite, fields.get("components", "").split(), options)


def all_sources(release):
    """The machine's Debian sources of its own release; third-party ones are left out."""
    found = []
    for path in ["/etc/apt/sources.list", *sorted(glob.glob("/etc/apt/sources.list.d/*"))]:
        reader = {".list": one_line_sources, ".sources": deb822_sources}.get(os.path.splitext(path)[1])
        if reader and os.path.isfile(path):
            found += reader(open(path, encoding="utf-8", errors="replace").read())
    return [source for source in found if source.suite.split("-")[0].split("/")[0] == release and "main" in source.components]


def apt_configuration():
    dump = subprocess.run(["apt-config", "dump"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return [line for line in dump.splitlines() if APT_OPTIONS.match(line) and not line.endswith(' "";')]


def release_name():
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', open("/etc/os-release").read(), re.M))
    if fields.get("ID") != "debian" or not fields.get("VERSION_CODENAME"):
        sys.exit(f"the Debian base needs a Debian machine with a released version, this is {fields.get('PRETTY_NAME')}")
    return fields["VERSION_CODENAME"]


# ------------------------------------------------------------------------------------------------------- trees
def make_busybox(root):
    busybox = shutil.which("busybox")
    for directory in ("bin", "etc", "root", "usr/bin", "usr/sbin", "sbin", "var", "dev", "proc", "sys"):
        os.makedirs(f"{root}/{directory}", mode=0o755)
    os.mkdir(f"{root}/tmp")
    os.chmod(f"{root}/tmp", 0o1777)
    shutil.copyfile(busybox, f"{root}/bin/busybox")
    os.chmod(f"{root}/bin/busybox", 0o755)
    for applet in subprocess.run([busybox, "--list"], check=True, stdout=subprocess.PIPE, text=True).stdout.split():
        if applet != "busybox":
            os.symlink("busybox", f"{root}/bin/{applet}")
    with open(f"{root}/etc/passwd", "w") as passwd, open(f"{root}/etc/group", "w") as group:
        passwd.write("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
        group.write("root:x:0:\napp:x:1000:\nnobody:x:65534:\n")


def make_debian(root, release, sources):
    main = next((source for source in sources if source.suite == release), None)
    if main is None:
        sys.exit(f"no apt source of {release} with the component main in /etc/apt/sources.list or sources.list.d")
    command = ["debootstrap", "--variant=minbase", "--include=ca-certificates,libcap2-bin", *debootstrap_trust(main), release, root, main.uri]
    log = tempfile.NamedTemporaryFile("w+", prefix="debootstrap-", suffix=".log")
    done = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=debootstrap_environment())
    if done.returncode:
        log.seek(0)
        sys.stderr.write("".join(log.readlines()[-20:]))
        sys.exit(f"debootstrap failed; by hand: {' '.join(command)}")
    configure_apt(root, sources)
    for pattern in ("var/cache/apt/archives/*.deb", "var/cache/apt/*.bin", "var/lib/apt/lists/*", "var/log/bootstrap.log", "var/log/*.log"):
        for path in glob.glob(f"{root}/{pattern}"):
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    for name in ("resolv.conf", "hostname"):
        if os.path.lexists(f"{root}/etc/{name}"):
            os.unlink(f"{root}/etc/{name}")


def debootstrap_trust(source):
    if source.options.get("trusted") == "yes":
        return ["--no-check-gpg"]
    keyring = source.options.get("signed-by", DEFAULT_KEYRING)
    return [f"--keyring={keyring}"] if keyring.startswith("/") and os.path.isfile(keyring) else []


def debootstrap_environment():
    """debootstrap downloads with wget, which does not read apt's configuration: hand apt's proxies over."""
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    for scheme in ("http", "https"):
        shell = subprocess.run(["apt-config", "shell", "proxy", f"Acquire::{scheme}::Proxy"], stdout=subprocess.PIPE, text=True).stdout
        match = re.search(r"proxy='(.+)'", shell)
        if match and match[1] != "DIRECT":
            environment[f"{scheme}_proxy"] = match[1]
    return environment


def configure_apt(root, sources):
    """The same sources, options, keys and CA bundle in the base, so that `apt-get install` works in a RUN as it does here."""
    for path in glob.glob(f"{root}/etc/apt/sources.list.d/*"):
        os.unlink(path)
    with open(f"{root}/etc/apt/sources.list", "w") as out:
        out.writelines(source.line() + "\n" for source in sources)
    lines = apt_configuration()
    lines += ['Acquire::Languages "none";', 'APT::Install-Recommends "false";', 'Acquire::Retries "3";']
    with open(f"{root}/etc/apt/apt.conf.d/90machine", "w") as out:
        out.writelines(line + "\n" for line in lines)
    keys = {source.options["signed-by"] for source in sources if source.options.get("signed-by", "").startswith("/")}
    keys |= set(glob.glob("/etc/apt/trusted.gpg.d/*"))
    files = re.findall(r'(?:CAInfo|SslCert|CaPath) "(/[^"]+)"', "\n".join(lines))
    bundle = "/etc/ssl/certs/ca-certificates.crt"
    for path in {*keys, *files, *([bundle] if any(source.uri.startswith("https") for source in sources) else [])}:
        if os.path.isfile(path):
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            shutil.copyfile(path, root + path)
            os.chmod(root + path, 0o644)


# ------------------------------------------------------------------------------------------------------ layout
class Layout:
    def __init__(self, path):
        self.path = path
        os.makedirs(f"{path}/blobs/sha256")
        with open(f"{path}/oci-layout", "w") as out:
            json.dump({"imageLayoutVersion": "1.0.0"}, out)

    def document(self, value, media_type):
        data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        digest = hashlib.sha256(data).hexdigest()
        with open(f"{self.path}/blobs/sha256/{digest}", "wb") as out:
            out.write(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def layer(self, root):
        """Descriptor and diff ID of one gzip layer with everything below `root`."""
        temporary = f"{self.path}/blobs/layer"
        with open(temporary, "wb") as out:
            with gzip.GzipFile("", "wb", 6, out, mtime=0) as packed:
                tee = Hasher(packed)
                write_tar(root, tee)
        digest = file_digest(temporary)
        size = os.path.getsize(temporary)
        os.rename(temporary, f"{self.path}/blobs/sha256/{digest}")
        descriptor = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": f"sha256:{digest}", "size": size}
        return descriptor, f"sha256:{tee.sha.hexdigest()}"

    def image(self, root, command):
        layer, diff_id = self.layer(root)
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        config = {
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "created": now,
            "config": {"Env": [f"PATH={PATH}"], "Cmd": [command]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": now, "created_by": "bareboat tests: base"}],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.document(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [layer],
        }
        top = self.document(manifest, manifest["mediaType"])
        top["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
        with open(f"{self.path}/index.json", "w") as out:
            json.dump({"schemaVersion": 2, "manifests": [top]}, out)


class Hasher:
    def __init__(self, out):
        self.out, self.sha = out, hashlib.sha256()

    def write(self, data):
        self.sha.update(data)
        self.out.write(data)


def write_tar(root, out):
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for directory, directories, files in os.walk(root):
            directories.sort()
            for name in sorted(directories + files):
                path = os.path.join(directory, name)
                member = tar.gettarinfo(path, os.path.relpath(path, root))
                if member is None:
                    continue
                member.uname = member.gname = ""
                member.mtime = int(member.mtime)
                add(tar, member, path)


def add(tar, member, path):
    if not os.path.islink(path) and "security.capability" in os.listxattr(path):
        value = os.getxattr(path, "security.capability").decode("utf-8", "surrogateescape")
        member.pax_headers = {"SCHILY.xattr.security.capability": value, "hdrcharset": "BINARY"}
    if member.isreg():
        with open(path, "rb") as content:
            tar.addfile(member, content)
    else:
        tar.addfile(member)


def file_digest(path):
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


# -------------------------------------------------------------------------------------------------------- main
def build(target, name, fill, command):
    say(f"making the base image {name}")
    with tempfile.TemporaryDirectory(prefix="bareboat-base-", dir=os.path.dirname(target)) as scratch:
        root = os.path.join(scratch, "root")
        os.mkdir(root, 0o755)
        fill(root)
        Layout(os.path.join(scratch, name)).image(root, command)
        os.rename(os.path.join(scratch, name), os.path.join(target, name))
        subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)


def main():
    release = release_name()
    sources = all_sources(release)
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "bareboat-tests")
    os.makedirs(cache, mode=0o700, exist_ok=True)
    parts = [open(__file__).read(), release, platform.machine(), *(source.line() for source in sources), *apt_configuration()]
    target = os.path.join(cache, release + "-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16])
    with open(os.path.join(cache, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.umask(0o022)
        os.makedirs(target, exist_ok=True)
        if not os.path.isdir(f"{target}/busybox"):
            build(target, "busybox", make_busybox, "sh")
        if not os.path.isdir(f"{target}/debian"):
            build(target, "debian", lambda root: make_debian(root, release, sources), "bash")
        for old in glob.glob(f"{cache}/*-" + "[0-9a-f]" * 16):
            if old != target and os.path.getmtime(old) + 7 * 86400 < datetime.datetime.now().timestamp():
                shutil.rmtree(old)
    print(target)


if __name__ == "__main__":
    main()
