//! Installing a seccomp filter.

use std::io;

/// One instruction of a filter (`struct sock_filter`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    /// Instructions to skip where the condition holds.
    pub yes: u8,
    /// Instructions to skip where it does not.
    pub no: u8,
    pub value: u32,
}

/// Puts a filter on this process and its future children, for good. Without no_new_privs the caller needs
/// CAP_SYS_ADMIN. Speculation is left as it is for everybody else (`SPEC_ALLOW`), where the kernel knows that flag.
pub fn install_filter(program: &[Instruction]) -> io::Result<()> {
    match install(program, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as libc::c_ulong) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => install(program, 0),
        result => result,
    }
}

fn install(program: &[Instruction], flags: libc::c_ulong) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // `Instruction` has the layout of `sock_filter`.
    let filter = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel copies `len` instructions from a slice that is that long, and writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER as libc::c_ulong,
            flags,
            &filter,
        )
    };
    super::process::check(result)
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_instruction_is_laid_out_as_the_kernels() {
        assert_eq!(size_of::<super::Instruction>(), size_of::<libc::sock_filter>());
        assert_eq!(std::mem::offset_of!(super::Instruction, value), 4);
    }
}
