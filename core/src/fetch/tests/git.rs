use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    Class,
    fetch::{
        Checkout, FetchError, Git, GitOptions, GitReference, HttpClient, ResolvedCommit,
        SecretLookup, SshAccess, git_reference, no_secrets,
    },
    registry::testing::{Fake, Reply, options},
};

use super::{
    repositories::{Repositories, STORY, dumb, http_backend, program, shell},
    secrets,
};

fn git() -> Git {
    let path = std::env::var_os("PATH").unwrap();
    Git::new(GitOptions { path, ..GitOptions::default() }, HttpClient::new(&options()).unwrap())
}

fn read(text: &str) -> GitReference {
    git_reference::parse(text).unwrap().unwrap()
}

/// A checkout and the directory that it is in.
type Result_ = Result<(Checkout, tempfile::TempDir), FetchError>;

async fn checkout_with(git: &Git, text: &str, secrets: &SecretLookup<'_>) -> Result_ {
    let reference = read(text);
    let work = tempfile::tempdir().unwrap();
    let resolved = git.resolve(&reference, secrets).await?;
    let checkout = git.checkout(&reference, &resolved, secrets, work.path()).await?;
    Ok((checkout, work))
}

async fn checkout(text: &str) -> Result_ {
    checkout_with(&git(), text, &no_secrets).await
}

async fn readme(text: &str) -> String {
    let (checkout, _work) = checkout(text).await.unwrap_or_else(|error| panic!("{text}: {error}"));
    fs::read_to_string(checkout.directory.join("README")).unwrap().trim().to_owned()
}

/// Path, type and mode of everything below, sorted.
fn listing(directory: &Path) -> Vec<String> {
    shell(directory, r"find . ! -name . -printf '%P %y %m\n' | sort | sed 's/ l 777/ l/'")
        .lines()
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn a_plain_tree_of_the_default_branch() {
    let repositories = Repositories::of_story();
    let server = repositories.serve().await;
    let (checkout, work) = checkout(&server.url("/repo.git")).await.unwrap();
    assert_eq!(
        listing(&checkout.directory),
        [
            "README f 644",
            "link l",
            "run.sh f 755",
            "sub d 755",
            "sub/deep d 755",
            "sub/deep/x f 644",
            "sub/inner f 644",
            "to-root l",
            "to-sub l",
        ]
    );
    assert_eq!(fs::read_link(checkout.directory.join("link")).unwrap(), Path::new("README"));
    assert_eq!(checkout.directory.metadata().unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(checkout.commit, repositories.rev("repo.git", "main"));
    assert_eq!(checkout.commit_time.seconds, 1_000_000_000);
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn refs_of_every_kind() {
    let repositories = Repositories::of_story();
    let zero = repositories.rev("repo.git", "v1~1");
    let (one, tag) = (repositories.rev("repo.git", "v1"), repositories.rev("repo.git", "v2"));
    let server = repositories.serve().await;
    for (suffix, expected) in [
        ("#main", "two"),
        // A branch goes before a tag of the same name.
        ("#dev", "dev"),
        ("#refs/tags/dev", "1"),
        ("?tag=dev", "1"),
        ("?branch=dev", "dev"),
        ("#heads/dev", "dev"),
        ("#v1", "1"),
        ("#tags/v1", "1"),
        ("?ref=v1", "1"),
        ("#v2", "two"),
        (&format!("#{one}"), "1"),
        (&format!("#{zero}"), "one"),
        (&format!("#{tag}"), "two"),
        (&format!("?fetch-by-commit&commit={zero}#main"), "one"),
    ] {
        assert_eq!(readme(&server.url(&format!("/repo.git{suffix}"))).await, expected, "{suffix}");
    }
    for missing in
        ["#nope", "#HEAD", "#HEAD~1", "#v1^{}", "#*", "?branch=v1", "?tag=main", "#v1:x:y"]
    {
        let error = checkout(&server.url(&format!("/repo.git{missing}"))).await.unwrap_err();
        let expected =
            matches!(error, FetchError::NoSuchReference { .. } | FetchError::Subdirectory { .. });
        assert!(expected, "{missing}: {error}");
        assert_eq!(error.class(), Class::Source);
    }
    let unknown = "0".repeat(39) + "1";
    let error = checkout(&server.url(&format!("/repo.git#{unknown}"))).await.unwrap_err();
    assert!(matches!(error, FetchError::NoSuchCommit { .. }), "{error}");
    let error = checkout(&server.url("/repo.git?fetch-by-commit#main")).await.unwrap_err();
    assert!(matches!(error, FetchError::NotByCommit { .. }), "{error}");
    let error = checkout(&server.url("/none.git")).await.unwrap_err();
    assert!(matches!(error, FetchError::Status { status: 404, .. }), "{error}");
}

#[tokio::test]
async fn resolving_knows_the_commit() {
    let repositories = Repositories::of_story();
    let rev = |name: &str| repositories.rev("repo.git", name);
    let server = repositories.serve().await;
    let resolve = async |suffix: &str| {
        let reference = read(&server.url(&format!("/repo.git{suffix}")));
        git().resolve(&reference, &no_secrets).await.unwrap()
    };
    let found = resolve("").await;
    assert_eq!((found.name.as_deref(), found.commit()), (Some("refs/heads/main"), &*rev("main")));
    let found = resolve("#v2").await;
    let expected = ResolvedCommit {
        name: Some("refs/tags/v2".into()),
        object: rev("v2"),
        peeled: Some(rev("v2^{}")),
    };
    assert_eq!(found, expected);
    let requests = server.requests().len();
    assert_eq!(resolve(&format!("#{}", rev("v1"))).await.commit(), rev("v1"));
    assert_eq!(server.requests().len(), requests);
}

#[tokio::test]
async fn checksums() {
    let repositories = Repositories::of_story();
    let (one, two) = (repositories.rev("repo.git", "v1"), repositories.rev("repo.git", "main"));
    let tag = repositories.rev("repo.git", "v2");
    let server = repositories.serve().await;
    for (name, checksum, fits) in [
        ("v1", &one[..7], true),
        ("v1", &one, true),
        ("v1", &two, false),
        ("v2", &two, true),
        ("v2", &tag[..9], true),
        ("v2", &one, false),
        (&one, &one[..1], true),
        (&one, &two, false),
    ] {
        let text = server.url(&format!("/repo.git?checksum={checksum}#{name}"));
        match checkout(&text).await {
            Ok(_) => assert!(fits, "{text}"),
            Err(error) => {
                assert!(!fits && matches!(error, FetchError::Commit { .. }), "{text}: {error}");
                assert!(error.to_string().contains(checksum), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn a_moved_branch_gives_what_was_resolved() {
    let repositories = Repositories::of_story();
    let server = repositories.serve().await;
    let reference = read(&server.url("/repo.git#main"));
    let resolved = git().resolve(&reference, &no_secrets).await.unwrap();
    shell(&repositories.0.path().join("repo.git"), "git update-ref refs/heads/main dev");
    let work = tempfile::tempdir().unwrap();
    let checkout = git().checkout(&reference, &resolved, &no_secrets, work.path()).await.unwrap();
    assert_eq!(fs::read_to_string(checkout.directory.join("README")).unwrap(), "two\n");
}

#[tokio::test]
async fn folders() {
    let repositories = Repositories::of_story();
    let server = repositories.serve().await;
    let (found, work) = checkout(&server.url("/repo.git?keep-git-dir#v1:sub")).await.unwrap();
    assert_eq!(listing(&found.directory), ["deep d 755", "deep/x f 644", "inner f 644"]);
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 1);
    let (found, _work) = checkout(&server.url("/repo.git?subdir=/../sub/deep")).await.unwrap();
    assert_eq!(listing(&found.directory), ["x f 644"]);
    for bad in [
        "nope",
        "README",
        "to-sub",
        "to-sub/deep",
        "to-root",
        "to-root/etc",
        "link",
        ".git",
        "sub/nope",
    ] {
        let error = checkout(&server.url(&format!("/repo.git#:{bad}"))).await.unwrap_err();
        assert!(matches!(error, FetchError::Subdirectory { .. }), "{bad}: {error}");
    }
}

#[tokio::test]
async fn a_kept_git_directory_works_and_tells_nothing() {
    let repositories = Repositories::of_story();
    let commit = repositories.rev("repo.git", "main");
    let server = repositories.serve().await;
    let url = server.url("/repo.git?keep-git-dir=true").replace("http://", "http://user:hunter2@");
    let (found, _work) = checkout(&url).await.unwrap();
    let say = |script: &str| shell(&found.directory, script);
    assert_eq!(say("git rev-parse HEAD main"), format!("{commit}\n{commit}"));
    assert_eq!(say("git status --porcelain"), "");
    assert_eq!(say("git rev-list --count HEAD"), "1");
    assert_eq!(say("git remote get-url origin"), server.url("/repo.git"));
    assert_eq!(say("grep -rl hunter2 . || :"), "");
    assert_eq!(say("ls -d .git/hooks .git/logs .git/FETCH_HEAD 2>/dev/null || :"), "");
    assert_eq!(say("find . -perm /022 ! -type l"), "");
    let (found, _work) = checkout(&server.url("/repo.git?keep-git-dir&tag=v2")).await.unwrap();
    assert_eq!(shell(&found.directory, "git describe"), "v2");
}

#[tokio::test]
async fn mtimes_by_policy() {
    let repositories = Repositories::of_story();
    let server = repositories.serve().await;
    let (found, _work) = checkout(&server.url("/repo.git?mtime=commit")).await.unwrap();
    for path in ["", "README", "sub/deep/x", "sub", "link"] {
        let mtime = found.directory.join(path).symlink_metadata().unwrap().mtime();
        assert_eq!(mtime, 1_000_000_000, "{path:?}");
    }
    let (found, _work) = checkout(&server.url("/repo.git")).await.unwrap();
    assert!(found.directory.join("README").metadata().unwrap().mtime() > 1_500_000_000);
}

#[tokio::test]
async fn a_server_of_plain_files() {
    let repositories = Repositories::of_story();
    shell(&repositories.0.path().join("repo.git"), "git update-server-info");
    let zero = repositories.rev("repo.git", "v1~1");
    let root = repositories.0.path().to_owned();
    let server = Fake::start(move |request, _| dumb(&root, request)).await;
    assert_eq!(readme(&server.url("/repo.git#main")).await, "two");
    assert_eq!(readme(&server.url(&format!("/repo.git#{zero}"))).await, "one");
}

#[tokio::test]
async fn objects_by_sha256() {
    let repositories = Repositories::new();
    let work = tempfile::tempdir().unwrap();
    let bare = repositories.0.path().join("repo.git").display().to_string();
    shell(
        work.path(),
        &format!(
            "set -e; git init -q -b main --object-format=sha256 .; {STORY} git clone -q --bare . '{bare}'"
        ),
    );
    let server = repositories.serve().await;
    let (found, _work) = checkout(&server.url("/repo.git#v1")).await.unwrap();
    assert_eq!(found.commit.len(), 64);
}

/// Lets in who has the credential.
async fn guarded(repositories: &Repositories, expected: &'static str) -> Fake {
    let root = repositories.0.path().to_owned();
    Fake::start(move |request, _| match request.header("authorization") {
        given if given == expected => http_backend(&root, request),
        _ => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\""),
    })
    .await
}

#[tokio::test]
async fn credentials() {
    let repositories = Repositories::of_story();
    let server = guarded(&repositories, "Basic dXNlcjpwQHNz").await;
    let url = server.url("/repo.git#v1");
    let with_login = url.replace("http://", "http://user:p%40ss@");
    assert_eq!(readme(&with_login).await, "1");
    let error = checkout(&url).await.unwrap_err();
    assert!(matches!(error, FetchError::Status { status: 401, .. }), "{error}");
    assert!(error.hint().unwrap().contains("GIT_AUTH_TOKEN"));
    let by_host = format!("GIT_AUTH_HEADER.{}", server.address);
    let known = [("GIT_AUTH_TOKEN", "wrong"), (&*by_host, "Basic dXNlcjpwQHNz\n")];
    checkout_with(&git(), &url, &*secrets(&known)).await.unwrap();

    // x-access-token:token
    let server = guarded(&repositories, "Basic eC1hY2Nlc3MtdG9rZW46dG9rZW4=").await;
    let url = server.url("/repo.git");
    checkout_with(&git(), &url, &*secrets(&[("GIT_AUTH_TOKEN", "token\n")])).await.unwrap();
    let error = checkout_with(&git(), &url, &*secrets(&[("GIT_AUTH_TOKEN", "hunter2")])).await;
    assert!(!format!("{:?}", error.unwrap_err()).contains("hunter2"));
}

#[tokio::test]
async fn a_moved_repository_is_found_but_gets_no_credential_elsewhere() {
    let repositories = Repositories::of_story();
    let new = repositories.serve().await;
    let target = new.url("/repo.git");
    let old = Fake::start(move |request, _| {
        let rest = request.path.strip_prefix("/old.git").unwrap();
        Reply::new(301).header("Location", format!("{target}{rest}"))
    })
    .await;
    let url = old.url("/old.git#v1").replace("http://", "http://user:password@");
    assert_eq!(readme(&url).await, "1");
    let known = secrets(&[("GIT_AUTH_TOKEN", "token")]);
    checkout_with(&git(), &old.url("/old.git"), &*known).await.unwrap();
    assert!(old.requests().iter().all(|request| !request.header("authorization").is_empty()));
    assert!(new.requests().iter().all(|request| request.header("authorization").is_empty()));

    // On the same server it gets it, with a token for just that repository too.
    let root = repositories.0.path().to_owned();
    let server = Fake::start(move |request, _| match request.path.strip_prefix("/old.git") {
        Some(rest) => Reply::new(301).header("Location", format!("/repo.git{rest}")),
        None if request.header("authorization").is_empty() => Reply::new(401),
        None => http_backend(&root, request),
    })
    .await;
    let known = secrets(&[("GIT_AUTH_TOKEN", "token")]);
    checkout_with(&git(), &server.url("/old.git"), &*known).await.unwrap();
    let astray = Fake::start(|_, _| Reply::new(302).header("Location", "/login")).await;
    assert!(checkout(&astray.url("/repo.git")).await.is_err());
}

#[tokio::test]
async fn submodules() {
    let repositories = Repositories::of_story();
    repositories.add(
        "middle.git",
        "echo middle > M; printf '[submodule \"in\"]\\n path = in\\n url = ../repo.git\\n' > .gitmodules
         git add .; git update-index --add --cacheinfo 160000,$REPO,in; git commit -qm x"
            .replace("$REPO", &repositories.rev("repo.git", "v1~1"))
            .as_str(),
    );
    let middle = repositories.rev("middle.git", "main");
    let server = guarded(&repositories, "Basic dXNlcjpwYXNzd29yZA==").await;
    let script = format!(
        "printf '[submodule \"m\"]\\n path = a/m\\n url = {}\\n' > .gitmodules; echo top > T
         git add .; git update-index --add --cacheinfo 160000,{middle},a/m; git commit -qm x",
        server.url("/middle.git")
    );
    repositories.add("top.git", &script);
    let url = server.url("/top.git").replace("http://", "http://user:password@");
    let (found, _work) = checkout(&url).await.unwrap();
    let inner = found.directory.join("a/m/in");
    assert_eq!(fs::read_to_string(inner.join("README")).unwrap(), "one\n");
    assert_eq!(shell(&found.directory, "find . -name .git"), "");
    let (found, _work) = checkout(&format!("{url}?submodules=0")).await.unwrap();
    assert_eq!(shell(&found.directory, "find a"), "a\na/m");
    let (found, _work) = checkout(&format!("{url}?keep-git-dir")).await.unwrap();
    assert_eq!(shell(&found.directory.join("a/m/in"), "git status --porcelain; cat README"), "one");
    assert_eq!(shell(&found.directory, "grep -rl -e password -e cGFzc3dvcm . || :"), "");
}

#[tokio::test]
async fn hostile_submodules() {
    let repositories = Repositories::of_story();
    let canary = tempfile::tempdir().unwrap();
    let file = canary.path().join("canary");
    let (commit, server) = (repositories.rev("repo.git", "main"), repositories.serve().await);
    let local = repositories.0.path().join("repo.git").display().to_string();
    let urls = [
        format!("ext::sh -c touch% {}", file.display()),
        format!("--upload-pack=touch {}", file.display()),
        format!("file://{local}"),
        local,
        "ssh://-oProxyCommand=x/y".into(),
        "git@h.invalid:x".into(),
    ];
    let update =
        format!("git config -f .gitmodules submodule.m.update '!touch {}'", file.display());
    let harmless = server.url("/repo.git");
    let cases = urls.iter().map(|url| (url, "")).chain([(&harmless, &*update)]);
    for (at, (url, more)) in cases.enumerate() {
        let name = format!("evil{at}.git");
        let script = format!(
            "git config -f .gitmodules submodule.m.path m; git config -f .gitmodules submodule.m.url '{url}'
             {more}
             git add .; git update-index --add --cacheinfo 160000,{commit},m; git commit -qm x"
        );
        repositories.add(&name, &script);
        let error = checkout(&server.url(&format!("/{name}"))).await.unwrap_err();
        let text = error.to_string();
        let refused =
            ["not allowed", "blocked", "ignoring suspicious", "invalid value", "No url found"];
        assert!(refused.iter().any(|word| text.contains(word)), "{url}: {text}");
        assert!(
            matches!(error, FetchError::Git { action: "fetching the submodules", .. }),
            "{url}"
        );
        assert!(!file.exists(), "{url}");
    }
}

#[tokio::test]
async fn filters_do_not_run() {
    let repositories = Repositories::new();
    let script = r#"
        printf '*.bin filter=lfs diff=lfs merge=lfs -text\n*.x filter=evil\n' > .gitattributes
        printf 'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n' > a.bin
        echo x > a.x; git add .; git commit -qm x
    "#;
    repositories.add("repo.git", script);
    let server = repositories.serve().await;
    let (found, _work) = checkout(&server.url("/repo.git")).await.unwrap();
    let pointer = fs::read_to_string(found.directory.join("a.bin")).unwrap();
    assert!(pointer.starts_with("version https://git-lfs"));
}

#[tokio::test]
async fn what_the_host_lacks() {
    let http = HttpClient::new(&options()).unwrap();
    let without =
        Git::new(GitOptions { path: "/nonexistent".into(), ssh: None, ca_file: None }, http);
    let reference = read("http://127.0.0.1:1/x.git");
    let error = without.resolve(&reference, &no_secrets).await.unwrap_err();
    assert!(matches!(error, FetchError::GitMissing { .. }), "{error}");
    assert_eq!(error.class(), Class::Host);
    assert!(error.hint().unwrap().contains("install git"));
    let error = git().resolve(&read("git@h.invalid:x"), &no_secrets).await.unwrap_err();
    assert!(matches!(error, FetchError::NoSsh { .. }), "{error}");
    assert!(error.hint().unwrap().contains("--ssh default"));
}

#[tokio::test]
async fn repositories_by_ssh() {
    let repositories = Repositories::of_story();
    // Runs here what is for the other side, and notes how it was called.
    let script = "echo \"$@\" >> \"${0%/*}/log\"; for last; do :; done; exec sh -c \"$last\"";
    let bin = program("ssh", script);
    let mut path = bin.path().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    let ssh = SshAccess { known_hosts: Some("/k h".into()), ..SshAccess::default() };
    let options_ = GitOptions { path, ssh: Some(ssh), ca_file: None };
    let git = Git::new(options_, HttpClient::new(&options()).unwrap());
    let local = repositories.0.path().join("repo.git").display().to_string();
    for url in [format!("git@host.invalid:{local}#v1"), format!("ssh://git@host.invalid{local}#v1")]
    {
        let (found, _work) = checkout_with(&git, &url, &no_secrets).await.unwrap();
        assert_eq!(fs::read_to_string(found.directory.join("README")).unwrap(), "1\n");
    }
    let log = fs::read_to_string(bin.path().join("log")).unwrap();
    assert!(
        log.lines()
            .all(|line| line.contains("-F /dev/null") && line.contains("UserKnownHostsFile=/k h"))
    );
}

#[tokio::test]
async fn repositories_by_gits_own_protocol() {
    let repositories = Repositories::of_story();
    let address = repositories.daemon();
    assert_eq!(readme(&format!("git://{address}/repo.git#v1")).await, "1");
    let error = checkout(&format!("git://{address}/none.git")).await.unwrap_err();
    assert!(matches!(error, FetchError::Git { action: "reading the refs", .. }), "{error}");
}

#[tokio::test]
async fn dropping_the_future_ends_git() {
    let script = "sleep 600 & cd \"${0%/*}\"; echo $! > new; mv new pid; wait";
    let bin = program("git", script);
    let pid = bin.path().join("pid");
    let mut path = bin.path().as_os_str().to_owned();
    path.push(":/usr/bin:/bin");
    let git = Git::new(
        GitOptions { path, ..GitOptions::default() },
        HttpClient::new(&options()).unwrap(),
    );
    let reference = read("git://127.0.0.1:1/x");
    let resolving = tokio::spawn(async move { git.resolve(&reference, &no_secrets).await });
    let child = wait_for(|| fs::read_to_string(&pid).ok()).await;
    resolving.abort();
    let status = PathBuf::from(format!("/proc/{}/stat", child.trim()));
    // Gone, or a zombie that nobody waits for.
    wait_for(|| match fs::read_to_string(&status) {
        Ok(text) => text.contains(") Z ").then_some(()),
        Err(_) => Some(()),
    })
    .await;
}

async fn wait_for<T>(mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "nothing happened");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
