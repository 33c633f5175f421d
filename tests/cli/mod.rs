//! The command line: exit codes, error frames, outputs.

mod failures;
mod outputs;
