//! The builder's side: starts the helper, hands the request over, passes the output on, and ends the step.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    path::PathBuf,
    process::Stdio,
    sync::OnceLock,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::{Child, Command},
    time::timeout,
};

use super::{
    HELPER_NAME, SandboxError, helper_is_wired,
    spec::StepSpec,
    wire::{self, Answer, Request},
};
use crate::{event::OutputStream, sys::fs::descriptor_path, sys::process::wait_for_end};

/// Bytes of output that are passed on at once.
const OUTPUT_BYTES: usize = 32 * 1024;

/// How long output may stay away after the step has ended. Its processes are dead by then: only somebody outside whom
/// the step gave its pipe could still hold it open.
const DRAIN_SECONDS: u64 = 2;

/// How long a helper may take to end after its socket was closed, which takes it milliseconds. A dropped future waits
/// so long, too: afterwards the step's directories can be deleted.
const END_SECONDS: u64 = 10;

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
    let answer = ask(Request::Run(spec), output, cancel).await?;
    let Answer::Ended { code, signal, max_rss_bytes, cpu_microseconds, stubs } = answer else {
        return Err(wire::protocol("no end in the answer"));
    };
    let exit = match (code, signal) {
        (Some(code), _) => StepExit::Code(code),
        (None, Some(signal)) => StepExit::Signal(signal),
        (None, None) => return Err(wire::protocol("no exit in the answer")),
    };
    let cpu_seconds = Duration::from_micros(cpu_microseconds).as_secs_f64();
    let wall_seconds = started.elapsed().as_secs_f64();
    Ok(StepReport { exit, stubs, max_rss_bytes, cpu_seconds, wall_seconds })
}

/// Starts a helper, sends one request and returns its answer; a failure that it tells is an error.
pub(super) async fn ask(
    request: Request,
    output: impl FnMut(OutputStream, &[u8]) + Send,
    cancel: impl Future<Output = ()> + Send,
) -> Result<Answer, SandboxError> {
    let request = wire::frame(&request)?;
    let mut helper = Helper::start()?;
    let answer = helper.converse(&request, output, cancel).await;
    let end = helper.finish().await?;
    match answer? {
        Some(Answer::Failed(error)) => Err(error),
        Some(answer) => Ok(answer),
        None => Err(SandboxError::HelperDied { how: end }),
    }
}

/// A running helper. Closing its socket makes it kill the step and exit.
struct Helper {
    child: Child,
    control: Option<UnixStream>,
}

impl Helper {
    fn start() -> Result<Self, SandboxError> {
        if !helper_is_wired() {
            return Err(SandboxError::HelperMissing);
        }
        let (ours, theirs) = StdUnixStream::pair().map_err(start_error)?;
        ours.set_nonblocking(true).map_err(start_error)?;
        let control = UnixStream::from_std(ours).map_err(start_error)?;
        let child = Command::new(descriptor_path(own_executable()?.as_fd()))
            .arg0(HELPER_NAME)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(start_error)?;
        Ok(Helper { child, control: Some(control) })
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
            control.write_all(request).await.map_err(wire::protocol)?;
            receive(control).await
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
    async fn finish(mut self) -> Result<String, SandboxError> {
        self.control = None;
        let patience = Duration::from_secs(END_SECONDS);
        let status = match timeout(patience, self.child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                // It hangs in a call of the set-up. The step, if there is one, dies with it.
                self.child.start_kill().map_err(start_error)?;
                self.child.wait().await
            }
        };
        Ok(status.map_err(start_error)?.to_string())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.control = None;
        // `None` if it was waited for already.
        if let Some(pid) = self.child.id()
            && !wait_for_end(pid, Duration::from_secs(END_SECONDS))
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
fn own_executable() -> Result<&'static File, SandboxError> {
    static EXECUTABLE: OnceLock<File> = OnceLock::new();
    if let Some(file) = EXECUTABLE.get() {
        return Ok(file);
    }
    let file = File::open("/proc/self/exe").map_err(start_error)?;
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
