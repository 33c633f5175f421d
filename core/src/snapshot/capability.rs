//! `security.capability` as layers hold it: version 2 (capabilities(7), file capability extended attribute versioning).

const VERSION_MASK: u32 = 0xff00_0000;
const VERSION_1: u32 = 0x0100_0000;
const VERSION_2: u32 = 0x0200_0000;
const VERSION_3: u32 = 0x0300_0000;
/// Version 2: a word of version and flags, then two pairs of words (permitted, inheritable).
const BYTES_2: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CapabilityError {
    Malformed,
    /// Valid only in user namespaces whose root is this id.
    Namespace(u32),
}

/// The value as version 2.
pub(super) fn as_version_2(value: &[u8]) -> Result<Box<[u8]>, CapabilityError> {
    let word = |at: usize| {
        let bytes = value.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_le_bytes).ok_or(CapabilityError::Malformed)
    };
    let magic = word(0)?;
    match (magic & VERSION_MASK, value.len()) {
        (VERSION_2, BYTES_2) => Ok(value.into()),
        (VERSION_3, 24) if word(20)? != 0 => Err(CapabilityError::Namespace(word(20)?)),
        (VERSION_3, 24) | (VERSION_1, 12) => {
            let mut bytes = vec![0; BYTES_2];
            let kept = value.len().min(BYTES_2);
            bytes[..kept].copy_from_slice(&value[..kept]);
            bytes[..4].copy_from_slice(&(magic & !VERSION_MASK | VERSION_2).to_le_bytes());
            Ok(bytes.into())
        }
        _ => Err(CapabilityError::Malformed),
    }
}

/// Whether two values grant the same.
pub(super) fn same(left: Option<&[u8]>, right: Option<&[u8]>) -> bool {
    match (left, right) {
        (Some(left), Some(right)) => {
            left == right || as_version_2(left).is_ok_and(|left| Ok(left) == as_version_2(right))
        }
        (left, right) => left == right,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(version: u32, rest: &[u8]) -> Vec<u8> {
        [&version.to_le_bytes()[..], rest].concat()
    }

    #[test]
    fn every_version_becomes_version_2() {
        let two = value(VERSION_2 | 1, &[7; 16]);
        assert_eq!(*as_version_2(&two).unwrap(), *two);
        let three = value(VERSION_3 | 1, &[[7; 16].as_slice(), &[0; 4]].concat());
        assert_eq!(*as_version_2(&three).unwrap(), *two);
        let one = value(VERSION_1, &[9; 8]);
        let wanted = value(VERSION_2, &[[9; 8], [0; 8]].concat());
        assert_eq!(*as_version_2(&one).unwrap(), *wanted);
    }

    #[test]
    fn a_namespace_and_a_malformed_value_are_refused() {
        let three = value(VERSION_3, &[[7; 16].as_slice(), &1000u32.to_le_bytes()].concat());
        assert_eq!(as_version_2(&three), Err(CapabilityError::Namespace(1000)));
        for bad in [vec![], vec![2; 3], value(VERSION_2, &[0; 15]), value(0x0400_0000, &[0; 16])] {
            assert_eq!(as_version_2(&bad), Err(CapabilityError::Malformed), "{bad:?}");
        }
    }

    #[test]
    fn versions_that_grant_the_same_are_the_same() {
        let two = value(VERSION_2, &[1; 16]);
        let three = value(VERSION_3, &[[1; 16].as_slice(), &[0; 4]].concat());
        assert!(same(Some(&two), Some(&three)));
        assert!(!same(Some(&two), Some(&value(VERSION_2, &[2; 16]))));
        assert!(same(Some(b"odd"), Some(b"odd")) && !same(Some(b"odd"), Some(b"even")));
        assert!(!same(None, Some(&two)) && same(None, None));
    }
}
