#!/usr/bin/env python3
"""in_container.py ID FOLDER INSIDE COMMAND…: runs a command in a container of runc.

FOLDER is a directory of this machine that the container has at INSIDE: paths in it are said anew, in arguments, variables and for the
working directory. Of the environment comes along what FOLDER/environment (NAME=VALUE, each ended by a zero byte) does not have. A state
directory (--state-dir, BAREBOAT_STATE_DIR) becomes one of the container's own root. Where the container has the machine's network, the
command has the network namespace of who calls this. Standard library only.
"""
import hashlib, os, sys


def state(path):
    return "/state/" + hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def main():
    container, folder, inside, *command = sys.argv[1:]

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
    environment = [f"--env={name}={there(value)}" for name, value in new.items()]
    os.execvp("runc", ["runc", "exec", f"--cwd={where}", *environment, container, *map(there, command)])


if __name__ == "__main__":
    main()
