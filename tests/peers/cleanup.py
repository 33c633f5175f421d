#!/usr/bin/env python3
"""cleanup.py DIRECTORY: ends every process that a run of the tests left behind, removes its containers and unmounts what lies below its folder.

A run's processes are those with TMPDIR=DIRECTORY/tmp in their environment; our own ancestors are spared. Standard library only.
"""
import glob, os, signal, subprocess, sys, time


def parent(pid):
    try:
        return int(open(f"/proc/{pid}/stat", "rb").read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def ours(directory):
    spared, pid = set(), os.getpid()
    while pid:
        spared.add(pid)
        pid = parent(pid)
    wanted = b"TMPDIR=" + os.fsencode(directory) + b"/tmp"
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            marked = wanted in open(f"/proc/{name}/environ", "rb").read().split(b"\0")
        except OSError:
            continue
        if marked and int(name) not in spared:
            yield int(name)


def end(directory, number):
    for pid in list(ours(directory)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def unmount(directory):
    points = [line.split()[4] for line in open("/proc/self/mountinfo")]
    for point in sorted((point for point in points if point.startswith(directory + "/")), reverse=True):
        if subprocess.run(["umount", point], stderr=subprocess.DEVNULL).returncode:
            subprocess.run(["umount", "--lazy", point], stderr=subprocess.DEVNULL)


def remove_containers(directory):
    """Those of the places (tests/support/places): their processes do not have our environment."""
    for storage in glob.glob(directory + "/tmp/podman-*"):
        podman = ["podman", "--root", storage + "/s", "--runroot", storage + "/r", "--storage-driver", "overlay", "--cgroup-manager", "cgroupfs"]
        subprocess.run([*podman, "--runtime", "runc", "rm", "--all", "--force", "--time", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main():
    directory = os.path.abspath(sys.argv[1])
    if any(ours(directory)):
        end(directory, signal.SIGTERM)
        deadline = time.monotonic() + 3
        while any(ours(directory)) and time.monotonic() < deadline:
            time.sleep(0.05)
        end(directory, signal.SIGKILL)
    remove_containers(directory)
    unmount(directory)


if __name__ == "__main__":
    main()
