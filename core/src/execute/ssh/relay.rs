//! The socket of a step, and what passes through it.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixListener as StdListener},
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::{JoinHandle, JoinSet},
};

use super::{
    SshError,
    agent::{self, FAILURE, REQUEST_IDENTITIES, SIGN_REQUEST},
    key::{self, PrivateKey},
};
use crate::{
    request::SshSource,
    sys::{fs::descriptor_path, private_root::open_at_real_root},
};

/// OpenSSH's own limit of a message.
const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// What one step may hold open at once.
const CONNECTIONS_MAX: usize = 64;
/// After a failure to accept, which mostly is a want of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// Who may use a socket.
#[derive(Clone, Copy, Debug)]
pub struct SocketAccess {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// A socket that is answered until this is dropped.
pub struct Forwarding {
    task: JoinHandle<()>,
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What answers.
enum Backend {
    /// The socket's directory, and its name there.
    Agent(OwnedFd, OsString),
    Keys(Vec<PrivateKey>),
}

/// Makes the socket `name` in `directory`, which is the builder's alone, and answers on it. To be called on a runtime.
///
/// # Errors
/// The socket can't be made, or a key can't be used.
pub fn forward(
    source: &SshSource,
    directory: &Path,
    name: &str,
    access: SocketAccess,
) -> Result<Forwarding, SshError> {
    let backend = match source {
        SshSource::Agent(socket) => Backend::agent(socket)?,
        SshSource::Keys(files) => Backend::Keys(key::load(files)?),
    };
    let failed = |error| SshError::Socket(directory.join(name), error);
    let listener = listen(directory, name, access).map_err(failed)?;
    Ok(Forwarding { task: tokio::spawn(serve(listener, Arc::new(backend))) })
}

/// A socket's address holds 107 bytes, so it is made through the directory's descriptor.
fn listen(directory: &Path, name: &str, access: SocketAccess) -> io::Result<UnixListener> {
    let handle = File::open(directory)?;
    let listener = StdListener::bind(descriptor_path(handle.as_fd()).join(name))?;
    let path = directory.join(name);
    // Root's already, also where root is somebody else outside.
    if (access.uid, access.gid) != (0, 0) {
        std::os::unix::fs::lchown(&path, Some(access.uid), Some(access.gid))?;
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(access.mode & 0o777))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

async fn serve(listener: UnixListener, backend: Arc<Backend>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((client, _)) => {
                let backend = backend.clone();
                connections.spawn(async move {
                    if let Err(error) = converse(client, &backend).await {
                        tracing::debug!(%error, "a connection to the ssh agent ended");
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, "no connection to the ssh agent");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn converse(mut client: UnixStream, backend: &Backend) -> io::Result<()> {
    let mut agent = None;
    while let Some(message) = read_message(&mut client).await? {
        let answer = match message.first() {
            Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)) => backend.ask(&mut agent, &message).await?,
            // Nothing that would change or unlock the agent.
            _ => vec![FAILURE],
        };
        write_message(&mut client, &answer).await?;
    }
    Ok(())
}

impl Backend {
    /// An agent by its socket, whose directory is opened: connections are made while an image may be at `/`.
    fn agent(socket: &Path) -> Result<Self, SshError> {
        let failed = |error: io::Error| SshError::Socket(socket.to_owned(), error);
        let (Some(parent), Some(name)) = (socket.parent(), socket.file_name()) else {
            return Err(failed(io::ErrorKind::NotFound.into()));
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let directory = open_at_real_root(parent).map_err(|error| failed(error.into()))?;
        Ok(Backend::Agent(directory, name.to_owned()))
    }

    async fn ask(&self, agent: &mut Option<UnixStream>, message: &[u8]) -> io::Result<Vec<u8>> {
        let path = match self {
            Backend::Keys(keys) => return Ok(agent::answer(keys, message)),
            Backend::Agent(directory, name) => descriptor_path(directory.as_fd()).join(name),
        };
        let connection = match agent {
            Some(connection) => connection,
            None => agent.insert(UnixStream::connect(path).await?),
        };
        write_message(connection, message).await?;
        read_message(connection).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// A message without its length; `None` at the end.
async fn read_message(stream: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length == 0 || length > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message of an impossible length",
        ));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write_message(stream: &mut UnixStream, message: &[u8]) -> io::Result<()> {
    let mut framed = Vec::with_capacity(4 + message.len());
    super::wire::put_string(&mut framed, message);
    stream.write_all(&framed).await
}
