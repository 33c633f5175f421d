//! Names of signals, as STOPSIGNAL takes them.

use thiserror::Error;

#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("invalid signal: {0}")]
pub struct SignalError(pub String);

/// Linux's names, without `SIG` and without the real-time ones.
const NAMES: &[&str] = &[
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
    "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
];

/// How far the names count up from RTMIN and down from RTMAX.
const ABOVE_RTMIN: u32 = 15;
const BELOW_RTMAX: u32 = 14;

/// Whether `signal` (a STOPSIGNAL's value, expanded) names one: any number but 0, or a name with or without `SIG` in
/// any case. The config keeps it as written.
pub fn validate(signal: &str) -> Result<(), SignalError> {
    let known = match signal.parse::<i64>() {
        Ok(number) => number != 0,
        Err(_) => is_name(signal),
    };
    if known { Ok(()) } else { Err(SignalError(signal.to_owned())) }
}

fn is_name(signal: &str) -> bool {
    let upper = signal.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |prefix: &str, sign: char, max: u32| {
        let digits = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(sign));
        digits.is_some_and(|digits| {
            !digits.starts_with('0')
                && digits.parse::<u32>().is_ok_and(|n| (1..=max).contains(&n))
                && digits.bytes().all(|b| b.is_ascii_digit())
        })
    };
    NAMES.contains(&name)
        || name == "RTMIN"
        || name == "RTMAX"
        || offset("RTMIN", '+', ABOVE_RTMIN)
        || offset("RTMAX", '-', BELOW_RTMAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for signal in
            ["9", "999", "-1", "SIGTERM", "term", "Sigkill", "RTMIN", "SIGRTMIN+15", "rtmax-14"]
        {
            assert_eq!(validate(signal), Ok(()), "{signal}");
        }
        for signal in [
            "0",
            "",
            "SIG",
            "SIGWHAT",
            "1 2",
            "RTMIN+16",
            "RTMIN+0",
            "RTMAX-15",
            "RTMIN+01",
            "SIGSIGTERM",
        ] {
            assert!(validate(signal).is_err(), "{signal}");
        }
    }
}
