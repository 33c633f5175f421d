//! "Did you mean": the nearest known name by edit distance, near enough at two edits.

/// Edits from which on two names have nothing to do with each other.
const TOO_FAR: usize = 3;

/// The option nearest to `given`, if one is at most two edits away and none is equal to it. Options come in lower case.
pub(super) fn nearest<'o>(given: &str, options: &[&'o str]) -> Option<&'o str> {
    let given: Vec<char> = given.chars().take(32).collect();
    let near = |option: &&'o str| {
        let distance = distance(&given, &option.chars().collect::<Vec<_>>());
        (distance < TOO_FAR).then_some((distance, *option))
    };
    let (distance, option) =
        options.iter().filter_map(near).min_by_key(|(distance, _)| *distance)?;
    (distance > 0).then_some(option)
}

/// As [`nearest`], whatever the letter case; the answer takes the case of what was given.
pub(super) fn nearest_keyword(given: &str, options: &[&'static str]) -> Option<String> {
    let option = nearest(&given.to_lowercase(), options)?;
    Some(if given == given.to_lowercase() { option.to_owned() } else { option.to_uppercase() })
}

/// Levenshtein's distance: insertions, deletions and substitutions count one each.
fn distance(left: &[char], right: &[char]) -> usize {
    if left.len().abs_diff(right.len()) >= TOO_FAR {
        return TOO_FAR;
    }
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, r) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(l != r);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_edits_are_near_and_equal_is_no_suggestion() {
        let options = ["run", "copy", "from"];
        assert_eq!(nearest("rum", &options), Some("run"));
        assert_eq!(nearest("coppyy", &options), Some("copy"));
        assert_eq!(nearest("frxyz", &options), None);
        assert_eq!(nearest("run", &options), None);
        assert_eq!(nearest(&"x".repeat(1 << 20), &options), None);
    }

    #[test]
    fn the_suggestion_takes_the_case_of_what_was_written() {
        assert_eq!(nearest_keyword("COPPY", &["copy"]).as_deref(), Some("COPY"));
        assert_eq!(nearest_keyword("coppy", &["copy"]).as_deref(), Some("copy"));
    }
}
