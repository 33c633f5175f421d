#!/usr/bin/env python3
"""Measures builders on the same work and prints Markdown tables; started by tests/bench/run.

Work, each build with its push to a repository of its own:
    a    COPY of a 20 MB file that does not compress on the Debian base, empty state
    b    RUN that writes 20,000 small files on the Debian base, empty state
    a2, b2   the same build and push again, nothing changed, same state
The peers take turns, and the order turns round each time. Times are of whole commands; a figure is the median. Memory is sampled in
runs of its own: the largest sum of Pss (/proc/PID/smaps_rollup) over the processes that execute the builder's own binary, so a step's
processes do not count. The floors are what curl and a shell need for the same bytes and files alone. Standard library only.
"""
import argparse, json, os, re, shutil, statistics, subprocess, sys, threading, time

COPY_BYTES = 20_000_000
AIMS = {"a": "at least 3", "b": "at least 2", "a2": "at most 0.15 s", "b2": "at most 0.15 s"}
TITLES = {"a": "COPY of 20 MB, empty state", "b": "RUN of 20,000 files, empty state", "a2": "the same COPY build again", "b2": "the same RUN build again"}
MEMORY_AIM_MB = 150
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MANY_FILES = ("mkdir /many && cd /many && d=0 && while [ $d -lt 200 ]; do mkdir $d; f=0; "
              "while [ $f -lt 100 ]; do echo $d-$f > $d/$f; f=$((f+1)); done; d=$((d+1)); done")


# ------------------------------------------------------------------------------------------------------ peers
class Bareboat:
    name = "bareboat"

    def __init__(self, options):
        self.binary = options.bareboat
        self.state = os.path.join(options.disk, "bareboat")

    def empty(self):
        subprocess.run(["rm", "-rf", "--one-file-system", self.state], check=True)

    def commands(self, context, reference):
        return [[self.binary, "build", "--state-dir", self.state, "--progress", "quiet", "-t", reference, "--push", context]]


class Buildah:
    name = "buildah"

    def __init__(self, options):
        self.binary = shutil.which("buildah")
        self.state = os.path.join(options.disk, "buildah")
        self.isolation = options.isolation
        self.base = [self.binary, "--root", self.state + "/root", "--runroot", self.state + "/run", "--storage-driver", "overlay"]

    def empty(self):
        subprocess.run(["umount", "-q", self.state + "/root/overlay"], stderr=subprocess.DEVNULL)
        subprocess.run(["rm", "-rf", "--one-file-system", self.state], check=True)

    def commands(self, context, reference):
        build = ["build", "-q", "--layers", "--format", "oci", "--isolation", self.isolation, "--network", "host", "--tls-verify=false"]
        return [self.base + build + ["-t", reference, context], self.base + ["push", "-q", "--tls-verify=false", reference]]


PEERS = {peer.name: peer for peer in (Bareboat, Buildah)}


# -------------------------------------------------------------------------------------------------- measuring
def run(command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout[-3000:]}")


def timed(commands):
    began = time.monotonic()
    for command in commands:
        run(command)
    return time.monotonic() - began


class Memory(threading.Thread):
    """Samples the Pss of every process that executes `binary`, below us, until stopped."""

    def __init__(self, binary):
        super().__init__(daemon=True)
        self.identity = self.inode(binary)
        self.peak_bytes, self.stop = 0, threading.Event()

    @staticmethod
    def inode(path):
        try:
            status = os.stat(path)
            return status.st_dev, status.st_ino
        except OSError:
            return None

    def run(self):
        while not self.stop.wait(0.01):
            self.peak_bytes = max(self.peak_bytes, sum(map(self.pss, self.processes())))

    def processes(self):
        return [pid for pid in os.listdir("/proc") if pid.isdigit() and self.inode(f"/proc/{pid}/exe") == self.identity]

    @staticmethod
    def pss(pid):
        try:
            match = re.search(r"^Pss:\s+(\d+) kB", open(f"/proc/{pid}/smaps_rollup").read(), re.M)
        except OSError:
            return 0
        return int(match[1]) * 1024 if match else 0


def memory_of(peer, commands):
    sampler = Memory(peer.binary)
    sampler.start()
    timed(commands)
    sampler.stop.set()
    sampler.join()
    return sampler.peak_bytes


class Bench:
    def __init__(self, options):
        self.options = options
        self.peers = [PEERS[name](options) for name in options.peers.split(",")]
        self.works = options.only.split(",")
        self.contexts = {work: self.context(work) for work in self.works}
        self.times, self.memory, self.serial = {}, {}, 0

    def context(self, work):
        path = os.path.join(self.options.disk, f"context-{work}")
        os.makedirs(path)
        base = f"FROM {self.options.registry}/base/debian:latest\n"
        with open(f"{path}/Dockerfile", "w") as out:
            out.write(base + ("COPY data /data\n" if work == "a" else f"RUN {MANY_FILES}\n"))
        if work == "a":
            with open(f"{path}/data", "wb") as out:
                out.write(os.urandom(COPY_BYTES))
        return path

    def once(self, peer, work, measure, results):
        """A build from an empty state, and the same build again."""
        self.serial += 1
        commands = peer.commands(self.contexts[work], f"{self.options.registry}/bench/{peer.name}-{work}-{self.serial}:latest")
        peer.empty()
        for name in (work, work + "2"):
            subprocess.run(["sync", "-f", self.options.disk], check=True)
            results.setdefault((name, peer.name), []).append(measure(peer, commands))
        peer.empty()

    def all(self):
        for number in range(self.options.rounds):
            for work in self.works:
                for peer in self.peers if number % 2 == 0 else reversed(self.peers):
                    self.once(peer, work, lambda _, commands: timed(commands), self.times)
            print(f"== round {number + 1} of {self.options.rounds}", file=sys.stderr, flush=True)
        for work in self.works:
            for peer in self.peers:
                for _ in range(self.options.memory_rounds):
                    self.once(peer, work, memory_of, self.memory)


# ---------------------------------------------------------------------------------------------------- floors
def curl(*arguments):
    command = ["curl", "-sSf", "--noproxy", "*", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL).stdout


def floors(options):
    """(what, seconds) of the same bytes through curl and the same files through a shell."""
    url = f"http://{options.registry}/v2"
    manifest = json.loads(curl("-H", f"Accept: {MANIFEST}", f"{url}/base/debian/manifests/latest"))
    layer = manifest["layers"][0]
    base = os.path.join(options.disk, "base-layer")
    data = os.path.join(options.disk, "floor-data")
    with open(data, "wb") as out:
        out.write(os.urandom(COPY_BYTES))
    megabytes = layer["size"] / 1e6
    return [
        (f"download of the base's layer ({megabytes:.0f} MB)", median(options, lambda: curl("-o", base, f"{url}/base/debian/blobs/{layer['digest']}"))),
        (f"upload of {COPY_BYTES / 1e6:.0f} MB", median(options, lambda: upload(url, data))),
        (f"upload of the base's layer ({megabytes:.0f} MB)", median(options, lambda: upload(url, base))),
        ("inflating the base's layer (gzip -dc)", median(options, lambda: run(["sh", "-c", f"gzip -dc < {base} > /dev/null"]))),
        ("writing 20,000 files by the same shell loop", median(options, lambda: write_files(options))),
    ]


def median(options, work):
    seconds = []
    for _ in range(options.rounds):
        began = time.monotonic()
        work()
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


def upload(url, path):
    """One POST and one PUT; the name's digest is the file's, computed beforehand by sha256sum within the time, as a builder must."""
    digest = subprocess.run(["sha256sum", path], check=True, stdout=subprocess.PIPE, text=True).stdout.split()[0]
    head = curl("-X", "POST", "-D", "-", "-o", "/dev/null", f"{url}/floor/n{time.monotonic_ns()}/blobs/uploads/").decode()
    location = re.search(r"(?im)^location:\s*(\S+)", head)[1]
    curl("-X", "PUT", "-T", path, "-H", "Expect:", f"{location}{'&' if '?' in location else '?'}digest=sha256:{digest}")


def write_files(options):
    target = os.path.join(options.disk, "floor-files")
    shutil.rmtree(target, ignore_errors=True)
    os.mkdir(target)
    run(["sh", "-c", MANY_FILES.replace("/many", target + "/many")])


# --------------------------------------------------------------------------------------------------- tables
def seconds(values):
    return f"{statistics.median(values):.2f}" if values else "–"


def print_times(bench):
    names = [peer.name for peer in bench.peers]
    print(f"\nMedians of {bench.options.rounds}, seconds, build and push:\n")
    print("| work | " + " | ".join(names) + " | ratio | aim |\n|---|" + "---|" * (len(names) + 2))
    for work in sorted({name for name, _ in bench.times}):
        values = {name: bench.times.get((work, name), []) for name in names}
        cells = " | ".join(seconds(values[name]) for name in names)
        print(f"| {work}: {TITLES[work]} | {cells} | {ratio(values)} | {AIMS[work]} |")


def ratio(values):
    if values.keys() != {"bareboat", "buildah"}:
        return "–"
    return f"{statistics.median(values['buildah']) / statistics.median(values['bareboat']):.1f}"


def print_memory(bench):
    if not bench.memory:
        return
    names = [peer.name for peer in bench.peers]
    print(f"\nPeak memory, largest sum of Pss of {bench.options.memory_rounds} runs, MB (aim: below {MEMORY_AIM_MB} for bareboat):\n")
    print("| work | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for work in sorted({name for name, _ in bench.memory}):
        print(f"| {work} | " + " | ".join(f"{max(bench.memory[work, name]) / 1e6:.0f}" for name in names) + " |")


def print_raw(bench):
    print("\nRaw figures, in the order they were taken:\n")
    for (work, name), values in sorted(bench.times.items()):
        print(f"- {work} {name}: " + " ".join(f"{value:.2f}" for value in values))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", required=True)
    parser.add_argument("--disk", required=True)
    parser.add_argument("--bareboat")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-rounds", type=int, default=2)
    parser.add_argument("--only", default="a,b")
    parser.add_argument("--peers", default="bareboat,buildah")
    parser.add_argument("--isolation", default="chroot", help="buildah's: chroot (its fastest) or oci")
    options = parser.parse_args()
    bench = Bench(options)
    bench.all()
    version = subprocess.run(["buildah", "--version"], stdout=subprocess.PIPE, text=True).stdout.strip()
    print(f"{os.cpu_count()} CPUs, Linux {os.uname().release}, {version}, isolation {options.isolation}, states on a loop-mounted ext4")
    print_times(bench)
    print_memory(bench)
    print("\nFloors, medians, seconds:\n")
    for what, value in floors(options):
        print(f"- {what}: {value:.2f}")
    print_raw(bench)


if __name__ == "__main__":
    main()
