//! Carries out what was asked for: files before, core, files and results after.

use std::{fs, io, io::Read, path::Path, sync::Arc};

use anyhow::Context;
use bareboat_core::{
    Class, Error,
    event::{Event, Warning},
    execute::sandbox::Host,
    preview::BaseConfigs,
};

use crate::{
    credentials,
    engine::{self, BuildResult, Registry, Services},
    flags::{Build, Check, Environment, Plan, RegistryOptions, Task, Transfer},
    identity, outputs,
    render::{self, Display},
    signals, trust,
};

/// As for configurations that a registry sends.
const BASE_CONFIG_BYTES_MAX: u64 = 8 << 20;

/// Does a task. Its result goes to standard output, all else to the display.
pub async fn task(
    task: Task,
    host: Host,
    display: &Arc<dyn Display>,
    environment: &Environment,
) -> anyhow::Result<()> {
    let host = Arc::new(host);
    match task {
        Task::Build(build) => self::build(*build, host, display, environment).await,
        Task::Preflight(build) => preflight(*build, host, display, environment).await,
        Task::Check(check) => self::check(*check, host, display, environment).await,
        Task::Plan(plan) => self::plan(*plan, host, display, environment).await,
        Task::Transfer(transfer) => self::transfer(*transfer, host, display, environment).await,
        Task::Doctor(doctor) => {
            let registry = registry(doctor.registry, environment)?;
            crate::doctor::doctor(&host, doctor.json, registry, &doctor.references).await
        }
        Task::CacheDu { state_directory } => disk_usage(&state_directory).await,
        Task::CachePrune { state_directory } => prune(&state_directory).await,
    }
}

async fn build(
    build: Build,
    host: Arc<Host>,
    display: &Arc<dyn Display>,
    environment: &Environment,
) -> anyhow::Result<()> {
    for path in [&build.iidfile, &build.metadata_file].into_iter().flatten() {
        outputs::remove_stale(path)?;
    }
    let services = Services {
        reporter: display.clone(),
        registry: registry(build.registry, environment)?,
        cancel: signals::listen().context("listen for signals")?,
        host,
    };
    if build.request.outputs.is_empty() {
        display.report(Event::Warning(stays_here()));
    }
    let result = engine::build(build.request, services).await?;
    if let Some(path) = &build.iidfile {
        outputs::write_iidfile(path, &result)?;
    }
    if let Some(path) = &build.metadata_file {
        outputs::write_metadata(path, &result)?;
    }
    print_result(&result, build.stdout_taken)
}

async fn preflight(
    build: Build,
    host: Arc<Host>,
    display: &Arc<dyn Display>,
    environment: &Environment,
) -> anyhow::Result<()> {
    let services = Services {
        reporter: display.clone(),
        registry: registry(build.registry, environment)?,
        cancel: signals::listen().context("listen for signals")?,
        host,
    };
    Ok(engine::preflight(build.request, services).await?)
}

async fn transfer(
    transfer: Transfer,
    host: Arc<Host>,
    display: &Arc<dyn Display>,
    environment: &Environment,
) -> anyhow::Result<()> {
    if let Some(path) = &transfer.metadata_file {
        outputs::remove_stale(path)?;
    }
    let services = Services {
        reporter: display.clone(),
        registry: registry(transfer.registry, environment)?,
        cancel: signals::listen().context("listen for signals")?,
        host,
    };
    let done = engine::transfer(transfer.what, services).await?;
    if let Some(path) = &transfer.metadata_file {
        outputs::write_transfer_metadata(path, &done)?;
    }
    outputs::print_line(&done.digest.to_string())
}

async fn check(
    check: Check,
    host: Arc<Host>,
    display: &Arc<dyn Display>,
    environment: &Environment,
) -> anyhow::Result<()> {
    // A check leaves nothing to undo: a signal ends it as it ends any program.
    let (_, cancel) = tokio::sync::watch::channel(None);
    let services = Services {
        reporter: display.clone(),
        registry: registry(check.registry, environment)?,
        cancel,
        host,
    };
    if !check.request.platforms.is_empty() {
        display.report(Event::Warning(platform_is_the_hosts()));
    }
    let style = render::stdout_style(environment);
    crate::check::check(&check.request, check.format, style, services).await
}

async fn plan(
    plan: Plan,
    host: Arc<Host>,
    display: &Arc<dyn Display>,
    environment: &Environment,
) -> anyhow::Result<()> {
    let mut bases = BaseConfigs::default();
    for (name, path) in &plan.base_configs {
        let named = |error: Error| error.context(format!("--base-config {}", path.display()));
        let bytes = read_base_config(path).map_err(named)?;
        bases.insert(name, &bytes).map_err(named)?;
    }
    // A plan leaves nothing to undo either.
    let (_, cancel) = tokio::sync::watch::channel(None);
    let services = Services {
        reporter: display.clone(),
        registry: registry(plan.registry, environment)?,
        cancel,
        host,
    };
    let style = render::stdout_style(environment);
    crate::plan::plan(&plan.request, &bases, plan.format, style, services).await
}

fn read_base_config(path: &Path) -> Result<Vec<u8>, Error> {
    let wrong = |error: io::Error| Error::from_cause(Class::Usage, error);
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(wrong)?;
    file.take(BASE_CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(wrong)?;
    if bytes.len() as u64 > BASE_CONFIG_BYTES_MAX {
        return Err(wrong(io::Error::other("it is too large")));
    }
    Ok(bytes)
}

/// BuildKit's check does not look at the platform either.
fn platform_is_the_hosts() -> Warning {
    Warning {
        message: "checks are made for this host's platform, whatever --platform says".into(),
        location: None,
        hint: None,
    }
}

fn print_result(result: &BuildResult, stdout_taken: bool) -> anyhow::Result<()> {
    if stdout_taken { Ok(()) } else { outputs::print_digest(result) }
}

fn stays_here() -> Warning {
    Warning {
        message: "the image stays in bareboat's state directory, because no output was asked for".into(),
        location: None,
        hint: Some(
            "--push pushes it to the names of -t, -o type=oci,dest=DIR,tar=false writes it to a directory, -o DIR its files".into(),
        ),
    }
}

fn registry(options: RegistryOptions, environment: &Environment) -> anyhow::Result<Registry> {
    let path = environment.get("PATH").map(|path| std::env::split_paths(path).collect());
    let roots = trust::roots(&options.ca_files, environment)?;
    Ok(Registry {
        identities: identity::identities(&options, &roots)?,
        tls: trust::tls(roots)?,
        mirrors: options.mirrors,
        http_proxy: options.proxies.http,
        https_proxy: options.proxies.https,
        no_proxy: options.proxies.no_proxy,
        insecure: options.insecure,
        credentials: credentials::read(&options.credentials)?,
        helper_path: path.unwrap_or_default(),
        helper_environment: environment.variables.clone().into_iter().collect(),
        skip_immutable: options.skip_immutable,
        #[cfg(feature = "aws")]
        aws: crate::aws::Aws { options: options.aws, variables: aws_variables(environment) },
    })
}

/// What AWS's own tools would read; none of their variables has a value that is no text.
#[cfg(feature = "aws")]
fn aws_variables(environment: &Environment) -> bareboat_ecr::Variables {
    let texts = environment
        .variables
        .iter()
        .filter_map(|(name, value)| Some((name.to_str()?.to_owned(), value.to_str()?.to_owned())));
    bareboat_ecr::Variables::new(texts)
}

async fn disk_usage(state_directory: &Path) -> anyhow::Result<()> {
    let parts = engine::disk_usage(state_directory).await?;
    for part in &parts {
        outputs::print_line(&format!("{:12} {}", part.name, render::bytes(part.bytes)))?;
    }
    let total = parts.iter().map(|part| part.bytes).sum();
    outputs::print_line(&format!("{:12} {}", "total", render::bytes(total)))
}

async fn prune(state_directory: &Path) -> anyhow::Result<()> {
    let freed = engine::prune(state_directory).await?;
    outputs::print_line(&format!("{} freed", render::bytes(freed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warning_names_both_flags() {
        let hint = stays_here().hint.unwrap();
        assert!(hint.contains("--push") && hint.contains("-o "), "{hint}");
    }
}
