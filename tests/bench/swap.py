#!/usr/bin/env python3
"""Measures RUN on the swap rung beside the overlay rung and prints Markdown tables; started by `tests/bench/run swap`.

Both rungs build in containers of one image on one disk: swap in a default one (Docker's capabilities and seccomp profile), overlay in a
privileged one with its state on a volume. A build has a RUN that makes the stage's tree, and then the steps that count; a step's figure
is its `seconds` in the metadata file, the walk and the layer included. Swaps and walks are what `-v` tells of them. The rungs take turns,
and the order turns round each time; a figure is the median. Standard library only.
"""
import argparse, io, json, os, re, shutil, statistics, subprocess, sys, tarfile, tempfile

CAPABILITIES = ("AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID "
                "SYS_CHROOT").split()
RUNGS = ("swap", "overlay")
SIZES = {"7 thousand": 7_000, "100 thousand": 100_000, "500 thousand": 500_000}
STEPS = 5
FILES_A_DIRECTORY = 100
PACKAGES = "RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev\n"
STAGE_WORK = {
    "CPU": "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; echo $i > /sum",
    "files": "mkdir /many && cd /many && i=0 && while [ $i -lt 4000 ]; do echo $i > $i; i=$((i+1)); done",
}


def run(command, **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{(done.stdout + done.stderr).decode()[-3000:]}")
    return done


class Containers:
    """One container a rung, from an image with the binary and a static shell."""

    def __init__(self, options):
        self.options = options
        self.podman = ["podman", "--root", f"{options.disk}/s", "--runroot", f"{options.disk}/r", "--storage-driver", "overlay",
                       "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", "runc"]
        run(self.podman + ["import", "-q", "-", "job"], input=self.image())
        self.names = {}

    def image(self):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            tar.add(self.options.bareboat, "bareboat/bareboat")
            tar.add(shutil.which("busybox"), "busybox/busybox")
        return out.getvalue()

    def start(self, rung):
        os.makedirs(f"{self.options.disk}/state-{rung}", exist_ok=True)
        arguments = ["run", "--detach", "--network", "host", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]
        if rung == "swap":
            seccomp = os.path.join(os.path.dirname(__file__), "../places/seccomp/docker-default.json")
            arguments += ["--cap-drop=ALL", *(f"--cap-add={name}" for name in CAPABILITIES), f"--security-opt=seccomp={os.path.abspath(seccomp)}"]
        else:
            arguments += ["--privileged", f"--volume={self.options.disk}/state-{rung}:/state", "--env=BAREBOAT_STATE_DIR=/state"]
        done = run(self.podman + arguments + ["job", "/busybox/busybox", "sleep", "7200"])
        self.names[rung] = done.stdout.decode().strip()

    def stop(self, rung):
        subprocess.run(self.podman + ["rm", "--force", "--time", "0", self.names.pop(rung)], stdout=subprocess.DEVNULL)
        subprocess.run(["rm", "-rf", "--one-file-system", f"{self.options.disk}/state-{rung}"], check=True)

    def build(self, rung, dockerfile, *arguments):
        """The steps' seconds by line, and the log."""
        metadata = "/dev/shm/metadata.json"
        command = ["runc", "exec", "--cwd", "/", self.names[rung], "/bareboat/bareboat", "build", "-v", "--progress", "plain", "--no-cache",
                   "--metadata-file", metadata, "-o", "type=oci,dest=/dev/shm/out.tar", *arguments, "-"]
        with tempfile.TemporaryFile() as context:
            with tarfile.open(fileobj=context, mode="w") as tar:
                entry = tarfile.TarInfo("Dockerfile")
                entry.size = len(dockerfile)
                tar.addfile(entry, io.BytesIO(dockerfile.encode()))
            context.seek(0)
            log = run(command, stdin=context).stderr.decode()
        told = run(["runc", "exec", "--cwd", "/", self.names[rung], "/busybox/busybox", "cat", metadata]).stdout
        told = json.loads(told)["bareboat"]
        if told["sandbox"] != rung:
            sys.exit(f"the rung is {told['sandbox']}, not {rung}")
        return {step["line"]: step["seconds"] for step in told["steps"]}, log


def base_of(options, entries):
    """The reference of busybox with that many entries more."""
    folder = f"{options.disk}/context-{entries}"
    os.makedirs(folder)
    with tarfile.open(f"{folder}/files.tar", "w") as tar:
        for number in range(entries):
            if number % FILES_A_DIRECTORY == 0:
                entry = tarfile.TarInfo(f"files/{number // FILES_A_DIRECTORY}")
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            else:
                entry = tarfile.TarInfo(f"files/{number // FILES_A_DIRECTORY}/{number}")
            tar.addfile(entry)
    with open(f"{folder}/Dockerfile", "w") as out:
        out.write(f"FROM {options.registry}/base/busybox:latest\nADD files.tar /\n")
    reference = f"{options.registry}/bench/entries-{entries}:latest"
    run([options.bareboat, "build", "--state-dir", f"{options.disk}/state-base", "-t", reference, "--push", folder])
    shutil.rmtree(folder)
    return reference


def told(log, name):
    return [float(value) for value in re.findall(rf"\b{name}=([0-9.]+)", log)]


class Bench:
    def __init__(self, options):
        self.options, self.containers, self.figures = options, Containers(options), {}

    def note(self, work, rung, values):
        self.figures.setdefault((work, rung), []).extend(values)

    def rounds(self, work, dockerfile, lines, rounds):
        for number in range(rounds):
            for rung in RUNGS if number % 2 == 0 else reversed(RUNGS):
                self.containers.start(rung)
                steps, log = self.containers.build(rung, dockerfile)
                self.containers.stop(rung)
                self.note(work, rung, [steps[line] for line in lines])
                for name in ("milliseconds_in", "milliseconds_out", "milliseconds"):
                    # The first step makes the tree, and takes the job image's directories out of its layers.
                    self.note(f"{work}, {name}", rung, told(log, name)[1:])
            print(f"== {work}: {number + 1} of {rounds}", file=sys.stderr, flush=True)

    def sizes(self):
        for name, entries in SIZES.items():
            if entries > self.options.entries_max:
                continue
            base = base_of(self.options, entries)
            text = f"FROM {base}\n" + "RUN true\n" * (1 + STEPS)
            self.rounds(f"RUN true, {name} entries", text, range(3, 3 + STEPS), self.options.rounds)

    def packages(self):
        text = f"FROM {self.options.registry}/base/debian:latest\nRUN true\n{PACKAGES}"
        self.rounds("apt-get install gcc", text, [3], self.options.rounds)

    def stages(self):
        """Four stages that nothing but the last line needs; the figure is the time of all."""
        for name, work in STAGE_WORK.items():
            base = f"FROM {self.options.registry}/base/busybox:latest"
            text = "".join(f"{base} AS s{number}\nRUN {work}; : {number}\n" for number in range(4)) + f"{base}\n"
            text += "".join(f"COPY --from=s{number} /etc/passwd /p{number}\n" for number in range(4))
            for number in range(self.options.rounds):
                for rung in RUNGS if number % 2 == 0 else reversed(RUNGS):
                    self.containers.start(rung)
                    self.containers.build(rung, f"{base}\nRUN true\n")
                    _, log = self.containers.build(rung, text)
                    self.containers.stop(rung)
                    self.note(f"four stages, {name}", rung, [float(re.search(r"(?m)^time +([0-9.]+)s", log)[1])])


def table(figures):
    print("| work | swap | overlay | ratio |\n|---|---|---|---|")
    for work in dict.fromkeys(work for work, _ in figures):
        medians = [statistics.median(figures[work, rung]) if figures.get((work, rung)) else None for rung in RUNGS]
        cells = [f"{value:.3f}" if value is not None else "–" for value in medians]
        if any(value is not None for value in medians):
            print(f"| {work} | {' | '.join(cells)} | {f'{medians[0] / medians[1]:.2f}' if all(medians) else '–'} |")
    print("\nRaw figures, in the order they were taken:\n")
    for (work, rung), values in figures.items():
        if values:
            print(f"- {work}, {rung}: " + " ".join(f"{value:g}" for value in values))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", required=True)
    parser.add_argument("--disk", required=True)
    parser.add_argument("--bareboat", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="sizes,packages,stages")
    parser.add_argument("--entries-max", type=int, default=max(SIZES.values()))
    bench = Bench(parser.parse_args())
    for name in bench.options.only.split(","):
        getattr(bench, name)()
    print(f"{os.cpu_count()} CPUs, Linux {os.uname().release}, states on a loop-mounted ext4; seconds, or milliseconds where it is said\n")
    table(bench.figures)


if __name__ == "__main__":
    main()
