//! RUN --mount: what each asks for, as mounts of the step's box.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, chown},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::{
    cache::KeyBuilder,
    dockerfile::mount::{Mount, MountType, Sharing},
    error::{Class, Error},
    execute::{
        sandbox::{Discard, MountSource, Rung, StepMount},
        ssh::{self, SocketAccess, SshError},
    },
    plan::{PlannedMount, RunOp, TreeSource},
    request::{BuildRequest, SecretSource},
    rootfs,
    secret::Secret,
    sys::private_root::open_at_real_root,
};

use super::{Solver, blocking, layers::host};

/// What a cache mount has where it does not say.
const CACHE_MODE: u32 = 0o755;
const SECRET_MODE: u32 = 0o400;
const SOCKET_MODE: u32 = 0o600;
const SCRIPT_MODE: u32 = 0o755;
/// As BuildKit mounts a tmpfs.
const TMPFS_MODE: u32 = 0o1777;
/// Secrets beyond this many bytes are refused, as BuildKit does.
const SECRET_BYTES_MAX: u64 = 500 << 10;

/// A step's mounts, and what lives as long as they do.
#[derive(Default)]
pub struct StepMounts {
    pub mounts: Vec<StepMount>,
    /// Variables that secrets and ssh mounts set.
    pub environment: Vec<(String, Vec<u8>)>,
    /// Held until the step is over.
    _locks: Vec<File>,
    /// Answered until the step is over.
    _agents: Vec<ssh::Forwarding>,
}

impl Solver {
    /// Prepares all mounts of a RUN. `work` is a directory of the step alone.
    pub async fn mounts(&self, run: &RunOp, work: &Path) -> Result<StepMounts, Error> {
        let mut all = StepMounts::default();
        let mut agents = 0;
        for (number, planned) in run.mounts.iter().enumerate() {
            let target = target(run, &planned.mount);
            match planned.mount.kind {
                MountType::Bind => {
                    let source = self.bind(planned, work, number).await?;
                    all.mounts.push(StepMount { target, source });
                }
                MountType::Cache => {
                    let (source, lock) = self.cache(planned, &target).await?;
                    all.mounts.push(StepMount { target, source });
                    all._locks.push(lock);
                }
                MountType::Tmpfs => {
                    all.mounts.push(StepMount { target, source: tmpfs(&planned.mount) })
                }
                MountType::Secret => self.secret(&planned.mount, &mut all)?,
                MountType::Ssh => {
                    self.ssh(run, &planned.mount, agents, work, &mut all)?;
                    agents += 1;
                }
            }
        }
        if let Some((name, content)) = &run.script {
            let target = PathBuf::from(format!("/dev/pipes/{name}"));
            // A file in memory could not be executed.
            let file = work.join("script");
            fs::write(&file, content).map_err(host)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(SCRIPT_MODE)).map_err(host)?;
            let path = PathBuf::from("script");
            let source = MountSource::Bind { root: self.seen(work), path, writable: false };
            all.mounts.push(StepMount { target, source });
        }
        Ok(all)
    }

    async fn bind(
        &self,
        planned: &PlannedMount,
        work: &Path,
        number: usize,
    ) -> Result<MountSource, Error> {
        if self.parts.services.host.rung == Some(Rung::Swap) {
            return self.prepared(planned, work, number).await;
        }
        let path = PathBuf::from(planned.mount.source.as_deref().unwrap_or("/"));
        let lowers = self.source_trees(planned.from.as_ref(), work, number).await?;
        let discard = match planned.mount.read_only {
            true => None,
            false => Some(discard(work, number)?),
        };
        Ok(MountSource::Tree { lowers, path, discard })
    }

    /// On the swap rung: a copy of what a bind shows, for this step alone.
    async fn prepared(
        &self,
        planned: &PlannedMount,
        work: &Path,
        number: usize,
    ) -> Result<MountSource, Error> {
        let read_only = planned.mount.read_only;
        let directory = fresh(work, number, "copy")?;
        let source = match &planned.from {
            None => &TreeSource::Empty,
            Some(source) => source,
        };
        let mut path = directory.clone();
        if !matches!(source, TreeSource::Empty) {
            let wanted = planned.mount.source.as_deref().unwrap_or("/");
            let (changeset, file) = self.shown(source, wanted).await?;
            path.extend(file.iter().map(|name| OsStr::from_bytes(name)));
            let handle = File::open(&directory).map_err(host)?.into();
            let applied = blocking(move || rootfs::apply_changeset(handle, &changeset, None));
            applied.await?.map_err(host)?;
        }
        Ok(MountSource::Prepared { path: self.seen(&path), read_only })
    }

    /// A path of the state as the process sees it that puts a step's mounts in place.
    fn seen(&self, path: &Path) -> PathBuf {
        self.side().real(&self.parts.store.real(path))
    }

    /// The trees of a mount's source, topmost first.
    async fn source_trees(
        &self,
        source: Option<&TreeSource>,
        work: &Path,
        number: usize,
    ) -> Result<Vec<PathBuf>, Error> {
        let layers = match source {
            None | Some(TreeSource::Empty) => return Ok(vec![fresh(work, number, "empty")?]),
            Some(TreeSource::Context(name)) => {
                return Ok(vec![self.context_tree(name.as_deref()).await?]);
            }
            Some(TreeSource::Stage(index)) => self.stage(*index).await?.layers.clone(),
            Some(TreeSource::Image(image)) => self.parts.images[image].layers.clone(),
        };
        let trees = self.layers.trees(&layers).await?;
        let visible = rootfs::lowest_visible_layer(&self.layers.snapshot(&layers).await?);
        let lowers = self.lowers(&layers[visible..], &trees[visible..]).await?;
        match lowers.is_empty() {
            true => Ok(vec![fresh(work, number, "empty")?]),
            false => Ok(lowers),
        }
    }

    /// A cache directory, locked as its sharing says. Its content is part of no key and no layer.
    async fn cache(
        &self,
        planned: &PlannedMount,
        target: &Path,
    ) -> Result<(MountSource, File), Error> {
        let (planned, part) = part_of_cache(planned);
        let mount = &planned.mount;
        let cleaned: PathBuf = target.components().collect();
        let id = mount.id.clone().unwrap_or_else(|| cleaned.to_string_lossy().into_owned());
        let number = |value: Option<u32>| value.map(|value| value.to_string());
        let namespace = self.parts.request.build_args.get("BUILDKIT_CACHE_MOUNT_NS");
        let key = KeyBuilder::new("cache mount")
            .optional("namespace", namespace.map(String::as_str))
            .text("id", &id)
            .optional("uid", number(mount.uid).as_deref())
            .optional("gid", number(mount.gid).as_deref())
            .optional("mode", number(mount.mode).as_deref())
            .text("from", &format!("{:?}", planned.from))
            .optional("source", mount.source.as_deref())
            .finish();
        let room = self.parts.store.root().join("mounts").join(key.to_string());
        let sharing = mount.sharing.unwrap_or(Sharing::Shared);
        let (place, lock) = blocking(move || lock_place(&room, sharing)).await?.map_err(host)?;
        let directory = place.join("fs");
        let unused = matches!(self.parts.request.no_cache, crate::request::NoCache::All)
            && self.first_use(&place);
        if unused && directory.exists() {
            self.parts.store.discard(&directory);
        }
        if !directory.exists() {
            self.seed(&planned, &directory).await?;
        }
        let source = MountSource::Bind {
            root: self.seen(&directory),
            path: PathBuf::from(part),
            writable: !mount.read_only,
        };
        Ok((source, lock))
    }

    /// Makes a cache directory: empty, or with what `from` and `source` name.
    async fn seed(&self, planned: &PlannedMount, directory: &Path) -> Result<(), Error> {
        let mount = &planned.mount;
        let fresh = self.parts.store.work_directory("cache-").map_err(host)?;
        if let Some(from) = &planned.from {
            let source = mount.source.as_deref().unwrap_or("/");
            let changeset = self.subtree(from, source).await?;
            let handle = File::open(&fresh).map_err(host)?.into();
            let applied = blocking(move || rootfs::apply_changeset(handle, &changeset, None));
            applied.await?.map_err(host)?;
        }
        let mode = mount.mode.unwrap_or(CACHE_MODE);
        let own = || {
            fs::set_permissions(&fresh, fs::Permissions::from_mode(mode))?;
            chown(&fresh, Some(mount.uid.unwrap_or(0)), Some(mount.gid.unwrap_or(0)))?;
            fs::set_permissions(&fresh, fs::Permissions::from_mode(mode))?;
            fs::rename(&fresh, directory)
        };
        own().or_else(|error| if directory.exists() { Ok(()) } else { Err(error) }).map_err(host)
    }

    /// An agent's socket. The variable names the first one, also where no agent was forwarded (as BuildKit has it).
    fn ssh(
        &self,
        run: &RunOp,
        mount: &Mount,
        number: usize,
        work: &Path,
        all: &mut StepMounts,
    ) -> Result<(), Error> {
        let name = format!("ssh_agent.{number}");
        let target = match &mount.target {
            Some(_) => target(run, mount),
            None => Path::new("/run/buildkit").join(&name),
        };
        let set = run.environment.get("SSH_AUTH_SOCK").is_some();
        if number == 0 && !set {
            let value = target.as_os_str().as_encoded_bytes().to_vec();
            all.environment.push(("SSH_AUTH_SOCK".into(), value));
        }
        let id = mount.id.as_deref().unwrap_or("default");
        let Some(source) = self.parts.request.ssh.get(id) else {
            return not_forwarded(id, mount.required);
        };
        let access = SocketAccess {
            mode: mount.mode.unwrap_or(SOCKET_MODE),
            uid: mount.uid.unwrap_or(0),
            gid: mount.gid.unwrap_or(0),
        };
        let agent = ssh::forward(source, work, &name, access).map_err(SshError::into_error)?;
        all._agents.push(agent);
        let source = MountSource::Bind { root: self.seen(work), path: name.into(), writable: true };
        all.mounts.push(StepMount { target, source });
        Ok(())
    }

    pub fn secret(&self, mount: &Mount, all: &mut StepMounts) -> Result<(), Error> {
        let target_name = mount.target.as_deref().map(base_name);
        let id =
            mount.id.as_deref().or(mount.source.as_deref()).or(target_name).unwrap_or_default();
        let value = match self.parts.request.secrets.get(id) {
            Some(source) => Some(read_secret(id, source)?),
            None if mount.required => {
                let title = format!("secret {id} is required, but was not given");
                let hint = format!("give it with --secret id={id},src=FILE or id={id},env=NAME");
                return Err(Error::new(Class::Step, title).hint(hint));
            }
            None => None,
        };
        if let Some(name) = &mount.env {
            let name = if name.is_empty() { base_name(id) } else { name };
            all.environment.push((name.to_owned(), value.clone().unwrap_or_default()));
        }
        let Some(content) = value.filter(|_| mount.env.is_none() || mount.target.is_some()) else {
            return Ok(());
        };
        let target = match &mount.target {
            Some(target) => PathBuf::from(target),
            None => Path::new("/run/secrets").join(base_name(id)),
        };
        let source = MountSource::File {
            content,
            mode: mount.mode.unwrap_or(SECRET_MODE),
            uid: mount.uid.unwrap_or(0),
            gid: mount.gid.unwrap_or(0),
        };
        all.mounts.push(StepMount { target, source });
        Ok(())
    }
}

pub fn not_forwarded(id: &str, required: bool) -> Result<(), Error> {
    if !required {
        return Ok(());
    }
    let title = format!("no SSH key {id:?} was forwarded, and the mount requires it");
    Err(Error::new(Class::Step, title).hint(format!("give it with --ssh {id} or --ssh {id}=FILE")))
}

/// A cache without `from` is one directory, and `source` says which part of it to mount; owner and mode then don't count
/// (as in BuildKit's dispatchRunMounts). With `from`, `source` is what the cache starts with.
fn part_of_cache(planned: &PlannedMount) -> (PlannedMount, String) {
    let mut planned = planned.clone();
    let part = match (&planned.from, planned.mount.source.take()) {
        (None | Some(TreeSource::Empty), Some(source)) => source,
        (_, source) => {
            planned.mount.source = source;
            return (planned, "/".to_owned());
        }
    };
    if part.split('/').any(|name| !matches!(name, "" | ".")) {
        (planned.mount.uid, planned.mount.gid, planned.mount.mode) = (None, None, None);
    }
    (planned, part)
}

fn tmpfs(mount: &Mount) -> MountSource {
    MountSource::Tmpfs {
        bytes_max: (mount.size_bytes > 0).then_some(mount.size_bytes),
        mode: TMPFS_MODE,
        uid: 0,
        gid: 0,
    }
}

/// Where a mount goes: relative to the working directory, which it is itself where it names none.
fn target(run: &RunOp, mount: &Mount) -> PathBuf {
    let directory = Path::new("/").join(&run.working_directory);
    match mount.target.as_deref() {
        None => directory,
        Some(target) => directory.join(target),
    }
}

fn base_name(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}

fn fresh(work: &Path, number: usize, name: &str) -> Result<PathBuf, Error> {
    let path = work.join(format!("mount-{number}-{name}"));
    fs::create_dir(&path).map_err(host)?;
    Ok(path)
}

fn discard(work: &Path, number: usize) -> Result<Discard, Error> {
    Ok(Discard { upper: fresh(work, number, "upper")?, work: fresh(work, number, "work")? })
}

/// All secrets of a build, by id.
pub fn secret_values(request: &BuildRequest) -> Result<BTreeMap<String, Secret<Vec<u8>>>, Error> {
    let read = |(id, source): (&String, &SecretSource)| {
        Ok((id.clone(), Secret::new(read_secret(id, source)?)))
    };
    request.secrets.iter().map(read).collect()
}

fn read_secret(id: &str, source: &SecretSource) -> Result<Vec<u8>, Error> {
    let bytes = match source {
        SecretSource::Value(value) => value.expose().clone(),
        SecretSource::File(path) => read_at_real_root(path).map_err(|error| {
            Error::new(Class::Usage, format!("secret {id}: {}: {error}", path.display()))
        })?,
    };
    match bytes.len() as u64 > SECRET_BYTES_MAX {
        true => Err(Error::new(Class::Usage, format!("secret {id} is larger than 500 KiB"))),
        false => Ok(bytes),
    }
}

/// A file of the machine, of which a secret's bytes are read at most, and one more.
fn read_at_real_root(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::from(open_at_real_root(path)?);
    file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The directory of a cache for one user of it: the shared one, waited for if it is locked, or for `private` the first
/// that nobody uses.
fn lock_place(room: &Path, sharing: Sharing) -> std::io::Result<(PathBuf, File)> {
    for number in 0.. {
        let place = room.join(number.to_string());
        fs::create_dir_all(&place)?;
        let lock =
            File::options().create(true).truncate(false).write(true).open(place.join("lock"))?;
        let operation = match sharing {
            Sharing::Shared => FlockOperation::LockShared,
            Sharing::Locked => FlockOperation::LockExclusive,
            Sharing::Private => FlockOperation::NonBlockingLockExclusive,
        };
        match flock(&lock, operation) {
            Ok(()) => return Ok((place, lock)),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(std::io::ErrorKind::Other.into())
}
