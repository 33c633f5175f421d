#!/usr/bin/env python3
"""in_container.py ID FOLDER INSIDE COMMAND…: runs a command in a container of runc.

FOLDER is a directory of this machine that the container has at INSIDE: paths in it are said anew, in arguments and for the working
directory. Of the environment only the secrets of golden cases and SOURCE_DATE_EPOCH come along. Where the container has the machine's
network, the command has the network namespace of who calls this. Standard library only.
"""
import os, sys


def main():
    container, folder, inside, *command = sys.argv[1:]

    def there(text):
        return text.replace(folder, inside)

    environment = [f"--env={name}={value}" for name, value in os.environ.items() if name.startswith("GOLDEN_") or name == "SOURCE_DATE_EPOCH"]
    cwd = os.getcwd()
    where = there(cwd) if cwd.startswith(folder) else "/"
    os.execvp("runc", ["runc", "exec", f"--cwd={where}", *environment, container, *map(there, command)])


if __name__ == "__main__":
    main()
