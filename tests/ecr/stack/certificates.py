"""A certificate authority, the certificate of every name of the stack by it, and what is not by it."""
import os, subprocess

KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"


def openssl(directory, arguments):
    command = ["openssl", *arguments.split(" ")]
    done = subprocess.run(command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")


def authority(directory, name):
    openssl(directory, f"req -x509 {KEY} -keyout {name}.key -out {name}.pem -days 2 -subj /CN={name}")


def leaf(directory, name, by, extension):
    with open(os.path.join(directory, f"{name}.ext"), "w") as file:
        file.write(f"basicConstraints=CA:FALSE\n{extension}\n")
    openssl(directory, f"req {KEY} -keyout {name}.key -out {name}.csr -subj /CN={name}")
    files = f"-in {name}.csr -CA {by}.pem -CAkey {by}.key -out {name}.pem -extfile {name}.ext"
    openssl(directory, f"x509 -req {files} -CAcreateserial -days 2")


def make(directory, names):
    """ca, server (for all names), client (by ca), other-ca, untrusted (by other-ca): each .pem and .key"""
    alternatives = "subjectAltName=" + ",".join(f"DNS:{name}" for name in names)
    authority(directory, "ca")
    authority(directory, "other-ca")
    leaf(directory, "server", "ca", alternatives)
    leaf(directory, "untrusted", "other-ca", alternatives)
    leaf(directory, "client", "ca", "extendedKeyUsage=clientAuth")
