//! The only room for `unsafe` and raw system calls.
#![allow(unsafe_code)]
