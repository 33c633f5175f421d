//! The builder's side: starts the helper, hands the request over, passes the output on, and ends the step.

use std::{
    io,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream as StdUnixStream, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use rustix::process::{Pid, getpid, set_child_subreaper};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::{Child, Command},
    time::timeout,
};

use super::{
    HELPER_NAME, SandboxError,
    error::Named,
    helper_is_wired,
    spec::{StepRoot, StepSpec},
    swap::SwapReport,
    wire::{self, Answer, RepairRequest, Request},
};
use crate::{
    event::OutputStream,
    sys::{
        private_root::{self, command_at_real_root, descriptor_path_for_programs},
        process::{set_nondumpable, wait_for_end, wait_now},
    },
};

/// Bytes of output that are passed on at once.
const OUTPUT_BYTES: usize = 32 * 1024;

/// How long output may stay away after the step has ended. Its processes are dead by then: only somebody outside whom
/// the step gave its pipe could still hold it open.
const DRAIN_SECONDS: u64 = 2;

/// How long a helper may take to end after its socket was closed, which takes it milliseconds. A dropped future waits
/// so long, too: afterwards the step's directories can be deleted.
const END_SECONDS: u64 = 10;

/// The same for a keeper, which has to end a tree of processes that resists and to move files back.
const KEEPER_SECONDS: u64 = 150;

/// How a step's main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepExit {
    /// 127 and 126 also where the program was not found or can't be executed; the reason was the last output.
    Code(i32),
    Signal(i32),
}

/// A step that was executed.
#[derive(Clone, Debug)]
pub struct StepReport {
    pub exit: StepExit,
    /// Mount points that were made in the image and removed again, relative to the root and free of links. A step that
    /// put something in one of them has it in its upper directory still.
    pub stubs: Vec<PathBuf>,
    /// The largest resident set of one process of the step.
    pub max_rss_bytes: u64,
    pub cpu_seconds: f64,
    /// From the request to the end, set-up included.
    pub wall_seconds: f64,
    /// Of a step at the container's own root.
    pub swap: Option<SwapReport>,
}

/// Runs a step in a box of its own and passes its output on as it comes; a slow taker holds the step back. When the
/// main process ends, everything that it left running is killed. When `cancel` completes first, the step is killed
/// and the result is [`SandboxError::Canceled`]; the same happens to a step whose future is dropped. In all cases no
/// process and no mount is left when this is over.
pub async fn run(
    spec: StepSpec,
    output: impl FnMut(OutputStream, &[u8]) + Send,
    cancel: impl Future<Output = ()> + Send,
) -> Result<StepReport, SandboxError> {
    let started = Instant::now();
    let side = match &spec.root {
        StepRoot::Overlay(_) => None,
        StepRoot::Swap(root) => Some(root.side.clone()),
    };
    let answer = match side {
        None => ask(Request::Run(spec), output, cancel).await?,
        Some(side) => ask_keeper(side, Request::Run(spec), output, cancel).await?,
    };
    let Answer::Ended { code, signal, max_rss_bytes, cpu_microseconds, stubs, swap } = answer
    else {
        return Err(wire::protocol("no end in the answer"));
    };
    let exit = match (code, signal) {
        (Some(code), _) => StepExit::Code(code),
        (None, Some(signal)) => StepExit::Signal(signal),
        (None, None) => return Err(wire::protocol("no exit in the answer")),
    };
    let cpu_seconds = Duration::from_micros(cpu_microseconds).as_secs_f64();
    let wall_seconds = started.elapsed().as_secs_f64();
    Ok(StepReport { exit, stubs, max_rss_bytes, cpu_seconds, wall_seconds, swap })
}

/// Makes the root of this container whole where an earlier build was killed together with its keeper. Whether there was
/// anything to do. To be called before anything of `side` is used.
pub async fn repair(side: PathBuf) -> Result<bool, SandboxError> {
    let _gate = private_root::swap().await;
    let (found, _) = ask_repair(side, None).await?;
    Ok(found)
}

/// A step at the container's own root: no program of this build runs meanwhile, and a keeper that dies is made good.
async fn ask_keeper(
    side: PathBuf,
    request: Request,
    output: impl FnMut(OutputStream, &[u8]) + Send,
    cancel: impl Future<Output = ()> + Send,
) -> Result<Answer, SandboxError> {
    // The step is of this user, and a dead keeper's orphans are to come here.
    set_nondumpable().named("prctl", "PR_SET_DUMPABLE")?;
    set_child_subreaper(Some(getpid())).named("prctl", "PR_SET_CHILD_SUBREAPER")?;
    let mut cancel = std::pin::pin!(cancel);
    let _gate = tokio::select! {
        biased;
        () = &mut cancel => return Err(SandboxError::Canceled),
        gate = private_root::swap() => gate,
    };
    let ended = ask_once(request, output, cancel, KEEPER_SECONDS).await?;
    if ended.status.signal().is_none() {
        return ended.answer();
    }
    let (_, orphans) = ask_repair(side, Some(getpid().as_raw_nonzero().get())).await?;
    for orphan in orphans.into_iter().filter_map(Pid::from_raw) {
        // Killed by the repair; nobody else waits for it.
        let _ = wait_now(orphan);
    }
    match ended.answer() {
        Err(SandboxError::HelperDied { how }) => Err(SandboxError::KeeperDied { how }),
        answer => answer,
    }
}

async fn ask_repair(
    side: PathBuf,
    orphans_of: Option<i32>,
) -> Result<(bool, Vec<i32>), SandboxError> {
    let request = Request::Repair(RepairRequest { side, orphans_of });
    let ended = ask_once(request, |_, _| {}, std::future::pending(), KEEPER_SECONDS).await?;
    match ended.answer()? {
        Answer::Repaired { orphans, found } => Ok((found, orphans)),
        _ => Err(wire::protocol("no repair in the answer")),
    }
}

/// Starts a helper, sends one request and returns its answer; a failure that it tells is an error.
pub(super) async fn ask(
    request: Request,
    output: impl FnMut(OutputStream, &[u8]) + Send,
    cancel: impl Future<Output = ()> + Send,
) -> Result<Answer, SandboxError> {
    ask_once(request, output, cancel, END_SECONDS).await?.answer()
}

/// How a conversation with a helper ended.
struct Conversation {
    answer: Result<Option<Answer>, SandboxError>,
    status: ExitStatus,
}

impl Conversation {
    fn answer(self) -> Result<Answer, SandboxError> {
        match self.answer? {
            Some(Answer::Failed(error)) => Err(error),
            Some(answer) => Ok(answer),
            None => Err(SandboxError::HelperDied { how: self.status.to_string() }),
        }
    }
}

async fn ask_once(
    request: Request,
    output: impl FnMut(OutputStream, &[u8]) + Send,
    cancel: impl Future<Output = ()> + Send,
    end_seconds: u64,
) -> Result<Conversation, SandboxError> {
    let request = wire::frame(&request)?;
    let mut helper = Helper::start(Duration::from_secs(end_seconds))?;
    let answer = helper.converse(&request, output, cancel).await;
    Ok(Conversation { answer, status: helper.finish().await? })
}

/// A running helper. Closing its socket makes it kill the step and exit.
struct Helper {
    child: Child,
    control: Option<UnixStream>,
    /// How long it may take to end.
    patience: Duration,
}

impl Helper {
    fn start(patience: Duration) -> Result<Self, SandboxError> {
        if !helper_is_wired() {
            return Err(SandboxError::HelperMissing);
        }
        let (ours, theirs) = StdUnixStream::pair().map_err(start_error)?;
        ours.set_nonblocking(true).map_err(start_error)?;
        let control = UnixStream::from_std(ours).map_err(start_error)?;
        let program = descriptor_path_for_programs(own_executable()?);
        let mut command = Command::new(program);
        command_at_real_root(command.as_std_mut(), Path::new("/"));
        let child = command
            .arg0(HELPER_NAME)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(start_error)?;
        Ok(Helper { child, control: Some(control), patience })
    }

    /// `None` where the helper ended without an answer.
    async fn converse(
        &mut self,
        request: &[u8],
        output: impl FnMut(OutputStream, &[u8]) + Send,
        cancel: impl Future<Output = ()> + Send,
    ) -> Result<Option<Answer>, SandboxError> {
        let (Some(stdout), Some(stderr)) = (self.child.stdout.take(), self.child.stderr.take())
        else {
            return Err(wire::protocol("no output streams"));
        };
        let Some(control) = self.control.as_mut() else {
            return Err(wire::protocol("no socket"));
        };
        let mut pump = Pump::new(stdout, stderr, output);
        let answer = async {
            // A helper that is dead already has no answer either; how it ended says more than the broken socket.
            match control.write_all(request).await {
                Ok(()) => receive(control).await,
                Err(_) => Ok(None),
            }
        };
        let answer = tokio::select! {
            biased;
            () = cancel => return Err(SandboxError::Canceled),
            answer = pump.run_beside(answer) => answer,
        };
        pump.drain().await;
        answer
    }

    /// Closes the socket and waits for the helper's end; says how it ended.
    async fn finish(mut self) -> Result<ExitStatus, SandboxError> {
        self.control = None;
        let status = match timeout(self.patience, self.child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                // It hangs in a call of the set-up. The step, if there is one, dies with it.
                self.child.start_kill().map_err(start_error)?;
                self.child.wait().await
            }
        };
        status.map_err(start_error)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.control = None;
        // `None` if it was waited for already.
        if let Some(pid) = self.child.id()
            && !wait_for_end(pid, self.patience)
        {
            // Nothing more can be done here than to ask.
            let _ = self.child.start_kill();
        }
    }
}

fn start_error(error: io::Error) -> SandboxError {
    SandboxError::Call {
        call: "start helper".to_owned(),
        object: "/proc/self/exe".to_owned(),
        errno: super::error::Errno::from(&error),
    }
}

/// This program, by a descriptor: its path may be another file by now.
fn own_executable() -> Result<&'static OwnedFd, SandboxError> {
    static EXECUTABLE: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(file) = EXECUTABLE.get() {
        return Ok(file);
    }
    let file = private_root::open_own("exe").map_err(|error| start_error(error.into()))?;
    Ok(EXECUTABLE.get_or_init(|| file))
}

async fn receive(control: &mut UnixStream) -> Result<Option<Answer>, SandboxError> {
    let mut header = [0; 4];
    if control.read_exact(&mut header).await.is_err() {
        return Ok(None);
    }
    let mut bytes = vec![0; wire::length(header)?];
    if control.read_exact(&mut bytes).await.is_err() {
        return Ok(None);
    }
    wire::parse(&bytes).map(Some)
}

/// Passes both streams on until they end.
struct Pump<Out, Err, F> {
    stdout: Option<Out>,
    stderr: Option<Err>,
    buffers: [Vec<u8>; 2],
    output: F,
}

impl<Out, Err, F> Pump<Out, Err, F>
where
    Out: AsyncRead + Unpin,
    Err: AsyncRead + Unpin,
    F: FnMut(OutputStream, &[u8]),
{
    fn new(stdout: Out, stderr: Err, output: F) -> Self {
        let buffers = [vec![0; OUTPUT_BYTES], vec![0; OUTPUT_BYTES]];
        Pump { stdout: Some(stdout), stderr: Some(stderr), buffers, output }
    }

    async fn run_beside<T>(&mut self, other: impl Future<Output = T>) -> T {
        let mut other = std::pin::pin!(other);
        loop {
            tokio::select! {
                biased;
                more = self.step() => if !more { return other.await },
                result = &mut other => return result,
            }
        }
    }

    /// The rest, after the step's end.
    async fn drain(&mut self) {
        while let Ok(true) = timeout(Duration::from_secs(DRAIN_SECONDS), self.step()).await {}
    }

    /// One read from whichever stream has something; false when both have ended.
    async fn step(&mut self) -> bool {
        let [out_buffer, err_buffer] = &mut self.buffers;
        let (stream, count) = tokio::select! {
            count = read(&mut self.stdout, out_buffer), if self.stdout.is_some() => {
                (OutputStream::Stdout, count)
            }
            count = read(&mut self.stderr, err_buffer), if self.stderr.is_some() => {
                (OutputStream::Stderr, count)
            }
            else => return false,
        };
        match (stream, count) {
            (OutputStream::Stdout, 0) => self.stdout = None,
            (OutputStream::Stderr, 0) => self.stderr = None,
            (OutputStream::Stdout, count) => (self.output)(stream, &self.buffers[0][..count]),
            (OutputStream::Stderr, count) => (self.output)(stream, &self.buffers[1][..count]),
        }
        true
    }
}

/// A stream that fails has ended.
async fn read(stream: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> usize {
    match stream {
        Some(stream) => stream.read(buffer).await.unwrap_or(0),
        None => 0,
    }
}
