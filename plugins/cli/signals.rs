//! SIGINT and SIGTERM end a build: the first lets core clean up, the second skips the grace that steps get.

use bareboat_core::Class;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Why a build should end; `None` while it should not. Each signal is one change: the second means no grace.
pub type Cancel = watch::Receiver<Option<Class>>;

/// Listens until the runtime ends.
///
/// Errors: when the handlers cannot be installed.
pub fn listen() -> std::io::Result<Cancel> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            let class = tokio::select! {
                Some(()) = interrupt.recv() => Class::Interrupted,
                Some(()) = terminate.recv() => Class::Terminated,
                else => return,
            };
            sender.send_modify(|cancel| *cancel = cancel.or(Some(class)));
        }
    });
    Ok(receiver)
}
