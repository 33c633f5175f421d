//! Whole Dockerfiles of the ordinary kind, each with what must come out.

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::json;

use crate::support::{Build, Kind, Outcome, peers};

fn config(outcome: &Outcome, key: &str) -> serde_json::Value {
    outcome.layout().config["config"][key].clone()
}

const SERVICE: &str = r#"# syntax=docker/dockerfile:1
ARG VARIANT=busybox
FROM {registry}/base/${VARIANT}:latest
LABEL org.opencontainers.image.title="a service" \
      maintainer=ops
ARG VERSION=0.0.0
ENV APP_HOME=/srv/app APP_VERSION=${VERSION:-none}
WORKDIR $APP_HOME
COPY package*.json ./
RUN test "$APP_VERSION" = 1.2.3 && cat package.json package-lock.json > installed
COPY --chown=app:app . .
RUN chmod 0750 start.sh && mkdir -p /var/lib/app && chown app:app /var/lib/app
EXPOSE 8080/tcp 9090
VOLUME /var/lib/app
USER app
HEALTHCHECK --interval=5s --retries=2 CMD wget -q -O - http://localhost:8080/ || exit 1
STOPSIGNAL SIGQUIT
ENTRYPOINT ["./start.sh"]
CMD ["--port", "8080"]
"#;

fn service() -> Build {
    Build::new(SERVICE)
        .file("package.json", "{}\n")
        .file("package-lock.json", "[]\n")
        .file("start.sh", "#!/bin/sh\n")
        .file("src/main.js", "main\n")
        .file("node_modules/big/index.js", "not sent\n")
        .file("secret.pem", "not sent\n")
        .file(".dockerignore", "node_modules\n*.pem\n.dockerignore\nDockerfile\n")
        .build_arg("VERSION=1.2.3")
}

#[test]
fn a_service_has_its_files() {
    let outcome = service().run().success();
    let tree = outcome.tree();
    let mut names = tree.names("srv/app");
    names.sort_unstable();
    assert_eq!(names, ["installed", "package-lock.json", "package.json", "src", "start.sh"]);
    assert_eq!(outcome.text_of("srv/app/installed"), "{}\n[]\n");
    let start = tree.get("srv/app/start.sh");
    assert_eq!((start.mode, start.uid, start.gid), (0o750, 1000, 1000));
    assert_eq!(tree.get("srv/app/src/main.js").uid, 1000);
    assert_eq!(tree.get("srv/app/installed").uid, 0);
    assert_eq!(tree.get("var/lib/app").gid, 1000);
}

#[test]
fn a_service_has_its_configuration() {
    let outcome = service().run().success();
    let env = config(&outcome, "Env");
    let env: Vec<&str> =
        env.as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect();
    assert!(env[0].starts_with("PATH="), "{env:?}");
    assert_eq!(env[1..], ["APP_HOME=/srv/app", "APP_VERSION=1.2.3"]);
    assert_eq!(config(&outcome, "Entrypoint"), json!(["./start.sh"]));
    assert_eq!(config(&outcome, "Cmd"), json!(["--port", "8080"]));
    assert_eq!(config(&outcome, "User"), "app");
    assert_eq!(config(&outcome, "WorkingDir"), "/srv/app");
    assert_eq!(config(&outcome, "ExposedPorts"), json!({"8080/tcp": {}, "9090/tcp": {}}));
    assert_eq!(config(&outcome, "Volumes"), json!({"/var/lib/app": {}}));
    assert_eq!(config(&outcome, "StopSignal"), "SIGQUIT");
    assert_eq!(config(&outcome, "Labels")["org.opencontainers.image.title"], "a service");
    assert_eq!(config(&outcome, "Healthcheck")["Interval"], 5_000_000_000u64);
}

#[test]
fn here_documents_shells_and_exec_forms_run() {
    let outcome = Build::new(
        r#"FROM {busybox}
RUN <<SETUP
set -e
mkdir /made
echo "from $0" > /made/here
SETUP
COPY <<"ONE" <<TWO /texts/
literal $HOME
ONE
shell $PATH_NOT_SET.
TWO
SHELL ["/bin/sh", "-e", "-c"]
RUN false || true; echo shell > /made/shell
RUN ["/bin/busybox", "touch", "/made/exec $HOME"]
"#,
    )
    .run()
    .success();
    assert_eq!(outcome.text_of("texts/ONE"), "literal $HOME\n");
    assert_eq!(outcome.text_of("texts/TWO"), "shell .\n");
    assert_eq!(outcome.text_of("made/shell"), "shell\n");
    assert!(outcome.tree().has("made/exec $HOME"));
    assert!(outcome.text_of("made/here").starts_with("from "));
}

#[test]
fn archives_are_unpacked_and_other_files_are_not() {
    let build = Build::new(
        "FROM {busybox}\nADD app.tar.gz plain.tar notes.gz /opt/\nCOPY app.tar.gz /kept.tar.gz\n",
    );
    let source = build.scratch().join("source");
    fs::create_dir_all(source.join("app/bin")).unwrap();
    fs::write(source.join("app/bin/tool"), "tool\n").unwrap();
    fs::set_permissions(source.join("app/bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("bin/tool", source.join("app/current")).unwrap();
    let (source, context) = (source.display().to_string(), build.context().display().to_string());
    peers::run(
        "tar",
        ["-C", &source, "--owner=5", "--group=6", "-czf", &format!("{context}/app.tar.gz"), "app"],
    );
    peers::run(
        "tar",
        ["-C", &source, "-cf", &format!("{context}/plain.tar"), "--transform=s,^app,plain,", "app"],
    );
    fs::write(build.context().join("notes.gz"), crate::support::oci::gzip(b"just text")).unwrap();
    let outcome = build.run().success();
    let tree = outcome.tree();
    assert_eq!((tree.get("opt/app/bin/tool").mode, tree.get("opt/app/bin/tool").uid), (0o755, 5));
    assert_eq!(tree.get("opt/app/current").link, "bin/tool");
    assert_eq!(outcome.text_of("opt/plain/bin/tool"), "tool\n");
    assert_eq!(tree.get("opt/notes.gz").kind, Kind::File);
    assert_eq!(tree.get("kept.tar.gz").kind, Kind::File);
}

#[test]
fn a_step_sees_nothing_of_the_builders_environment() {
    let outcome = Build::new("FROM {busybox}\nARG GIVEN\nENV SET=1\nRUN env > /environment; ls -l /proc/self/fd > /descriptors\n")
        .build_arg("GIVEN=2")
        .env("GITHUB_TOKEN", "canary-in-the-environment")
        .env("AWS_SECRET_ACCESS_KEY", "canary-in-the-environment")
        .run()
        .success();
    let environment = outcome.text_of("environment");
    assert!(!environment.contains("canary"), "{environment}");
    assert!(environment.contains("GIVEN=2") && environment.contains("SET=1"), "{environment}");
    for line in outcome.text_of("descriptors").lines().filter(|line| line.contains("->")) {
        let (name, _) = line.split_once(" -> ").unwrap();
        let number: u32 = name.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(number <= 3, "a descriptor leaked into the step: {line}");
    }
}

#[test]
fn a_step_has_its_own_process_and_host_names() {
    let outcome = Build::new("FROM {busybox}\nRUN echo $$ > /pid; hostname > /name; cat /proc/self/status > /status; touch /proc/sys/kernel/x 2>/dev/null && exit 1; touch /sys/x 2>/dev/null && exit 1; true\n")
        .run()
        .success();
    assert_eq!(outcome.text_of("pid").trim(), "1");
    let own = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_ne!(outcome.text_of("name"), own);
    let status = outcome.text_of("status");
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    assert_eq!(capabilities, "00000000a80425fb", "Docker's 14 default capabilities");
    assert!(status.contains("Seccomp:\t2"), "{status}");
}

/// RUN --security=insecure and --network=host need the command line's consent, as with BuildKit.
#[test]
fn entitlements_are_granted_by_the_command_line_alone() {
    let insecure = "FROM {busybox}
RUN --security=insecure mkdir /m && mount -t tmpfs none /m && umount /m && rmdir /m && grep -E 'CapEff|Seccomp:' /proc/self/status > /seen
";
    Build::new(insecure).run().failure(3, &["Dockerfile:2", "--allow security.insecure"]);
    let outcome = Build::new(insecure).args(["--allow", "security.insecure"]).run().success();
    let seen = outcome.text_of("seen");
    assert!(seen.contains("Seccomp:\t0"), "{seen}");
    let effective = seen.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    let effective = u64::from_str_radix(effective, 16).unwrap();
    assert_ne!(effective & (1 << 21), 0, "CAP_SYS_ADMIN is there: {seen}");
    let host = "FROM {busybox}\nRUN --network=host true\n";
    Build::new(host).run().failure(3, &["Dockerfile:2", "--allow network.host"]);
    Build::new(host).args(["--allow", "network.host"]).run().success();
}
