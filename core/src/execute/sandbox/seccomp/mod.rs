//! Docker's default seccomp profile, compiled for a step's 14 capabilities.

mod bpf;
mod numbers;
mod profile;

use std::collections::BTreeMap;

use self::{
    bpf::{Segment, Table, Verdict},
    numbers::{Abi, number},
    profile::{Action, Argument, Profile, Rule, Situation},
};
use super::{SandboxError, capabilities};
use crate::sys::seccomp::Instruction;

const ENOSYS: u32 = libc::ENOSYS as u32;

/// Marks the numbers of x32 calls, which share x86_64's audit architecture.
const X32_BIT: u32 = 0x4000_0000;

/// An architecture with those whose programs its kernel runs too.
struct Family {
    /// Go's name.
    name: &'static str,
    members: &'static [Member],
}

struct Member {
    audit_architecture: u32,
    /// Tables of numbers, each added to its offset.
    abis: &'static [(Abi, u32)],
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
const AMD64: Family = Family {
    name: "amd64",
    members: &[
        Member { audit_architecture: 0xc000_003e, abis: &[(Abi::X86_64, 0), (Abi::X32, X32_BIT)] },
        Member { audit_architecture: 0x4000_0003, abis: &[(Abi::X86, 0)] },
    ],
};

#[cfg_attr(not(target_arch = "aarch64"), allow(dead_code))]
const ARM64: Family = Family {
    name: "arm64",
    members: &[
        Member { audit_architecture: 0xc000_00b7, abis: &[(Abi::Aarch64, 0)] },
        Member { audit_architecture: 0x4000_0028, abis: &[(Abi::Arm, 0)] },
    ],
};

#[cfg(target_arch = "x86_64")]
const HOST: &Family = &AMD64;
#[cfg(target_arch = "aarch64")]
const HOST: &Family = &ARM64;

/// The filter of a step on this machine.
pub(super) fn step_filter() -> Result<Vec<Instruction>, SandboxError> {
    let release = rustix::system::uname();
    compile(HOST, profile::version(&release.release().to_string_lossy()))
}

fn compile(family: &Family, kernel: (u32, u32)) -> Result<Vec<Instruction>, SandboxError> {
    let profile = Profile::docker_default()?;
    let situation = Situation {
        architecture: family.name,
        capabilities: &capabilities::DEFAULT.map(|(name, _)| name),
        kernel,
    };
    let rules = profile.rules(&situation)?;
    let default = profile.default_action();
    let tables: Vec<_> =
        family.members.iter().map(|member| table(member, &rules, default)).collect();
    Ok(bpf::assemble(&tables))
}

fn table(member: &Member, rules: &[Rule], default: Action) -> Table {
    let mut segments = Vec::new();
    for (abi, offset) in member.abis {
        segments.extend(segments_of(*abi, *offset, rules, default));
    }
    // Neighbours with the same verdict are one.
    segments.dedup_by(|next, previous| next.verdict == previous.verdict);
    Table { audit_architecture: member.audit_architecture, segments }
}

/// The numbers of one table: what rules name, the default between, and ENOSYS beyond the last one. A kernel newer than
/// the profile has calls that it does not know; programs fall back on ENOSYS, and break on EPERM.
fn segments_of(abi: Abi, offset: u32, rules: &[Rule], default: Action) -> Vec<Segment> {
    let verdicts = verdicts_of(abi, rules, default);
    let mut segments = vec![Segment { from: offset, verdict: Verdict::plain(default) }];
    let mut next = 0;
    for (number, verdict) in verdicts {
        if number > next {
            segments.push(Segment { from: offset + next, verdict: Verdict::plain(default) });
        }
        segments.push(Segment { from: offset + number, verdict });
        next = number + 1;
    }
    let unknown = Verdict::plain(Action::Errno(ENOSYS));
    segments.push(Segment { from: offset + next, verdict: unknown });
    // A later segment that begins at the same number replaces the earlier one.
    segments.reverse();
    segments.dedup_by_key(|segment| segment.from);
    segments.reverse();
    segments
}

fn verdicts_of(abi: Abi, rules: &[Rule], default: Action) -> BTreeMap<u32, Verdict> {
    let mut verdicts: BTreeMap<u32, Verdict> = BTreeMap::new();
    for rule in rules {
        let Some(number) = number(&rule.name, abi) else { continue };
        let verdict = verdicts.entry(number).or_insert_with(|| Verdict::plain(default));
        add(verdict, &rule.arguments, rule.action);
    }
    verdicts
}

/// An unconditional rule makes the conditional ones moot.
fn add(verdict: &mut Verdict, arguments: &[Argument], action: Action) {
    if arguments.is_empty() {
        *verdict = Verdict::plain(action);
    } else if verdict.otherwise != Action::Allow {
        verdict.rules.push((arguments.to_vec(), action));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::{profile::Comparison, *};

    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    const EPERM: u32 = ERRNO | libc::EPERM as u32;
    const NO_SUCH_CALL: u32 = ERRNO | ENOSYS;
    const KERNEL: (u32, u32) = (6, 1);

    fn data(architecture: u32, number: u32, arguments: &[u64]) -> [u32; 16] {
        let mut data = [0; 16];
        data[0] = number;
        data[1] = architecture;
        for (i, argument) in arguments.iter().enumerate() {
            data[4 + 2 * i] = *argument as u32;
            data[5 + 2 * i] = (*argument >> 32) as u32;
        }
        data
    }

    fn call(architecture: u32, number: u32, arguments: &[u64]) -> u32 {
        static PROGRAMS: LazyLock<[Vec<Instruction>; 2]> =
            LazyLock::new(|| [&AMD64, &ARM64].map(|family| compile(family, KERNEL).unwrap()));
        let intel = AMD64.members.iter().any(|member| member.audit_architecture == architecture);
        let program = &PROGRAMS[usize::from(!intel)];
        bpf::interpret(program, &data(architecture, number, arguments))
    }

    fn named(name: &str, arguments: &[u64]) -> u32 {
        call(0xc000_003e, number(name, Abi::X86_64).unwrap(), arguments)
    }

    #[test]
    fn every_name_of_the_profile_is_in_the_table() {
        for name in Profile::docker_default().unwrap().names() {
            assert!(numbers::is_known(name), "{name}");
        }
    }

    #[test]
    fn numbers_are_this_kernels() {
        for (name, known) in [
            ("read", libc::SYS_read),
            ("openat2", libc::SYS_openat2),
            ("mseal", libc::SYS_mseal),
            ("clone3", libc::SYS_clone3),
            ("socket", libc::SYS_socket),
            ("fchmodat2", libc::SYS_fchmodat2),
        ] {
            assert_eq!(
                i64::from(number(name, HOST.members[0].abis[0].0).unwrap()),
                known,
                "{name}"
            );
        }
    }

    #[test]
    fn what_a_step_may_and_may_not() {
        for name in ["read", "execve", "ptrace", "chroot", "mknod", "arch_prctl", "setxattr"] {
            assert_eq!(named(name, &[]), ALLOW, "{name}");
        }
        for name in ["mount", "umount2", "unshare", "setns", "bpf", "syslog", "open_by_handle_at"] {
            assert_eq!(named(name, &[]), EPERM, "{name}");
        }
        // pivot_root, kexec_load and keyctl, which no rule names.
        for number in [155, 246, 250] {
            assert_eq!(call(0xc000_003e, number, &[]), EPERM, "{number}");
        }
        assert_eq!(named("clone3", &[]), NO_SUCH_CALL);
    }

    #[test]
    fn conditions_on_arguments() {
        let new_user = libc::CLONE_NEWUSER as u64;
        assert_eq!(named("clone", &[libc::SIGCHLD as u64]), ALLOW);
        assert_eq!(named("clone", &[new_user]), EPERM);
        assert_eq!(named("clone", &[new_user | 0x11]), EPERM);
        for (family, result) in
            [(1, ALLOW), (37, ALLOW), (38, EPERM), (39, ALLOW), (40, EPERM), (41, ALLOW)]
        {
            assert_eq!(named("socket", &[family]), result, "family {family}");
        }
        assert_eq!(named("socket", &[1 << 32]), ALLOW);
        for (persona, result) in [
            (0, ALLOW),
            (8, ALLOW),
            (0x20000, ALLOW),
            (0x20008, ALLOW),
            (0xffff_ffff, ALLOW),
            (4, EPERM),
        ] {
            assert_eq!(named("personality", &[persona]), result, "personality {persona:#x}");
        }
        assert_eq!(named("personality", &[1 << 32]), EPERM);
    }

    #[test]
    fn other_architectures_of_the_same_kernel() {
        let i386 = 0x4000_0003;
        assert_eq!(call(i386, number("read", Abi::X86).unwrap(), &[]), ALLOW);
        assert_eq!(call(i386, 21, &[]), EPERM, "mount");
        assert_eq!(call(i386, number("clone3", Abi::X86).unwrap(), &[]), NO_SUCH_CALL);
        assert_eq!(call(0xc000_003e, X32_BIT, &[]), ALLOW, "x32 read");
        assert_eq!(call(0xc000_003e, X32_BIT | 520, &[]), ALLOW, "x32 execve");
        assert_eq!(call(0xc000_003e, X32_BIT | 165, &[]), EPERM, "x32 mount");
        assert_eq!(call(0xc000_00b7, 63, &[]), ALLOW, "aarch64 read");
        assert_eq!(call(0xc000_00b7, 40, &[]), EPERM, "aarch64 mount");
        assert_eq!(call(0x4000_0028, 0x000f_0002, &[]), ALLOW, "arm cacheflush");
        assert_eq!(call(0x8000_0015, 0, &[]), 0x8000_0000, "ppc64");
    }

    #[test]
    fn calls_newer_than_the_profile_do_not_exist() {
        assert_eq!(call(0xc000_003e, 466, &[]), ALLOW, "removexattrat");
        assert_eq!(call(0xc000_003e, 467, &[]), NO_SUCH_CALL);
        assert_eq!(call(0xc000_003e, X32_BIT - 1, &[]), NO_SUCH_CALL);
        assert_eq!(call(0xc000_003e, u32::MAX, &[]), NO_SUCH_CALL);
    }

    /// The search and the jumps against a plain reading of the rules, for every number.
    #[test]
    fn the_program_says_what_the_rules_say() {
        for family in [&AMD64, &ARM64] {
            let profile = Profile::docker_default().unwrap();
            let names = capabilities::DEFAULT.map(|(name, _)| name);
            let situation =
                Situation { architecture: family.name, capabilities: &names, kernel: KERNEL };
            let rules = profile.rules(&situation).unwrap();
            let program = compile(family, KERNEL).unwrap();
            assert!(program.len() < 4096);
            for member in family.members {
                for (abi, offset) in member.abis {
                    let verdicts = verdicts_of(*abi, &rules, profile.default_action());
                    let last = *verdicts.keys().last().unwrap();
                    for number in 0..600 {
                        for argument in [0, 1, 8, 38, 40, 0x10000, 0x7e02_0000, u64::MAX] {
                            let input =
                                data(member.audit_architecture, offset + number, &[argument; 6]);
                            let expected = plain(verdicts.get(&number), argument, number > last);
                            assert_eq!(
                                bpf::interpret(&program, &input),
                                expected,
                                "{abi:?} {number}"
                            );
                        }
                    }
                }
            }
        }
    }

    fn plain(verdict: Option<&Verdict>, argument: u64, unknown: bool) -> u32 {
        let action = match verdict {
            None if unknown => Action::Errno(ENOSYS),
            None => Action::Errno(1),
            Some(verdict) => {
                let met = verdict
                    .rules
                    .iter()
                    .find(|rule| rule.0.iter().all(|test| meets(test, argument)));
                met.map_or(verdict.otherwise, |rule| rule.1)
            }
        };
        match action {
            Action::Allow => ALLOW,
            Action::Errno(errno) => ERRNO | errno,
        }
    }

    fn meets(test: &Argument, value: u64) -> bool {
        match test.comparison {
            Comparison::Equal => value == test.value,
            Comparison::NotEqual => value != test.value,
            Comparison::Less => value < test.value,
            Comparison::LessOrEqual => value <= test.value,
            Comparison::Greater => value > test.value,
            Comparison::GreaterOrEqual => value >= test.value,
            Comparison::MaskedEqual(mask) => value & mask == test.value,
        }
    }

    #[test]
    fn every_comparison_on_both_halves() {
        use Comparison::*;
        let values = [0, 1, 5, 6, 7, 1 << 32, (1 << 32) + 6, 6 << 32, u64::MAX];
        for comparison in [
            Equal,
            NotEqual,
            Less,
            LessOrEqual,
            Greater,
            GreaterOrEqual,
            MaskedEqual(0xf_0000_000f),
        ] {
            for wanted in values {
                let test = Argument { index: 2, comparison, value: wanted };
                let rules = vec![(vec![test], Action::Allow)];
                let verdict = Verdict { rules, otherwise: Action::Errno(1) };
                let segments = vec![Segment { from: 0, verdict }];
                let program = bpf::assemble(&[Table { audit_architecture: 1, segments }]);
                for given in values {
                    let result = bpf::interpret(&program, &data(1, 0, &[9, 9, given]));
                    assert_eq!(
                        result == ALLOW,
                        meets(&test, given),
                        "{given} {comparison:?} {wanted}"
                    );
                }
            }
        }
    }
}
