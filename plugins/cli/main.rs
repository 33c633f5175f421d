//! The command line `bareboat`: reads the environment and the arguments, hands core a request, shows what happens.

#[cfg(feature = "aws")]
mod aws;
mod check;
mod credentials;
mod diagnostics;
mod doctor;
mod engine;
mod flags;
mod host;
mod identity;
mod outputs;
mod plan;
mod render;
mod run;
mod signals;
mod trust;

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use bareboat_core::{
    Error,
    execute::sandbox::{self, Host},
};
use flags::{Environment, Invocation};

/// Blocking calls that run at once: file reads and name look-ups. Hashing, compression and walks have their own threads.
const BLOCKING_THREADS_MAX: usize = 16;
/// How long a finished build waits for blocking calls that nobody needs any more.
const SHUTDOWN_SECONDS_MAX: u64 = 1;

fn main() -> ExitCode {
    bareboat_core::helper_main();
    sandbox::keep_root();
    std::panic::set_hook(Box::new(|panic| render::bug(&panic.to_string())));
    let environment = Environment::of_process();
    let raw = match flags::parse(std::env::args_os()) {
        Ok(raw) => raw,
        Err(error) => return refuse(&error),
    };
    match flags::convert(raw, &environment) {
        Ok(invocation) => prepare(invocation, &environment),
        Err(error) => refuse_early(error, &environment),
    }
}

/// What has to be done before there is a second thread.
fn prepare(mut invocation: Invocation, environment: &Environment) -> ExitCode {
    match host::prepare(&mut invocation.task) {
        Ok(host) => carry_out(invocation, host, environment),
        Err(error) => refuse_early(error, environment),
    }
}

fn refuse_early(error: Error, environment: &Environment) -> ExitCode {
    let error = error.into();
    render::early_error(&error, environment);
    ExitCode::from(render::exit_code(&error))
}

/// Help and version go to standard output with exit code 0, refusals to standard error with 2.
fn refuse(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    match (error.use_stderr(), printed) {
        (false, Ok(())) => ExitCode::SUCCESS,
        (false, Err(_)) => ExitCode::FAILURE,
        (true, _) => ExitCode::from(2),
    }
}

fn carry_out(invocation: Invocation, host: Host, environment: &Environment) -> ExitCode {
    let display = render::display(invocation.progress, environment);
    diagnostics::install(invocation.verbosity, display.clone());
    // Fails only if one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let outcome = runtime().and_then(|runtime| {
        let outcome = runtime.block_on(run::task(invocation.task, host, &display, environment));
        runtime.shutdown_timeout(Duration::from_secs(SHUTDOWN_SECONDS_MAX));
        outcome
    });
    let code = outcome.map_or_else(
        |error| {
            display.error(&error);
            ExitCode::from(render::exit_code(&error))
        },
        |()| ExitCode::SUCCESS,
    );
    display.close();
    code
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()
        .context("start the runtime")
}
