//! The choice, with calls whose answers are given.

use super::*;
use crate::execute::sandbox::{MapWriter, id_map::IdRange, verdict::USER_NAMESPACE};

fn call(call: &str, object: &str, errno: i32) -> SandboxError {
    SandboxError::Call { call: call.into(), object: object.into(), errno: Errno(errno) }
}

fn map(writer: MapWriter) -> IdMap {
    let range = vec![IdRange { inside: 0, outside: 5, count: 9 }];
    IdMap { users: range.clone(), groups: range, writer }
}

/// Root in a container with Docker's default capabilities.
fn container() -> Facts {
    let capabilities = crate::execute::sandbox::capabilities::default_mask();
    Facts { container: true, root_on_overlay: true, capabilities, ..Facts::default() }
}

fn request() -> HostRequest {
    HostRequest { usual: Some("/usual".into()), ..HostRequest::default() }
}

/// What a survey finds where `answer` answers each attempt, and what was attempted.
fn survey_of(
    request: &HostRequest,
    facts: &Facts,
    maps: Vec<(IdMap, Option<OneId>)>,
    answer: impl Fn(&Attempt) -> Result<(), SandboxError>,
) -> (Host, Vec<Attempt>) {
    let mut attempts = Vec::new();
    let calls = Calls {
        attempt: &mut |attempt| {
            attempts.push(attempt.clone());
            answer(attempt)
        },
        swap: &mut || if facts.container { Ok(()) } else { Err(SandboxError::NoContainer) },
        maps,
    };
    let survey = Survey { request, facts, all: false, calls, decision: None, verdicts: Vec::new() };
    let (decision, verdicts) = survey.run();
    (host(request, facts, decision, verdicts), attempts)
}

fn root_map() -> Vec<(IdMap, Option<OneId>)> {
    vec![(map(MapWriter::Root), None)]
}

/// What a refusal of everything says of the namespace's rung.
fn line_of(facts: &Facts, error: SandboxError) -> String {
    let named = HostRequest { named: Some("/named".into()), ..request() };
    let (host, _) = survey_of(&named, facts, root_map(), |_| Err(error.clone()));
    host.verdicts[0].to_string()
}

#[test]
fn root_that_may_mount_needs_no_namespace() {
    let facts = Facts { capabilities: u64::MAX, ..container() };
    let (host, attempts) = survey_of(&request(), &facts, root_map(), |_| Ok(()));
    assert_eq!((host.rung, host.user_namespace), (Some(Rung::Overlay), None));
    assert_eq!(host.state_directory, Path::new("/usual"));
    assert!(host.is_probed && !host.shares_processes);
    assert_eq!(attempts.len(), 1);
}

#[test]
fn what_root_may_not_a_namespace_may() {
    let facts = Facts { capabilities: u64::MAX, ..container() };
    let (host, attempts) = survey_of(&request(), &facts, root_map(), |attempt| match attempt.map {
        Some(_) => Ok(()),
        None => Err(call("mount tmpfs", "/usual", libc::EACCES)),
    });
    assert_eq!((host.rung, attempts.len()), (Some(Rung::Overlay), 2));
    assert_eq!(host.user_namespace, Some(map(MapWriter::Root)));
    assert!(host.flavour.starts_with("map-"), "{}", host.flavour);
    assert_eq!(host.verdicts.len(), 2);
}

#[test]
fn a_refused_proc_is_shared() {
    let (host, attempts) =
        survey_of(&request(), &container(), root_map(), |attempt| match attempt.share_processes {
            true => Ok(()),
            false => Err(call("mount proc", "/proc", libc::EPERM)),
        });
    assert!(host.shares_processes);
    assert_eq!(attempts.len(), 2);
    assert!(host.table().to_string().contains("sharing the container's /proc"));
}

#[test]
fn another_place_is_looked_for_where_the_state_is_on_an_overlay() {
    let volume = tempfile::tempdir().unwrap();
    let facts = Facts { empty_directories: vec![volume.path().into()], ..container() };
    let on_overlay = |attempt: &Attempt| match attempt.state_directory.starts_with("/usual") {
        true => Err(SandboxError::StateOnOverlay { directory: "/usual".into() }),
        false => Ok(()),
    };
    let (host, _) = survey_of(&request(), &facts, root_map(), on_overlay);
    assert_eq!(host.state_directory, volume.path().join(".bareboat"));
    // Never in a build context, never elsewhere than asked.
    let contexts = vec![volume.path().to_owned()];
    let (host, _) = survey_of(&HostRequest { contexts, ..request() }, &facts, vec![], on_overlay);
    assert!(!host.state_directory.starts_with(volume.path()));
    let named = HostRequest { named: Some("/usual/named".into()), ..request() };
    let (host, attempts) = survey_of(&named, &facts, root_map(), on_overlay);
    assert_eq!((attempts.len(), host.rung), (1, Some(Rung::Swap)));
    let line = host.verdicts[0].to_string();
    assert!(line.contains("/usual is on overlayfs") && line.contains("emptyDir"), "{line}");
}

#[test]
fn what_is_no_matter_of_the_place_ends_the_search() {
    let volume = tempfile::tempdir().unwrap();
    let facts = Facts { empty_directories: vec![volume.path().into()], ..container() };
    let refused = |_: &Attempt| Err(call("unshare", USER_NAMESPACE, libc::EPERM));
    let (host, attempts) = survey_of(&request(), &facts, root_map(), refused);
    assert_eq!((attempts.len(), host.rung), (1, Some(Rung::Swap)));
    assert_eq!(host.state_directory, Path::new("/.bareboat"));
}

#[test]
fn a_user_with_one_id_is_told_why() {
    let reason = OneId::NoRange { file: "/etc/subuid", user: "ci".into() };
    let maps = vec![(IdMap::oneself(), Some(reason.clone()))];
    let facts = Facts { uid: 1000, ..Facts::default() };
    let (host, _) = survey_of(&request(), &facts, maps, |_| Ok(()));
    assert_eq!((host.rung, host.one_id), (Some(Rung::Overlay), Some(reason)));
    assert!(host.verdicts[0].to_string().ends_with("for images with a single owner"));
    let refused = || SandboxError::IdMap { program: "newuidmap".into(), problem: "no".into() };
    let maps =
        vec![(map(MapWriter::Helpers), None), (IdMap::oneself(), Some(OneId::HelperRefused))];
    let (host, attempts) = survey_of(&request(), &facts, maps, |attempt| {
        match attempt.map.as_ref().map(|map| map.writer) {
            Some(MapWriter::Oneself) => Ok(()),
            _ => Err(refused()),
        }
    });
    assert_eq!((host.one_id, attempts.len()), (Some(OneId::HelperRefused), 2));
}

#[test]
fn a_rung_that_was_asked_for_is_the_only_one_that_is_tried() {
    let of = |choice, answer: Result<(), SandboxError>| {
        let named = Some("/named".into());
        let request = HostRequest { choice, named, ..request() };
        let (host, attempts) = survey_of(&request, &container(), root_map(), |_| answer.clone());
        (host.rung, host.verdicts.len(), attempts.len())
    };
    let refused = Err(call("unshare", USER_NAMESPACE, libc::EPERM));
    assert_eq!(of(SandboxChoice::Overlay, refused), (None, 1, 1));
    assert_eq!(of(SandboxChoice::Swap, Ok(())), (Some(Rung::Swap), 1, 0));
    assert_eq!(of(SandboxChoice::None, Ok(())), (None, 0, 0));
}

/// What this kernel can't show.
#[test]
fn every_refusal_is_explained() {
    let docker = Facts { seccomp: true, ..container() };
    let line = line_of(&docker, call("unshare", USER_NAMESPACE, libc::EPERM));
    assert!(line.contains("seccomp profile") && line.contains("hostUsers: false"), "{line}");
    let line = line_of(&container(), call("mount tmpfs", "/w", libc::EACCES));
    assert!(line.contains("AppArmor") && line.contains("type: Unconfined"), "{line}");
    let fargate = Facts { user_namespaces_max: Some(0), ..container() };
    let line = line_of(&fargate, call("unshare", USER_NAMESPACE, libc::ENOSPC));
    assert!(line.contains("Fargate") && line.contains("user.max_user_namespaces"), "{line}");
    let line = line_of(&container(), call("unshare", USER_NAMESPACE, libc::ENOSPC));
    assert!(line.contains("limit of namespaces is reached"), "{line}");
    let line = line_of(&container(), call("unshare", USER_NAMESPACE, libc::EUSERS));
    assert!(line.contains("nested too deeply"), "{line}");
    let line = line_of(&container(), call("unshare", USER_NAMESPACE, libc::EINVAL));
    assert!(line.contains("lacks") && line.contains("CONFIG_USER_NS"), "{line}");
    let line = line_of(&container(), call("unshare", USER_NAMESPACE, libc::ENOSYS));
    assert!(line.contains("lacks the call") && line.contains("gVisor"), "{line}");
    let ubuntu = Facts { uid: 1000, apparmor_restricts: true, ..Facts::default() };
    let line = line_of(&ubuntu, call("unshare", "namespaces", libc::EPERM));
    assert!(line.contains("Ubuntu") && line.contains("sudo"), "{line}");
}

#[test]
fn a_plan_without_run_gets_a_place_for_its_state() {
    let scratch = tempfile::tempdir().unwrap();
    let uid = scratch.path().metadata().unwrap().uid();
    let facts = Facts { uid, container: true, ..Facts::default() };
    let refused = |_: &Attempt| Err(call("unshare", USER_NAMESPACE, libc::EPERM));
    let usual = Some(scratch.path().join("a/b"));
    let request = HostRequest { choice: SandboxChoice::Overlay, usual, ..request() };
    let (host, _) = survey_of(&request, &facts, root_map(), refused);
    assert_eq!((host.rung, host.state_directory), (None, scratch.path().join("a/b")));
    // A directory that others may write to is nobody's own.
    let open = scratch.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    assert!(!is_usable(&open, uid) && open.exists());
    assert!(!is_usable(&scratch.path().join("new"), uid + 1));
    assert!(!scratch.path().join("new").exists());
}
