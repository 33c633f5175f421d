//! Every cap of the parser and of word expansion. BuildKit has only the first of them; the others keep a hostile
//! Dockerfile from taking more than bounded memory and time, and lie far above what people write.

/// Bytes of one physical line, its newline aside (the limit of BuildKit's scanner).
pub const LINE_BYTES_MAX: usize = 65_535;
/// Bytes of a whole Dockerfile.
pub const DOCKERFILE_BYTES_MAX: usize = 16 << 20;
/// Bytes of one instruction, continuations joined and here-documents aside. The kernel takes 128 KiB of a RUN anyway.
pub const INSTRUCTION_BYTES_MAX: usize = 1 << 20;
/// Arguments of all instructions of a Dockerfile.
pub const ARGUMENTS_MAX: usize = 1_000_000;
/// Instructions of a Dockerfile, FROM included.
pub const INSTRUCTIONS_MAX: usize = 100_000;
/// Stages of a Dockerfile.
pub const STAGES_MAX: usize = 10_000;
/// Diagnostics told of one file.
pub const ERRORS_MAX: usize = 100;
/// Bytes that one word may expand to: `ARG A=$A$A` doubles at each line.
pub const WORD_BYTES_MAX: usize = 1 << 20;
/// Braces within braces: each level is a level of the call stack.
pub const WORD_DEPTH_MAX: usize = 100;
/// Bytes of variables read, and steps of patterns taken, for one word.
pub const WORD_WORK_MAX: usize = 64 << 20;
/// Bytes of one pattern of `#`, `%` or `/`.
pub const PATTERN_BYTES_MAX: usize = 4096;
/// What compiling a pattern counts for in [`WORD_WORK_MAX`], beside its length times the value's.
pub const PATTERN_WORK: usize = 16 << 10;
