//! An assembler for seccomp filters: sorted call numbers become a binary search, conditions on arguments become
//! comparisons of 32-bit halves (seccomp(2), `struct seccomp_data`).

use super::profile::{Action, Argument, Comparison};
use crate::sys::seccomp::Instruction;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_GREATER_OR_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const RETURN_ALLOW: u32 = 0x7fff_0000;
const RETURN_ERRNO: u32 = 0x0005_0000;
const RETURN_KILL_PROCESS: u32 = 0x8000_0000;

const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

/// What happens to one call number: the first rule whose conditions are met decides, else `otherwise`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub rules: Vec<(Vec<Argument>, Action)>,
    pub otherwise: Action,
}

impl Verdict {
    pub fn plain(action: Action) -> Self {
        Verdict { rules: Vec::new(), otherwise: action }
    }
}

/// A verdict for all numbers from `from` to the next segment's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub from: u32,
    pub verdict: Verdict,
}

/// The segments of one audit architecture; the first begins at 0.
pub(super) struct Table {
    pub audit_architecture: u32,
    pub segments: Vec<Segment>,
}

/// A whole filter. A call from an architecture that has no table kills the process.
pub(super) fn assemble(tables: &[Table]) -> Vec<Instruction> {
    let mut code = vec![instruction(LOAD, OFFSET_ARCHITECTURE)];
    for table in tables {
        let mut body = vec![instruction(LOAD, OFFSET_NUMBER)];
        body.extend(search(&table.segments));
        code.push(jump(JUMP_EQUAL, table.audit_architecture, 1, 0));
        code.push(instruction(JUMP, body.len() as u32));
        code.extend(body);
    }
    code.push(instruction(RETURN, RETURN_KILL_PROCESS));
    code
}

/// A binary search over the number, which is loaded.
fn search(segments: &[Segment]) -> Vec<Instruction> {
    match segments {
        [] => Vec::new(),
        [only] => verdict(&only.verdict),
        _ => {
            let (low, high) = segments.split_at(segments.len() / 2);
            let below = search(low);
            // Conditional jumps reach 255 instructions; the long way is an unconditional one.
            let mut code = match u8::try_from(below.len()) {
                Ok(length) => vec![jump(JUMP_GREATER_OR_EQUAL, high[0].from, length, 0)],
                Err(_) => vec![
                    jump(JUMP_GREATER_OR_EQUAL, high[0].from, 0, 1),
                    instruction(JUMP, below.len() as u32),
                ],
            };
            code.extend(below);
            code.extend(search(high));
            code
        }
    }
}

fn verdict(verdict: &Verdict) -> Vec<Instruction> {
    let mut code = Vec::new();
    for (arguments, action) in &verdict.rules {
        code.extend(rule(arguments, *action));
    }
    code.push(give(verdict.otherwise));
    code
}

fn give(action: Action) -> Instruction {
    match action {
        Action::Allow => instruction(RETURN, RETURN_ALLOW),
        Action::Errno(errno) => instruction(RETURN, RETURN_ERRNO | (errno & 0xffff)),
    }
}

/// All tests one after the other, then the action; a failed test goes behind it.
fn rule(arguments: &[Argument], action: Action) -> Vec<Instruction> {
    let tests: Vec<Vec<Test>> = arguments.iter().map(tests_of).collect();
    let length: usize = tests.iter().map(Vec::len).sum();
    let mut code = Vec::with_capacity(length + 1);
    for test in tests {
        let end = code.len() + test.len();
        for step in test {
            let here = code.len() + 1;
            let target = |to: To| match to {
                To::Next => 0,
                To::Pass => (end - here) as u8,
                To::Fail => (length + 1 - here) as u8,
            };
            code.push(match step {
                Test::Do(instruction) => instruction,
                Test::Jump(operation, value, yes, no) => {
                    jump(operation, value, target(yes), target(no))
                }
            });
        }
    }
    code.push(give(action));
    code
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    Pass,
    Fail,
}

enum Test {
    Do(Instruction),
    Jump(u16, u32, To, To),
}

/// The comparison of one 64-bit argument, as steps on its halves.
fn tests_of(argument: &Argument) -> Vec<Test> {
    use Comparison::*;
    let (pass, fail) = match argument.comparison {
        NotEqual | Less | LessOrEqual => (To::Fail, To::Pass),
        _ => (To::Pass, To::Fail),
    };
    match argument.comparison {
        Equal | NotEqual => equal(argument, u64::MAX, pass, fail),
        MaskedEqual(mask) => equal(argument, mask, pass, fail),
        Greater | LessOrEqual => ordered(argument, JUMP_GREATER, pass, fail),
        GreaterOrEqual | Less => ordered(argument, JUMP_GREATER_OR_EQUAL, pass, fail),
    }
}

fn equal(argument: &Argument, mask: u64, pass: To, fail: To) -> Vec<Test> {
    let (value, mask) = (halves(argument.value), halves(mask));
    vec![
        load_high(argument),
        Test::Do(instruction(AND, mask.0)),
        Test::Jump(JUMP_EQUAL, value.0, To::Next, fail),
        load_low(argument),
        Test::Do(instruction(AND, mask.1)),
        Test::Jump(JUMP_EQUAL, value.1, pass, fail),
    ]
}

fn ordered(argument: &Argument, low_operation: u16, pass: To, fail: To) -> Vec<Test> {
    let value = halves(argument.value);
    vec![
        load_high(argument),
        Test::Jump(JUMP_GREATER, value.0, pass, To::Next),
        Test::Jump(JUMP_EQUAL, value.0, To::Next, fail),
        load_low(argument),
        Test::Jump(low_operation, value.1, pass, fail),
    ]
}

fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}

/// Both supported architectures are little-endian: the low half comes first.
fn load_low(argument: &Argument) -> Test {
    Test::Do(instruction(LOAD, OFFSET_ARGUMENTS + 8 * argument.index as u32))
}

fn load_high(argument: &Argument) -> Test {
    Test::Do(instruction(LOAD, OFFSET_ARGUMENTS + 8 * argument.index as u32 + 4))
}

fn instruction(code: u16, value: u32) -> Instruction {
    Instruction { code, yes: 0, no: 0, value }
}

fn jump(code: u16, value: u32, yes: u8, no: u8) -> Instruction {
    Instruction { code, yes, no, value }
}

/// Runs a filter as the kernel does, for tests.
#[cfg(test)]
pub(super) fn interpret(program: &[Instruction], data: &[u32; 16]) -> u32 {
    let (mut accumulator, mut at) = (0_u32, 0_usize);
    loop {
        let step = &program[at];
        at += 1;
        let branch = |taken: bool| usize::from(if taken { step.yes } else { step.no });
        match step.code {
            LOAD => accumulator = data[step.value as usize / 4],
            AND => accumulator &= step.value,
            JUMP => at += step.value as usize,
            JUMP_EQUAL => at += branch(accumulator == step.value),
            JUMP_GREATER => at += branch(accumulator > step.value),
            JUMP_GREATER_OR_EQUAL => at += branch(accumulator >= step.value),
            RETURN => return step.value,
            other => panic!("instruction {other:#x}"),
        }
    }
}
