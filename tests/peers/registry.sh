# Sourced by tests/run and tests/bench/run: a real registry (Debian's docker-registry) on a free loopback port.
registry=
registry_pid=

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# start_registry DIRECTORY: sets $registry (HOST:PORT) and $registry_pid.
start_registry() {
    local directory=$1 attempt
    mkdir -p "$directory/data"
    for attempt in 1 2 3; do
        registry="127.0.0.1:$(free_port)"
        cat >"$directory/config.yml" <<CONFIG
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: "$directory/data"}, delete: {enabled: true}, cache: {blobdescriptor: inmemory}}
http: {addr: "$registry"}
CONFIG
        OTEL_TRACES_EXPORTER=none docker-registry serve "$directory/config.yml" >"$directory/log" 2>&1 &
        registry_pid=$!
        if wait_for_registry; then
            say "registry at $registry"
            return
        fi
        stop_registry
    done
    tail -n 20 "$directory/log" >&2
    die "docker-registry does not start (see above)"
}

wait_for_registry() {
    local _
    for _ in $(seq 100); do
        curl -sf --noproxy '*' -o /dev/null "http://$registry/v2/" && return 0
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
