//! The nearest valid name for a mistyped one. Pure.

/// Returns the candidate that is fewest edits away, if it is near enough to be meant.
pub(super) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(1);
    let near = candidates.into_iter().map(|candidate| (distance(name, candidate), candidate));
    near.filter(|(edits, _)| *edits <= limit).min().map(|(_, candidate)| candidate)
}

/// The hint that names it, or all candidates when they are few.
pub(super) fn hint<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut candidates: Vec<&str> = candidates.into_iter().collect();
    candidates.sort_unstable();
    match nearest(name, candidates.iter().copied()) {
        Some(near) => Some(format!("did you mean {near:?}?")),
        None if candidates.is_empty() => None,
        None => Some(format!("known are: {}", candidates.join(", "))),
    }
}

/// Insertions, deletions, replacements and swaps of neighbours between two names (restricted edit distance).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.to_lowercase().chars().collect(), b.to_lowercase().chars().collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before_last[j - 2] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in
            [("", "", 0), ("a", "", 1), ("region", "regoin", 1), ("kitten", "sitting", 3), ("Region", "region", 0)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn only_a_near_name_is_suggested() {
        let keys = ["region", "endpoint", "bucket"];
        assert_eq!(nearest("regoin", keys), Some("region"));
        assert_eq!(nearest("buckets", keys), Some("bucket"));
        assert_eq!(nearest("colour", keys), None);
        assert_eq!(hint("colour", keys).unwrap(), "known are: bucket, endpoint, region");
    }
}
