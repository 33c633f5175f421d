#!/usr/bin/env python3
"""Runs a command as an ordinary user with ranges of subordinate ids, which the machine itself need not have.

    ordinary.py [--one-id] COMMAND…

To be started as root. In a mount namespace of its own the files /etc/passwd, /etc/subuid and /etc/subgid are covered by copies that
know the user `builder` (uid and gid 64000, ids 700000 to 5699999 besides, because one golden case
has files of user 3000000); with --one-id there are no such ids. HOME is a fresh folder of
the user's below $TMPDIR, unless $ORDINARY_HOME names one that exists; /var/lib/bareboat and the like stay root's own.
"""
import ctypes, os, shutil, sys, tempfile

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_MOUNT_NAMESPACE, BIND, PRIVATE = 0x20000, 4096, 1 << 18 | 16384
ID, FIRST, COUNT = 64000, 700000, 5000000
NAME = "builder"


def cover(folder, path, text):
    """Puts a file with this text over `path`, for this mount namespace only."""
    copy = os.path.join(folder, os.path.basename(path))
    with open(copy, "w", encoding="utf-8") as out:
        out.write(text)
    os.chmod(copy, 0o644)
    if not os.path.exists(path):
        sys.exit(f"{path} is missing: it belongs to Debian's package uidmap or base-passwd")
    mount(copy, path)


def call(name, *arguments):
    if getattr(LIBC, name)(*arguments) != 0:
        sys.exit(f"{name}: {os.strerror(ctypes.get_errno())}")


def mount(source, target):
    if source is None:
        call("mount", None, target.encode(), None, PRIVATE, None)
    else:
        call("mount", source.encode(), target.encode(), None, BIND, None)


def become_user():
    os.setgroups([])
    os.setresgid(ID, ID, ID)
    os.setresuid(ID, ID, ID)
    os.umask(0o022)


def main():
    arguments = sys.argv[1:]
    ranges = not (arguments and arguments[0] == "--one-id")
    command = arguments if ranges else arguments[1:]
    if not command or command[0].startswith("-"):
        sys.exit(__doc__)
    call("unshare", NEW_MOUNT_NAMESPACE)
    mount(None, "/")
    folder = tempfile.mkdtemp(prefix="ordinary-")
    os.chmod(folder, 0o755)
    home = os.environ.get("ORDINARY_HOME") or os.path.join(folder, "home")
    if not os.path.isdir(home):
        os.mkdir(home)
        os.chown(home, ID, ID)
    with open("/etc/passwd", encoding="utf-8") as file:
        cover(folder, "/etc/passwd", file.read() + f"{NAME}:x:{ID}:{ID}::{home}:/bin/sh\n")
    line = f"{NAME}:{FIRST}:{COUNT}\n" if ranges else ""
    cover(folder, "/etc/subuid", line)
    cover(folder, "/etc/subgid", line)
    child = os.fork()
    if child == 0:
        become_user()
        os.execvpe(command[0], command, dict(os.environ, HOME=home, USER=NAME))
    status = os.waitpid(child, 0)[1]
    shutil.rmtree(folder, ignore_errors=True)
    sys.exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


if __name__ == "__main__":
    main()
