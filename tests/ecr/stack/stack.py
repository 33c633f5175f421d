#!/usr/bin/env python3
"""A network and mount namespace in which real AWS names, Docker Hub, GHCR and the metadata addresses lead to stand-ins.

    stack.py run COMMAND…      runs COMMAND in there, ends the stack and exits as COMMAND does
    stack.py start             prints one line of JSON when it is up ({"pid", "directory", …}), and ends when stdin does

Inside, 443 of every name in names.py answers with a certificate by an authority that lies where the system keeps its own:
what runs there needs no flag. COMMAND finds BAREBOAT_STACK (a folder: log.jsonl, the certificates as *.pem and *.key,
control.sock as control.py describes). /etc is a copy-on-write view. Needs docker-registry, openssl, htpasswd, iproute2,
and BAREBOAT_TEST_MOTO (a virtual environment with moto); root, or user namespaces for everybody. Standard library only.
"""
import ctypes, json, os, shutil, signal, socket, subprocess, sys, tempfile, time

import bearer, certificates, control, control_plane, credentials, ecr_shape, names, relay, web

HERE = os.path.dirname(os.path.abspath(__file__))
MOTO_PORT, REGISTRY_PORT, SHARED_PORT = 5600, 5602, 5603
# What would lead past the stack: nothing outside is reachable in there, and the authority is found where the system has it.
FORGOTTEN = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "AWS_CA_BUNDLE")


def environment():
    """Ours, without proxies, certificates and AWS settings."""
    dropped = {name for name in os.environ if name.upper() in FORGOTTEN or name.startswith("AWS_")}
    return {name: value for name, value in os.environ.items() if name not in dropped}


# ------------------------------------------------------------------------------------------------- outside
def enter():
    """Starts this program again in namespaces of its own."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *user, "--net", "--mount", "--propagation", "private", "--", sys.executable, "-B", os.path.abspath(__file__)]
    os.execvpe(command[0], [*command, "inside", *sys.argv[1:]], environment())


# ------------------------------------------------------------------------------------------------- inside
def run(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def set_addresses():
    """Loopback is up, and owns the metadata addresses. Returns whether IPv6's one is there too."""
    run("ip", "link", "set", "lo", "up")
    for address in (names.METADATA, names.CONTAINER, names.POD_IDENTITY):
        run("ip", "address", "add", f"{address}/32", "dev", "lo")
    added = subprocess.run(["ip", "address", "add", f"{names.POD_IDENTITY_V6}/128", "dev", "lo", "nodad"], capture_output=True)
    return added.returncode == 0


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # A symbolic link here may lead out of /etc.
    if os.path.islink(path):
        os.unlink(path)
    with open(path, "w") as file:
        file.write(text)


def cover_etc(directory):
    """/etc as it is, with our hosts, resolver and authority in it; written to memory."""
    layer = os.path.join(directory, "etc")
    os.mkdir(layer)
    run("mount", "-t", "tmpfs", "-o", "mode=755", "etc-of-the-stack", layer)
    for name in ("upper", "work"):
        os.mkdir(os.path.join(layer, name))
    # What lies mounted below /etc (a container's hosts file) would be hidden; all of that is ours to write anyway.
    run("mount", "-t", "overlay", "-o", f"lowerdir=/etc,upperdir={layer}/upper,workdir={layer}/work", "overlay", "/etc")
    write("/etc/hosts", names.hosts_file())
    write("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    with open(os.path.join(directory, "ca.pem")) as file:
        write("/etc/ssl/certs/ca-certificates.crt", file.read())


def die_with_us():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def spawn(directory, name, *command):
    log = open(os.path.join(directory, f"{name}.log"), "w")
    extra = {"OTEL_TRACES_EXPORTER": "none", "AWS_EC2_METADATA_DISABLED": "true"}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_us, env={**os.environ, **extra})


def wait_for(process, name, directory, address):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(address) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    with open(os.path.join(directory, f"{name}.log")) as log:
        raise SystemExit(f"{name} does not start: {log.read()[-3000:]}")


def registry_config(directory, name, address, secure):
    lines = [
        "version: 0.1", "log: {level: error, accesslog: {disabled: false}}",
        f'storage: {{filesystem: {{rootdirectory: "{directory}/{name}-data"}}, delete: {{enabled: true}}, cache: {{blobdescriptor: inmemory}}}}',
    ]
    tls = f', tls: {{certificate: "{directory}/server.pem", key: "{directory}/server.key"}}' if secure else ""
    lines.append(f'http: {{addr: "{address}"{tls}}}')
    if secure:
        password = f"{names.CLEAN_ACCOUNT}-auth-token"
        write(f"{directory}/htpasswd", run("htpasswd", "-Bbn", "-C", "5", "AWS", password))
        lines.append(f'auth: {{htpasswd: {{realm: "registry", path: "{directory}/htpasswd"}}}}')
    write(f"{directory}/{name}.yml", "\n".join(lines) + "\n")
    return f"{directory}/{name}.yml"


def start_others(directory):
    """moto and the three docker-registries; returns their processes when they listen."""
    python = os.path.join(os.environ.get("BAREBOAT_TEST_MOTO", ""), "bin", "python3")
    if not os.access(python, os.X_OK):
        raise SystemExit("BAREBOAT_TEST_MOTO does not name a virtual environment with moto: start the tests with tests/run")
    started = [("moto", ("127.0.0.1", MOTO_PORT), [python, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(MOTO_PORT)])]
    for name, host, port in (("clean", names.CLEAN, 443), ("shaped", "127.0.0.1", REGISTRY_PORT), ("shared", "127.0.0.1", SHARED_PORT)):
        config = registry_config(directory, name, f"{host}:{port}", name == "clean")
        started.append((name, (host, port), ["docker-registry", "serve", config]))
    processes = [(spawn(directory, name, *command), name, address) for name, address, command in started]
    for process, name, address in processes:
        wait_for(process, name, directory, address)
    return [process for process, _, _ in processes]


def start_own(directory, has_v6):
    """The services of this process, each at its address."""
    log = web.Log(os.path.join(directory, "log.jsonl"))
    shaped, shared = relay.Upstream(REGISTRY_PORT), relay.Upstream(SHARED_PORT)
    plane = control_plane.ControlPlane("control-plane", log, MOTO_PORT)
    bucket = ecr_shape.Bucket("bucket", log, shaped)
    downloads = ecr_shape.Bucket("downloads", log, shared)
    served = web.tls_context(directory, "server")
    untrusted = web.tls_context(directory, "untrusted")
    asking = web.tls_context(directory, "server", os.path.join(directory, "ca.pem"))
    secure = [
        (names.CONTROL_PLANE, plane, served),
        (names.SHAPED, ecr_shape.EcrShape("ecr", log, shaped, plane, bucket), served),
        (names.BUCKET, Buckets(bucket, downloads), served),
        (names.HUB, bearer.hub(log, shared, downloads), served),
        (names.GHCR, bearer.ghcr(log, shared, downloads), served),
        (names.PUBLIC, bearer.public(log, shared, downloads), served),
        (names.FOREIGN, bearer.Foreign("foreign", log), served),
        (names.MIRROR, bearer.Door("mirror", log, shared), served),
        (names.CLIENT_CERTIFICATE, bearer.Door("client-certificate", log, shared), asking),
        (names.UNTRUSTED, bearer.Door("untrusted", log, shared), untrusted),
    ]
    identity = credentials.Container("pod-identity", log, "AKIAPODIDENTITY", "pod-identity-token")
    plain = [
        ((names.METADATA, 80), credentials.InstanceMetadata("imds", log)),
        ((names.CONTAINER, 80), credentials.Container("ecs", log, "AKIACONTAINER")),
        ((names.POD_IDENTITY, 80), identity),
        (("127.0.0.1", names.ID_TOKEN_PORT), credentials.IdTokens("id-tokens", log)),
    ]
    if has_v6:
        plain.append(((names.POD_IDENTITY_V6, 80), identity))
    for address, service, tls in secure:
        web.Server((address, 443), service, tls).start()
    for address, service in plain:
        web.Server(address, service).start()
    services = [service for _, service, _ in secure] + [service for _, service in plain] + [bucket, downloads]
    control.Control(os.path.join(directory, "control.sock"), services, log).start()


class Buckets:
    """One address, two object stores: by who signed."""

    name = "buckets"

    def __init__(self, *stores):
        self.stores, self.log = stores, stores[0].log

    def serve(self, exchange):
        signer = next((store for store in self.stores if exchange.path in store.signed), self.stores[0])
        exchange.notes["store"] = signer.name
        signer.serve(exchange)


def inside(arguments):
    directory = tempfile.mkdtemp(prefix="bareboat-stack.")
    started, code = [], 0
    # From here on a signal ends us by way of `finally`.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    try:
        has_v6 = set_addresses()
        certificates.make(directory, sorted(name for all_names in names.table().values() for name in all_names))
        cover_etc(directory)
        started = start_others(directory)
        start_own(directory, has_v6)
        os.environ["BAREBOAT_STACK"] = directory
        code = arguments[0] == "run" and subprocess.run(arguments[1:]).returncode or 0
        if arguments[0] == "start":
            print(json.dumps({"pid": os.getpid(), "directory": directory, "has_v6": has_v6}), flush=True)
            sys.stdin.buffer.read()
    finally:
        stop(started, directory)
    sys.exit(code if code >= 0 else 128 - code)


def stop(processes, directory):
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
    # The mounts below end with the namespace; our own view of them goes now, so that the folder can be removed.
    subprocess.run(["umount", "--lazy", "/etc"], capture_output=True)
    subprocess.run(["umount", "--lazy", os.path.join(directory, "etc")], capture_output=True)
    shutil.rmtree(directory, ignore_errors=True)


def main():
    if sys.argv[1:2] == ["inside"]:
        inside(sys.argv[2:])
    elif sys.argv[1:2] == ["start"] or sys.argv[1:2] == ["run"] and len(sys.argv) > 2:
        enter()
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
