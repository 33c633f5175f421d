#!/usr/bin/env python3
"""in_container.py ID[,ID…] FOLDER INSIDE COMMAND…: runs a command in a container of runc, in one that is free if there are several.

FOLDER is a directory of this machine that the container has at INSIDE: paths in it are said anew, in arguments, variables and for the
working directory. FOLDER/git is on PATH there. Of the environment comes along what FOLDER/environment (NAME=VALUE, each ended by a zero byte) does not have. A state
directory (--state-dir, BAREBOAT_STATE_DIR) becomes one of the container's own root. Where the container has the machine's network, the
command has the network namespace of who calls this. One command at a time is in a container: while a build's step has the container's
root no program of the container can be started. Standard library only.
"""
import fcntl, hashlib, os, sys, time


def state(path):
    return "/state/" + hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def free_one(containers, folder):
    """The one that could be locked; it stays so until the command that this becomes has ended."""
    locks = [(container, os.open(f"{folder}/{container}.lock", os.O_RDWR | os.O_CREAT, 0o600)) for container in containers]
    while True:
        for container, lock in locks:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            os.set_inheritable(lock, True)
            return container
        time.sleep(0.01)


def main():
    containers, folder, inside, *command = sys.argv[1:]
    container = free_one(containers.split(","), folder)

    def there(text):
        return text.replace(folder, inside)

    known = set(open(folder + "/environment", "rb").read().split(b"\0"))
    new = {os.fsdecode(name): os.fsdecode(value) for name, value in os.environb.items() if name + b"=" + value not in known}
    for name in ("PATH", "PWD", "OLDPWD", "SHLVL", "_", "TMPDIR", "BAREBOAT_TEST_BINARY", "LC_CTYPE"):
        new.pop(name, None)
    if "BAREBOAT_STATE_DIR" in new:
        new["BAREBOAT_STATE_DIR"] = state(new["BAREBOAT_STATE_DIR"])
    for at, argument in enumerate(command):
        if argument == "--state-dir":
            command[at + 1] = state(command[at + 1])
    cwd = os.getcwd()
    where = there(cwd) if cwd.startswith(folder) else "/"
    if os.path.isdir(folder + "/git"):
        new["PATH"] = f"{inside}/git:/bareboat:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/busybox"
    environment = [f"--env={name}={there(value)}" for name, value in new.items()]
    os.execvp("runc", ["runc", "exec", f"--cwd={where}", *environment, container, *map(there, command)])


if __name__ == "__main__":
    main()
