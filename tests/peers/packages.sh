# Sourced by tests/run and tests/bench/run: installs the real parts that the tests meet, by their Debian package names.

# "what must be on PATH (or a file's path):package"
needed_packages=(
    docker-registry:docker-registry skopeo:skopeo umoci:umoci podman:podman runc:runc buildah:buildah
    debootstrap:debootstrap busybox:busybox-static setcap:libcap2-bin zstd:zstd newuidmap:uidmap mkfs.ext4:e2fsprogs
    losetup:mount curl:curl git:git openssl:openssl htpasswd:apache2-utils python3:python3 gcc:gcc readelf:binutils
    xz:xz-utils bzip2:bzip2 tar:tar ssh-agent:openssh-client /etc/ssl/certs/ca-certificates.crt:ca-certificates
    ip:iproute2 unshare:util-linux nsenter:util-linux
    /usr/share/containers/seccomp.json:golang-github-containers-common
)

missing_packages() {
    local pair
    for pair in "${needed_packages[@]}"; do
        [[ -e ${pair%%:*} ]] || command -v "${pair%%:*}" >/dev/null || echo "${pair#*:}"
    done
    # Debian's busybox package has the same command, but it is not static: it would not run in an empty image.
    if command -v busybox >/dev/null && readelf -l "$(command -v busybox)" 2>/dev/null | grep -q INTERP; then
        echo busybox-static
    fi
    python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv
}

install_packages() {
    local missing
    export PATH="$PATH:/usr/sbin:/sbin"
    ((EUID == 0)) || die "the tests mount, chown and make devices: run them as root (sudo -E tests/run)"
    command -v cargo >/dev/null || die "cargo is missing: install Rust from https://rustup.rs"
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]} > 0)) || return 0
    say "installing ${missing[*]}"
    apt_install "${missing[@]}"
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]} == 0)) || die "still missing after apt-get install: ${missing[*]}"
}

# A package that starts a service would take the registry's usual port: forbid it while packages are installed.
service_policy=

forbid_services() {
    [[ ! -e /usr/sbin/policy-rc.d ]] || return 0
    service_policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' >"$service_policy"
    chmod 755 "$service_policy"
}

allow_services() {
    [[ -z $service_policy ]] || rm -f "$service_policy"
    service_policy=
}

apt_install() {
    local command="apt-get update && apt-get install -y --no-install-recommends $*"
    command -v apt-get >/dev/null || die "these packages are missing, and there is no apt-get to install them (Debian's names): $*"
    local -a apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600)
    forbid_services
    local status=0
    { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "$@"; } >"$work/apt.log" 2>&1 || status=$?
    allow_services
    ((status == 0)) && return
    tail -n 30 "$work/apt.log" >&2
    die "apt-get could not install what is missing; by hand: $command"
}

# moto's server stands for the AWS APIs: a virtual environment of its own, from PyPI, kept for later runs.
moto_version=5.2.5

install_moto() {
    local target="${XDG_CACHE_HOME:-$HOME/.cache}/bareboat-tests/moto-$moto_version"
    export BAREBOAT_TEST_MOTO=$target
    [[ ! -e $target/complete ]] || return 0
    say "installing moto $moto_version"
    rm -rf "$target"
    # What its server needs for ECR and STS; the extra `server` would bring 180 MB for other services.
    {
        python3 -m venv "$target" \
            && "$target/bin/python3" -m pip install -q --disable-pip-version-check "moto==$moto_version" flask flask-cors \
            && "$target/bin/python3" -c 'import moto.server, flask_cors' && touch "$target/complete"
    } >"$work/moto.log" 2>&1 && return
    tail -n 30 "$work/moto.log" >&2
    die "pip could not install moto $moto_version (see above)"
}
