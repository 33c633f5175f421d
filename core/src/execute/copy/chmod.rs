//! `--chmod`: octal, or symbolic as BSD's chmod(1) has it, which is what BuildKit's parser follows.

const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
/// All but the sticky bit.
const STANDARD: u32 = 0o6777;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChmodError {
    #[error("invalid chmod parameter: '{0}'. it should be octal string and between 0 and 07777")]
    Octal(String),
    #[error("invalid chmod parameter: '{0}' is neither an octal nor a symbolic mode")]
    Symbolic(String),
}

/// A parsed `--chmod`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chmod {
    /// All 12 bits.
    Octal(u32),
    Symbolic(Vec<Clause>),
}

/// One operation of a symbolic mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clause {
    Set(u32),
    Clear(u32),
    /// Sets bits of directories and of what somebody may execute already.
    SetIfExecutable(u32),
    /// Copies the permissions that one class (its shift) has now to others.
    CopyClass {
        from: u32,
        to: Vec<u32>,
        operator: u8,
    },
}

impl Chmod {
    pub fn parse(text: &str) -> Result<Self, ChmodError> {
        let shown = || text.chars().take(100).collect::<String>();
        if text.starts_with(|first: char| first.is_ascii_digit()) {
            let octal = text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
            let mode = octal.then(|| u32::from_str_radix(text, 8).ok()).flatten();
            let mode = mode.filter(|mode| *mode <= 0o7777);
            return mode.map(Chmod::Octal).ok_or_else(|| ChmodError::Octal(shown()));
        }
        let clauses = parse_symbolic(text.as_bytes()).ok_or_else(|| ChmodError::Symbolic(shown()));
        clauses.map(Chmod::Symbolic)
    }

    /// The mode of something that had `mode`.
    pub fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        match self {
            Chmod::Octal(octal) => *octal,
            Chmod::Symbolic(clauses) => {
                let executable = is_directory || mode & 0o111 != 0;
                clauses.iter().fold(mode, |now, clause| clause.apply(now, executable))
            }
        }
    }

    /// The mode of directories made on the way, which only an octal one sets.
    pub fn directory_mode(&self) -> Option<u32> {
        match self {
            Chmod::Octal(octal) => Some(octal & 0o777),
            Chmod::Symbolic(_) => None,
        }
    }
}

impl Clause {
    fn apply(&self, mode: u32, executable: bool) -> u32 {
        match self {
            Clause::Set(bits) => mode | bits,
            Clause::Clear(bits) => mode & !bits,
            Clause::SetIfExecutable(bits) if executable => mode | bits,
            Clause::SetIfExecutable(_) => mode,
            Clause::CopyClass { from, to, operator } => {
                let value = mode >> from & 0o7;
                to.iter().fold(mode, |mode, shift| match operator {
                    b'+' => mode | value << shift,
                    b'-' => mode & !(value << shift),
                    _ => mode & !(0o7 << shift) | value << shift,
                })
            }
        }
    }
}

/// Clauses between commas: who, then one or more operators with their permissions.
fn parse_symbolic(text: &[u8]) -> Option<Vec<Clause>> {
    let mut clauses = Vec::new();
    let mut equal_done = false;
    for part in text.split(|byte| *byte == b',') {
        let who_length = part.iter().take_while(|byte| b"augo".contains(byte)).count();
        let mut who = part[..who_length].iter().fold(0, |who, class| who | class_bits(*class));
        let mut rest = &part[who_length..];
        if rest.is_empty() {
            return None;
        }
        while let Some((operator, after)) = rest.split_first() {
            if !b"+-=".contains(operator) {
                return None;
            }
            equal_done &= *operator != b'=';
            who &= !STICKY;
            let length = after.iter().take_while(|byte| b"rstwXxugo".contains(byte)).count();
            operation(*operator, &mut who, &after[..length], &mut equal_done, &mut clauses);
            rest = &after[length..];
        }
    }
    Some(clauses)
}

fn class_bits(class: u8) -> u32 {
    match class {
        b'a' => STANDARD,
        b'u' => SET_UID | 0o700,
        b'g' => SET_GID | 0o070,
        _ => 0o007,
    }
}

/// One operator's permissions. Copies from a class come in their place, the rest is collected up to them.
fn operation(
    operator: u8,
    who: &mut u32,
    permissions: &[u8],
    equal_done: &mut bool,
    clauses: &mut Vec<Clause>,
) {
    let (mut bits, mut if_executable) = (0, 0);
    for permission in permissions {
        match permission {
            b'r' => bits |= 0o444,
            b'w' => bits |= 0o222,
            b'X' if operator != b'-' => if_executable = 0o111,
            b'x' | b'X' => bits |= 0o111,
            b's' if *who == 0 || *who & !0o007 != 0 => bits |= SET_UID | SET_GID,
            b't' if *who == 0 || *who & !0o007 != 0 => {
                *who |= STICKY;
                bits |= STICKY;
            }
            class @ (b'u' | b'g' | b'o') => {
                push(operator, *who, std::mem::take(&mut bits), if_executable, clauses);
                if_executable = 0;
                *equal_done |= operator == b'=';
                clauses.push(copy_class(*class, *who, operator));
            }
            _ => {}
        }
    }
    if operator == b'=' && bits == 0 && !*equal_done {
        clauses.push(Clause::Clear(if *who == 0 { STANDARD } else { *who }));
    }
    *equal_done |= operator == b'=';
    push(operator, *who, bits, if_executable, clauses);
}

fn push(operator: u8, who: u32, bits: u32, if_executable: u32, clauses: &mut Vec<Clause>) {
    let mask = if who == 0 { !0 } else { who };
    match operator {
        _ if bits == 0 => {}
        b'+' => clauses.push(Clause::Set(bits & mask)),
        b'-' => clauses.push(Clause::Clear(bits & mask)),
        _ => {
            clauses.push(Clause::Clear(if who == 0 { STANDARD } else { who }));
            clauses.push(Clause::Set(bits & mask));
        }
    }
    if if_executable != 0 {
        clauses.push(Clause::SetIfExecutable(if_executable & mask));
    }
}

fn copy_class(from: u8, who: u32, operator: u8) -> Clause {
    let shift = |class: u8| match class {
        b'u' => 6,
        b'g' => 3,
        _ => 0,
    };
    let to = [6, 3, 0].into_iter().filter(|shift| who == 0 || who & 0o4 << shift != 0).collect();
    Clause::CopyClass { from: shift(from), to, operator }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn apply(text: &str, mode: u32) -> u32 {
        Chmod::parse(text).unwrap().apply(mode, false)
    }

    #[test]
    fn octal_modes_are_absolute() {
        for (text, mode) in [("640", 0o640), ("0755", 0o755), ("0", 0), ("7777", 0o7777)] {
            assert_eq!(apply(text, 0o4711), mode);
        }
        assert_eq!(Chmod::parse("4711").unwrap().directory_mode(), Some(0o711));
        for text in ["10000", "8", "0o755", "0x1", "7 ", "999999999999"] {
            assert!(matches!(Chmod::parse(text), Err(ChmodError::Octal(_))), "{text}");
        }
    }

    #[test]
    fn symbolic_modes_start_from_the_source() {
        for (text, mode, expected) in [
            ("u=rwX,go=rX", 0o644, 0o644),
            ("u=rwX,go=rX", 0o700, 0o755),
            ("+x", 0o644, 0o755),
            ("go-rwx,u+s", 0o644, 0o4600),
            ("g=u,o=", 0o600, 0o660),
            ("a+w", 0o700, 0o722),
            ("u-x", 0o755, 0o655),
            ("a-X", 0o755, 0o644),
            ("+t", 0o755, 0o1755),
            ("o+t", 0o755, 0o755),
            ("g+s", 0o755, 0o2755),
            ("o+s", 0o755, 0o755),
            ("=", 0o7755, 0o1000),
            ("=r", 0o4755, 0o444),
            ("u+rw-x", 0o100, 0o600),
            ("go=u-w", 0o640, 0o644),
            ("u=g", 0o4070, 0o4770),
            ("o+u", 0o640, 0o646),
            ("o-g", 0o666, 0o660),
            ("ug=rw,+X", 0o641, 0o771),
            ("a=", 0o777, 0),
        ] {
            assert_eq!(
                format!("{:o}", apply(text, mode)),
                format!("{expected:o}"),
                "{text} {mode:o}"
            );
        }
        let chmod = Chmod::parse("u=rwX,go=rX").unwrap();
        assert_eq!(chmod.apply(0o600, true), 0o755);
        assert_eq!(chmod.directory_mode(), None);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "rwx", "u", "u+r,", ",u+r", "u+q", "+x,", "x+u", "u=rw go=r", "-rw-r--r--,"]
        {
            assert!(matches!(Chmod::parse(text), Err(ChmodError::Symbolic(_))), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "[augorwxXst=+,0-9-]{0,12}", mode in 0u32..0o10000) {
            if let Ok(chmod) = Chmod::parse(&text) {
                prop_assert!(chmod.apply(mode, true) <= 0o7777);
            }
        }
    }
}
