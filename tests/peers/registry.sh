# Sourced by tests/run and tests/bench/run: a real registry (Debian's docker-registry) on a free loopback port.
registry=
registry_pid=

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# make_certificates DIRECTORY: an authority, ca.crt, and 127.0.0.1's certificate and key by it, server.pem and server.key.
make_certificates() {
    local -a key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
    mkdir -p "$1/made" "$1/trust"
    (
        cd "$1/made"
        openssl req -x509 "${key[@]}" -keyout ca.key -out ca.crt -days 2 -subj /CN=bench-ca
        openssl req "${key[@]}" -keyout server.key -out server.csr -subj /CN=127.0.0.1
        openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.pem -days 2 \
            -extfile <(printf 'subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n')
    ) 2>"$1/log" || die "openssl could not make certificates: $(cat "$1/log")"
    cp "$1/made/ca.crt" "$1/trust/"
}

# start_registry DIRECTORY [CERTIFICATES]: sets $registry (HOST:PORT) and $registry_pid. With the directory that
# make_certificates filled it speaks TLS.
start_registry() {
    local directory=$1 certificates=${2:-} attempt tls=
    [[ -z $certificates ]] || tls=", tls: {certificate: \"$certificates/made/server.pem\", key: \"$certificates/made/server.key\"}"
    mkdir -p "$directory/data"
    for attempt in 1 2 3; do
        registry="127.0.0.1:$(free_port)"
        cat >"$directory/config.yml" <<CONFIG
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: "$directory/data"}, delete: {enabled: true}, cache: {blobdescriptor: inmemory}}
http: {addr: "$registry"$tls}
CONFIG
        OTEL_TRACES_EXPORTER=none docker-registry serve "$directory/config.yml" >"$directory/log" 2>&1 &
        registry_pid=$!
        if wait_for_registry "${certificates:+https}"; then
            say "registry at $registry"
            return
        fi
        stop_registry
    done
    tail -n 20 "$directory/log" >&2
    die "docker-registry does not start (see above)"
}

wait_for_registry() {
    local _ scheme=${1:-http}
    for _ in $(seq 100); do
        curl -skf --noproxy '*' -o /dev/null "$scheme://$registry/v2/" && return 0
        kill -0 "$registry_pid" 2>/dev/null || return 1
        sleep 0.1
    done
    return 1
}

stop_registry() {
    [[ -n $registry_pid ]] || return 0
    kill "$registry_pid" 2>/dev/null || true
    wait "$registry_pid" 2>/dev/null || true
    registry_pid=
}

# push_bases DIRECTORY: every OCI layout in it becomes $registry/base/NAME:latest.
push_bases() {
    local layout
    for layout in "$1"/*/; do
        layout=${layout%/}
        skopeo copy -q --dest-tls-verify=false "oci:$layout:latest" "docker://$registry/base/${layout##*/}:latest" \
            || die "skopeo could not push $layout to $registry"
    done
}
