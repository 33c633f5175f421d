//! Steps that really run, as root, on a root of Debian's static busybox. It has its own `main` because a helper is this
//! program once more.

mod bench;
mod container;
mod ending;
mod mounts;
mod namespace;
mod process;
mod refusals;
mod surroundings;
mod swap;
mod traces;

use std::{path::Path, process::ExitCode};

use bareboat_core::execute::sandbox::helper_main;

use self::{
    ending::*, mounts::*, namespace::*, process::*, refusals::*, surroundings::*, swap::*,
    traces::*,
};

fn main() -> ExitCode {
    helper_main();
    // As a builder with secrets does.
    bareboat_core::sys::process::set_nondumpable().unwrap();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["swap-builder-to-kill", mark, cache] => return swap_builder_to_kill(mark, cache),
        ["print-user"] => {
            let (real, effective) = (rustix::process::getuid(), rustix::process::geteuid());
            println!("{} {}", real.as_raw(), effective.as_raw());
            return ExitCode::SUCCESS;
        }
        ["print-directory"] => {
            let directory = std::env::current_dir().unwrap();
            println!("{} {}", directory.display(), Path::new("/job-made").exists());
            return ExitCode::SUCCESS;
        }
        ["in-container", ..] => return container::enter(&arguments[1..], CASES),
        _ => {}
    }
    if let [mode, directory, mark] = arguments.as_slice()
        && mode == "builder-to-kill"
    {
        return builder_to_kill(Path::new(directory), mark);
    }
    if arguments.first().is_some_and(|mode| mode == "behind-a-filter") {
        refuse_newer_calls();
        return run_cases(&arguments[1..]);
    }
    if arguments.first().is_some_and(|mode| mode == IN_A_NAMESPACE) {
        enter_a_namespace();
        return run_cases(&arguments[1..]);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        CASES.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    run_cases(&arguments)
}

fn run_cases(arguments: &[String]) -> ExitCode {
    let filters: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    // The other rung has no use for a user namespace.
    let here = |name: &str| !(is_in_a_namespace() && name.starts_with("swap_"));
    let chosen = CASES.iter().filter(|(name, _)| here(name)).filter(|(name, _)| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    });
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in chosen {
        let result = std::panic::catch_unwind(case);
        println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        passed += u32::from(result.is_ok());
        failed += u32::from(result.is_err());
    }
    bench::remove_base();
    println!("{passed} passed, {failed} failed");
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        const CASES: &[(&str, fn())] = &[$((stringify!($name), $name)),*];
    };
}

cases![
    exit_codes_and_signals,
    output_of_both_streams_in_full,
    the_environment_is_what_was_given,
    the_process_is_as_docker_makes_it,
    capabilities_and_seccomp,
    a_user_has_no_capabilities_and_owns_its_streams,
    proc_is_masked_and_sys_read_only,
    devices,
    host_name_and_network_files,
    no_network_has_only_loopback,
    nothing_is_left_of_mount_points,
    a_bare_base_gets_its_three_directories,
    from_scratch_runs_too,
    the_upper_directory_is_exactly_the_change,
    many_layers,
    times_and_attributes_of_directories_survive,
    hostile_links_stay_inside,
    mounts_of_every_kind,
    mounts_in_mounts,
    mounts_that_are_refused,
    a_bind_source_stays_in_its_root,
    leftover_processes_die,
    a_daemon_that_holds_the_output_does_not_hang,
    cancel_kills_at_once,
    a_dropped_future_kills_too,
    a_killed_builder_leaves_nothing,
    a_killed_helper_takes_the_step_along,
    programs_that_can_not_be_executed,
    magic_links_lead_nowhere,
    limits,
    many_steps_at_once,
    the_state_on_an_overlay_is_refused,
    the_probe_says_yes_here,
    an_older_kernel_behind_dockers_filter_will_do,
    the_box_works_in_a_user_namespace,
    a_machine_is_not_probed_before_it_is_needed,
    a_probe_of_everything_leaves_nothing,
    layers_are_whole_in_a_user_namespace,
    processes_can_be_shared,
    swap_runs_a_step_and_gives_the_root_back,
    swap_exits_outputs_and_surroundings,
    swap_refuses_what_it_can_not,
    swap_ends_what_is_left_running,
    swap_cancel_gives_the_root_back,
    swap_survives_a_killed_builder,
    swap_survives_a_killed_keeper,
    swap_repairs_what_a_killed_pair_left,
    swap_survives_a_keeper_killed_at_any_time,
    swap_hides_the_builder,
    swap_hides_the_builder_without_setpcap,
    swap_lets_set_uid_programs_gain,
    swap_mounts_of_every_kind,
    swap_mounts_in_mounts,
    swap_outlives_a_step_that_removes_everything,
    swap_keeps_volumes_apart,
    swap_adds_hosts_for_the_step_only,
    swap_works_from_a_private_root,
    swap_private_root_keeps_names_by_descriptor_good,
    swap_private_root_says_what_it_lacks,
];
