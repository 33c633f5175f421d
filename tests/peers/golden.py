#!/usr/bin/env python3
"""The suite `golden`: all cases of a folder with a bareboat binary, judged by the folder's passing.txt.

    golden.py --bareboat PATH [--root DIR] [--update] [--list FILE] [--except FILE] [--sample N] [--ordinary] [CASE …]

DIR is tests/golden unless told: what a real BuildKit made. tests/cases holds our own cases, in the same form.

Fails if a case that the list names did not pass (or does not exist), and reports the cases that pass without being listed, so that the
list is kept true; --update rewrites it instead. --ordinary builds as an ordinary user (ordinary.py), for whom all listed cases must pass
but those of NEEDS_ROOT, and whose state `bareboat cache prune` must be able to delete. With --except only listed cases are run, and not
those of that file: for a place where not every case can pass; with --update too that file is kept true instead: what fails is in it, with the
reason that its line says. Of the cases without a
RUN, which hardly depend on the place, --sample N runs every Nth. A case that this machine could not set up counts as failed if it is
listed. The last line is `N passed, N failed`: of the listed cases.
"""
import argparse, json, os, re, shlex, shutil, subprocess, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(os.path.dirname(HERE), "golden")
HEADER = "# Cases that pass; none may fail again. Kept by `tests/run --update-golden`.\n"


# Some cases copy their own Dockerfile, which names the registry: its address has to be the recorded one, localhost:5006. In a network
# namespace of their own, with the loopback device up, that port is always free.
UP = """import fcntl, os, socket, struct, sys
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))
os.execv(sys.argv[1], sys.argv[1:])"""
OWN_NETWORK = ["unshare", "--net", sys.executable, "-c", UP]


ORDINARY = [sys.executable, os.path.join(HERE, "ordinary.py")]

# What an ordinary user cannot do, whoever builds: no user namespace may make devices, and files cannot be given away.
NEEDS_ROOT = {
    "copy/context-owner-dropped": "its context holds files of other owners",
    "from/special-files-kept": "it counts a directory of its base that holds a device node",
    "layers/special-files": "it makes a device node",
}


def read_list(path):
    with open(path, encoding="utf-8") as lines:
        return {line.partition("#")[0].strip() for line in lines} - {""}


def has_steps(case):
    """Some Dockerfile of the case has a RUN, or its base a trigger."""
    for directory, _, files in os.walk(case):
        for name in files:
            if "ockerfile" in name and re.search(rb"(?im)^\s*run\b|RUN|onbuild", open(os.path.join(directory, name), "rb").read()):
                return True
    return False


def run(options, results):
    """Runs run_golden.py over the cases; its own output is shown but for its verdict, which counts unlisted cases too."""
    if options.ordinary:
        hand_over(options)
    binary = shlex.quote(os.path.abspath(options.bareboat))
    state = os.path.join(options.scratch, "state")
    template = f"BAREBOAT_STATE_DIR={shlex.quote(state)} {binary}"
    # root's own python3 may lie where nobody else gets to.
    python = (shutil.which("python3", path="/usr/bin:/bin") if options.ordinary else None) or sys.executable
    command = OWN_NETWORK + options.user + [
        python, os.path.join(options.golden, "run_golden.py"), "--json", results, "--quiet", "--tmp", options.scratch,
        "--cases", options.root,
        "--cmd", template + " build -f {dockerfile} {args} -o type=oci,dest={out},tar=false {context}",
        "--check-cmd", template + " check --format json -f {dockerfile} {args} {context}",
        *options.cases,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    lines = done.stdout.splitlines()
    print("\n".join(line for line in lines[:-1]))
    if not os.path.isfile(results):
        sys.exit(f"run_golden.py did not finish (exit status {done.returncode})")
    print(f"run_golden.py: {lines[-1] if lines else 'nothing'} of all cases")


def hand_over(options):
    """Copies what an ordinary user must be able to read, and lets everybody write into the scratch folder."""
    os.chmod(options.scratch, 0o1777)
    copy = lambda path: shutil.copytree(path, os.path.join(options.scratch, "read", os.path.basename(path)), symlinks=True, dirs_exist_ok=True)
    options.golden = copy(GOLDEN)
    options.root = copy(options.root)
    options.bareboat = shutil.copy(options.bareboat, os.path.join(options.scratch, "read"))
    subprocess.run(["chmod", "-R", "a+rX", os.path.join(options.scratch, "read")], check=True)
    options.user = ORDINARY


def prune(options):
    """What the builds of an ordinary user have left belongs to ids that only the user's namespace may touch."""
    state = os.path.join(options.scratch, "state")
    command = ORDINARY + [options.bareboat, "cache", "prune", "--state-dir", state]
    done = subprocess.run(command, stdin=subprocess.DEVNULL)
    left = [name for name in ("trees", "blobs", "work") if os.path.lexists(os.path.join(state, name))]
    if done.returncode or left:
        sys.exit(f"cache prune ended with {done.returncode} and left {left}")


def show(title, results, names, differences_max):
    if not names:
        return
    print(f"{title}:")
    for name in sorted(names):
        print(f"  {name}")
        for aspect, text in results[name]["diffs"][:differences_max] if name in results else []:
            print(f"      {aspect:8} {text}")


def update_exceptions(path, failed):
    """What stays excepted keeps its line, with the reason that it says, and the comments above it."""
    with open(path, encoding="utf-8") as lines:
        lines = lines.read().splitlines()
    name = lambda line: line.partition("#")[0].strip()
    kept = [line for line in lines if line.startswith("#") or name(line) in failed]
    new = sorted(failed - {name(line) for line in kept})
    with open(path, "w", encoding="utf-8") as out:
        out.write("".join(line + "\n" for line in kept + new))
    print(f"{path}: {len(failed)} cases, {len(new)} of them new")
    return 0


def update(path, names, header):
    with open(path, "w", encoding="utf-8") as out:
        out.write(header + "".join(name + "\n" for name in sorted(names)))
    print(f"{path}: {len(names)} cases")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bareboat", required=True)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--root", default=GOLDEN)
    parser.add_argument("--ordinary", action="store_true")
    parser.add_argument("--list", help="default: passing.txt of the root")
    parser.add_argument("--except", dest="exceptions", metavar="FILE")
    parser.add_argument("--sample", type=int, default=1, metavar="N")
    parser.add_argument("cases", nargs="*")
    options = parser.parse_args()
    options.list = options.list or os.path.join(options.root, "passing.txt")
    options.user, options.golden = [], GOLDEN
    if options.exceptions:
        wanted = read_list(options.list) - (set() if options.update else read_list(options.exceptions))
        with_steps = {name for name in wanted if has_steps(os.path.join(options.root, name))}
        options.cases = sorted(with_steps) + sorted(wanted - with_steps)[::options.sample]
    with tempfile.TemporaryDirectory(prefix="golden-") as options.scratch:
        path = os.path.join(options.scratch, "results.json")
        run(options, path)
        with open(path, encoding="utf-8") as file:
            results = {result["case"]: result for result in json.load(file)}
        if options.ordinary:
            prune(options)
    passing = {name for name, result in results.items() if result["verdict"] == "PASS"}
    if options.update and options.exceptions:
        return update_exceptions(options.exceptions, set(results) - passing)
    if options.update:
        if options.cases:
            passing |= read_list(options.list) - set(results)
        return update(options.list, passing, HEADER)
    return judge(options, results, passing)


def judge(options, results, passing):
    listed = read_list(options.list)
    if options.ordinary:
        show("passes for an ordinary user too: take it out of NEEDS_ROOT", results, passing & set(NEEDS_ROOT), 0)
        listed, passing = listed - set(NEEDS_ROOT), passing - set(NEEDS_ROOT)
    unknown = set() if options.cases else listed - set(results)
    if options.cases:
        listed &= set(results)
    broken = (listed & set(results)) - passing
    unlisted = passing - listed
    show("listed in passing.txt, and failed", results, broken, 12)
    show("listed in passing.txt, but there is no such case", results, unknown, 0)
    show("passes, but is not listed in passing.txt (tests/run --update-golden)", results, unlisted, 0)
    print(f"{len(passing)} of {len(results)} cases pass, {len(listed)} are listed")
    print(f"{len(listed & passing)} passed, {len(broken) + len(unknown)} failed")
    return 1 if broken or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
