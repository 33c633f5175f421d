#!/usr/bin/env python3
"""Measures `bareboat push` and `bareboat copy` beside `skopeo copy` and prints Markdown tables; started by `tests/bench/run transfers`.

Work, each with bytes that do not compress, over TLS to a registry on loopback:
    300x1, 300x4    300 MB in one layer, in four
    40x1MB          40 layers of 1 MB
A push goes from an OCI layout into a repository that is new each time; a pull goes into a layout directory that is not there. The peers
take turns, and the order turns round each time. Figures are medians of whole commands. Memory is sampled in runs of its own, with 2 GB
in four layers too (2000x4), as the largest Pss. Layouts and the registry's data lie in a file system of memory. Standard library only.
"""
import argparse, hashlib, json, os, re, shutil, statistics, subprocess, sys, tarfile, time, zlib

from bench import Memory, seconds

WORKS = {"300x1": (1, 300_000_000), "300x4": (4, 75_000_000), "40x1MB": (40, 1_000_000), "2000x4": (4, 500_000_000)}
TIMED = ("300x1", "300x4", "40x1MB")
RATIO_AIM, MEMORY_AIM_MB = 1.5, 100
CHUNK_BYTES = 1 << 20
OCI = "application/vnd.oci.image."


# ---------------------------------------------------------------------------------------------------- layouts
class Layout:
    """An OCI layout, written as another program would."""

    def __init__(self, path, layers, layer_bytes):
        self.path = path
        os.makedirs(f"{path}/blobs/sha256")
        layers = [self.layer(layer_bytes) for _ in range(layers)]
        diff_ids = [diff_id for _, diff_id in layers]
        config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        manifest = {"schemaVersion": 2, "mediaType": OCI + "manifest.v1+json", "config": self.document(config, "config.v1+json"),
                    "layers": [descriptor for descriptor, _ in layers]}
        entry = self.document(manifest, "manifest.v1+json")
        entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
        self.digest = entry["digest"]
        with open(f"{path}/index.json", "w") as out:
            json.dump({"schemaVersion": 2, "manifests": [entry]}, out)
        with open(f"{path}/oci-layout", "w") as out:
            out.write('{"imageLayoutVersion":"1.0.0"}')

    def layer(self, size):
        """A gzip member of stored blocks with one file of noise: (descriptor, diff ID)."""
        name = f"{self.path}/blobs/new"
        blob, plain, squeeze, total = hashlib.sha256(), hashlib.sha256(), zlib.compressobj(0, zlib.DEFLATED, 31), 0
        with open(name, "wb") as out:
            for chunk in tar_of_noise(size):
                plain.update(chunk)
                total += put(out, blob, squeeze.compress(chunk))
            total += put(out, blob, squeeze.flush())
        os.rename(name, f"{self.path}/blobs/sha256/{blob.hexdigest()}")
        descriptor = {"mediaType": OCI + "layer.v1.tar+gzip", "digest": f"sha256:{blob.hexdigest()}", "size": total}
        return descriptor, f"sha256:{plain.hexdigest()}"

    def document(self, value, kind):
        text = json.dumps(value).encode()
        digest = hashlib.sha256(text).hexdigest()
        with open(f"{self.path}/blobs/sha256/{digest}", "wb") as out:
            out.write(text)
        return {"mediaType": OCI + kind, "digest": f"sha256:{digest}", "size": len(text)}


def put(out, hasher, data):
    hasher.update(data)
    return out.write(data)


def tar_of_noise(size):
    member = tarfile.TarInfo("noise")
    member.size = size
    yield member.tobuf()
    for offset in range(0, size, CHUNK_BYTES):
        yield os.urandom(min(CHUNK_BYTES, size - offset))
    yield bytes(-size % 512 + 1024)


# ------------------------------------------------------------------------------------------------------ peers
class Bareboat:
    name = "bareboat"

    def __init__(self, options):
        self.binary = options.bareboat
        self.trust = ["--ca-file", f"{options.certificates}/ca.crt", "--progress", "quiet"]

    def push(self, layout, reference):
        return [self.binary, "push", *self.trust, f"{layout}:latest", reference]

    def pull(self, reference, layout):
        return [self.binary, "copy", *self.trust, reference, f"oci:{layout}:latest"]


class Skopeo:
    name = "skopeo"

    def __init__(self, options):
        self.binary = os.path.realpath(shutil.which("skopeo"))
        self.certificates = options.certificates

    def push(self, layout, reference):
        return [self.binary, "copy", "-q", "--dest-cert-dir", self.certificates, f"oci:{layout}:latest", f"docker://{reference}"]

    def pull(self, reference, layout):
        return [self.binary, "copy", "-q", "--src-cert-dir", self.certificates, f"docker://{reference}", f"oci:{layout}:latest"]


# -------------------------------------------------------------------------------------------------- measuring
def measured(command, scratch):
    """(wall seconds, CPU seconds) of a command that must succeed. Neither peer remembers in which repositories blobs were."""
    shutil.rmtree(scratch, ignore_errors=True)
    os.mkdir(scratch)
    # containers/image keeps such a memory of a user in XDG_DATA_HOME; of root it would be the machine's.
    environment = dict(os.environ, XDG_DATA_HOME=scratch, XDG_CACHE_HOME=scratch, _CONTAINERS_ROOTLESS_UID="1000")
    began = time.monotonic()
    with open(f"{scratch}/log", "w+") as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - began
        if status:
            log.seek(0)
            sys.exit(f"{' '.join(command)}: {child.returncode}\n{log.read()[-3000:]}")
    return wall, usage.ru_utime + usage.ru_stime


def peak(peer, command, scratch):
    sampler = Memory(peer.binary)
    sampler.start()
    measured(command, scratch)
    sampler.stop.set()
    sampler.join()
    return sampler.peak_bytes


class Transfers:
    def __init__(self, options):
        self.options, self.serial = options, 0
        self.peers = [Bareboat(options), Skopeo(options)]
        self.scratch, self.target = f"{options.disk}/scratch", f"{options.disk}/pulled"
        self.times, self.memory, self.floors = {}, {}, []

    def layout(self, work):
        return Layout(f"{self.options.disk}/{work}", *WORKS[work])

    def both(self, layout, peer, measure):
        """A push and a pull of what was pushed: what `measure` says of each."""
        self.serial += 1
        reference = f"{self.options.registry}/bench/{peer.name}-{self.serial}:latest"
        pushed = measure(peer, peer.push(layout.path, reference))
        pulled = measure(peer, peer.pull(reference, self.target))
        with open(f"{self.target}/index.json") as index:
            if json.load(index)["manifests"][0]["digest"] != layout.digest:
                sys.exit(f"{peer.name} changed the image")
        shutil.rmtree(self.target)
        return {"push": pushed, "pull": pulled}

    def time(self, work):
        layout = self.layout(work)
        for number in range(self.options.rounds + 1):
            for peer in self.peers if number % 2 == 0 else reversed(self.peers):
                found = self.both(layout, peer, lambda _, command: measured(command, self.scratch))
                for way, values in found.items():
                    # The first round only warms up.
                    if number:
                        self.times.setdefault((way, work, peer.name), []).append(values)
        if work == "300x1":
            self.floors = floors(self.options, layout)
        shutil.rmtree(layout.path)

    def hold(self, work):
        layout = self.layout(work)
        for peer in self.peers:
            for way, value in self.both(layout, peer, lambda peer, command: peak(peer, command, self.scratch)).items():
                self.memory[way, work, peer.name] = value
        shutil.rmtree(layout.path)


# ---------------------------------------------------------------------------------------------------- floors
class Curl:
    """One layer through one connection: what the registry itself needs for it. curl neither hashes nor looks."""

    def __init__(self, options, layout):
        self.options, self.url = options, f"https://{options.registry}/v2/bench/curl"
        names = os.listdir(f"{layout.path}/blobs/sha256")
        self.path = max((f"{layout.path}/blobs/sha256/{name}" for name in names), key=os.path.getsize)
        self.digest = "sha256:" + os.path.basename(self.path)

    def run(self, *arguments):
        command = ["curl", "-sSf", "--noproxy", "*", "--cacert", f"{self.options.certificates}/ca.crt", *arguments]
        return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout.decode()

    def upload(self):
        head = self.run("-X", "POST", "-D", "-", "-o", "/dev/null", f"{self.url}-{time.monotonic_ns()}/blobs/uploads/")
        location = re.search(r"(?im)^location:\s*(\S+)", head)[1]
        self.run("-X", "PUT", "-T", self.path, "-H", "Expect:", f"{location}&digest={self.digest}")
        self.found = location.split("/blobs/uploads/")[0]

    def download(self):
        self.run("-o", f"{self.options.disk}/floor", f"{self.found}/blobs/{self.digest}")
        os.unlink(f"{self.options.disk}/floor")


def floors(options, layout):
    curl = Curl(options, layout)
    return [(f"{work.__name__} by curl", [wall_of(work) for _ in range(options.rounds)]) for work in (curl.upload, curl.download)]


def wall_of(work):
    began = time.monotonic()
    work()
    return time.monotonic() - began


# --------------------------------------------------------------------------------------------------- tables
def print_times(transfers):
    print(f"\nMedians of {transfers.options.rounds}, seconds; CPU is user and system time of the client (aim: ratio of wall at least {RATIO_AIM}):\n")
    print("| work | bareboat | skopeo | ratio | bareboat CPU | skopeo CPU |\n|---|---|---|---|---|---|")
    for way, work in dict.fromkeys(key[:2] for key in transfers.times):
        wall, cpu = ([[value[at] for value in transfers.times[way, work, peer.name]] for peer in transfers.peers] for at in (0, 1))
        ratio = statistics.median(wall[1]) / statistics.median(wall[0])
        print(f"| {way} {work} | {seconds(wall[0])} | {seconds(wall[1])} | {ratio:.2f} | {seconds(cpu[0])} | {seconds(cpu[1])} |")


def print_memory(transfers):
    print(f"\nPeak memory (Pss), MB (aim: below {MEMORY_AIM_MB} for bareboat, the same for 2 GB):\n")
    print("| work | bareboat | skopeo |\n|---|---|---|")
    for way, work in dict.fromkeys(key[:2] for key in transfers.memory):
        print(f"| {way} {work} | " + " | ".join(f"{transfers.memory[way, work, peer.name] / 1e6:.0f}" for peer in transfers.peers) + " |")


def print_floors(transfers):
    print("\nFloors, the same layer of 300 MB, medians, seconds:\n")
    for what, values in transfers.floors:
        print(f"- {what}: {seconds(values)}")


def print_raw(transfers):
    print("\nRaw figures, wall (CPU) in seconds, in the order they were taken:\n")
    for (way, work, name), values in transfers.times.items():
        print(f"- {way} {work} {name}: " + " ".join(f"{wall:.2f} ({cpu:.2f})" for wall, cpu in values))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", required=True)
    parser.add_argument("--certificates", required=True, help="with the registry's authority as ca.crt")
    parser.add_argument("--disk", required=True)
    parser.add_argument("--bareboat", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(TIMED), help="what is timed")
    parser.add_argument("--memory", default="300x4,2000x4", help="where memory is sampled; empty for nothing")
    options = parser.parse_args()
    transfers = Transfers(options)
    for work in filter(None, options.only.split(",")):
        transfers.time(work)
    for work in filter(None, options.memory.split(",")):
        transfers.hold(work)
    version = subprocess.run(["skopeo", "--version"], stdout=subprocess.PIPE, text=True).stdout.strip()
    size = os.stat(options.bareboat).st_size / 1e6
    print(f"{os.cpu_count()} CPUs, Linux {os.uname().release}, {version}, TLS on loopback, all files in memory; bareboat's binary has {size:.1f} MB")
    if transfers.times:
        print_times(transfers)
    if transfers.floors:
        print_floors(transfers)
    if transfers.memory:
        print_memory(transfers)
    print_raw(transfers)


if __name__ == "__main__":
    main()
