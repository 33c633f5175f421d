#!/usr/bin/env python3
"""portable_git.py FOLDER INSIDE: puts this machine's git into FOLDER, which a container without any library has at INSIDE: copies of the
programs, of their libraries and of the loader, each program behind a script. The container has a shell at /busybox/sh.
Standard library only.
"""
import os, re, shutil, subprocess, sys

PROGRAMS = ("git", "git-remote-http", "git-remote-https")


def libraries(program):
    """The loader and the other libraries of a program."""
    listed = subprocess.run(["ldd", program], check=True, stdout=subprocess.PIPE, text=True).stdout
    paths = set(re.findall(r"(/\S+) \(0x", listed))
    loader = next(path for path in paths if "/ld-" in path)
    return loader, paths - {loader}


def main():
    folder, inside = sys.argv[1:]
    where = subprocess.run(["git", "--exec-path"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    for name in ("real", "lib"):
        os.makedirs(os.path.join(folder, name))
    for program in PROGRAMS:
        source = os.path.join(where, program)
        shutil.copy(source, os.path.join(folder, "real", program))
        loader, others = libraries(source)
        for library in others:
            shutil.copy(library, os.path.join(folder, "lib"))
        shutil.copy(loader, os.path.join(folder, "loader"))
        script = os.path.join(folder, program)
        with open(script, "w", encoding="utf-8") as out:
            out.write(f"#!/busybox/sh\nexport GIT_EXEC_PATH={inside}\n"
                      f"exec {inside}/loader --library-path {inside}/lib {inside}/real/{program} \"$@\"\n")
        os.chmod(script, 0o755)


if __name__ == "__main__":
    main()
