//! Isolation of bad items: if many items share a request or a statement that fails as a whole, this decides which
//! requests follow, until every good item has its result and each bad one is alone. Pure.
//!
//! This is group testing (Dorfman, "The Detection of Defective Members of Large Populations", 1943) with a fixed
//! number of stages: 100 voices are looked up as 5 times 20, then 5 times 4, then one by one. One bad voice among 100
//! costs 5 + 5 + 4 requests and one repetition. If all are bad, 100 voices cost 131 requests, because the number of
//! stages does not depend on the results.

/// Parts that a failed request is split into.
const PARTS: usize = 5;
/// This many items or fewer are taken one by one.
const ONE_BY_ONE: usize = 7;

/// The requests that follow one that failed as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Split<T> {
    /// A request for each of these parts.
    Parts(Vec<Vec<T>>),
    /// A request for each item.
    OneByOne(Vec<T>),
}

impl<T> Split<T> {
    /// The items of each of these requests.
    pub fn requests(self) -> Vec<Vec<T>> {
        match self {
            Self::Parts(parts) => parts,
            Self::OneByOne(items) => items.into_iter().map(|item| vec![item]).collect(),
        }
    }
}

/// Splits the items of a request that failed.
pub fn split<T>(mut items: Vec<T>) -> Split<T> {
    if items.len() <= ONE_BY_ONE {
        return Split::OneByOne(items);
    }
    let mut parts = Vec::with_capacity(PARTS);
    for left in (2..=PARTS).rev() {
        let rest = items.split_off(items.len().div_ceil(left));
        parts.push(std::mem::replace(&mut items, rest));
    }
    parts.push(items);
    Split::Parts(parts)
}

/// Whether the `failed` of `asked` voices are looked up once more before they count as bad. If a third or more of
/// them failed, it is not an accident, and repetitions would add up.
pub fn is_worth_repeating(failed: usize, asked: usize) -> bool {
    failed * 3 <= asked
}

#[cfg(test)]
mod tests {
    use std::collections::{HashSet, VecDeque};

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Search {
        requests: usize,
        answered: HashSet<usize>,
        found_bad: HashSet<usize>,
    }

    /// Looks up a batch at a provider that fails each request which names a bad voice, and by accident the list
    /// requests with these numbers.
    fn search(batch: usize, bad: &HashSet<usize>, accidents: &HashSet<usize>) -> Search {
        let mut search = Search::default();
        let mut queue = VecDeque::from([(0..batch).collect::<Vec<_>>()]);
        while let Some(voices) = queue.pop_front() {
            search.requests += 1;
            let is_bad = voices.iter().any(|voice| bad.contains(voice));
            if !is_bad && !accidents.contains(&search.requests) {
                search.answered.extend(voices);
                continue;
            }
            match split(voices) {
                Split::Parts(parts) => queue.extend(parts),
                Split::OneByOne(voices) => {
                    search.requests += voices.len();
                    let asked = voices.len();
                    let (failed, good): (Vec<_>, Vec<_>) =
                        voices.into_iter().partition(|voice| bad.contains(voice));
                    search.answered.extend(good);
                    if is_worth_repeating(failed.len(), asked) {
                        search.requests += failed.len();
                    }
                    search.found_bad.extend(failed);
                }
            }
        }
        search
    }

    #[test]
    fn split_parts_differ_in_size_by_at_most_one() {
        for (voices, sizes) in [
            (100, vec![20, 20, 20, 20, 20]),
            (20, vec![4, 4, 4, 4, 4]),
            (8, vec![2, 2, 2, 1, 1]),
            (11, vec![3, 2, 2, 2, 2]),
        ] {
            let Split::Parts(parts) = split((0..voices).collect()) else {
                panic!("{voices} are too many to take one by one");
            };
            assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), sizes);
            assert_eq!(parts.concat(), (0..voices).collect::<Vec<_>>());
        }
        for voices in 1..=7 {
            let all: Vec<_> = (0..voices).collect();
            assert_eq!(split(all.clone()), Split::OneByOne(all));
        }
    }

    #[test]
    fn isolating_one_bad_voice_of_100_takes_15_more_requests() {
        for bad in 0..100 {
            let search = search(100, &HashSet::from([bad]), &HashSet::new());
            assert_eq!(search.requests - 1, 15, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn bisect_answers_good_voices_and_isolates_bad_ones(
            batch in 1..=100usize, bad in prop::collection::hash_set(0..100usize, 0..=100)
        ) {
            let bad: HashSet<_> = bad.into_iter().filter(|voice| *voice < batch).collect();
            let good: HashSet<_> = (0..batch).filter(|voice| !bad.contains(voice)).collect();
            let search = search(batch, &bad, &HashSet::new());
            prop_assert_eq!(search.answered, good);
            prop_assert_eq!(&search.found_bad, &bad);
            prop_assert!(search.requests - 1 <= 15 * bad.len(), "{} requests", search.requests);
            prop_assert!(search.requests <= 2 * batch, "{} requests", search.requests);
        }

        #[test]
        fn random_batch_failures_mark_no_good_voice_as_bad(
            batch in 1..=100usize, bad in prop::collection::hash_set(0..100usize, 0..=20),
            accidents in prop::collection::hash_set(1..30usize, 0..=30)
        ) {
            let bad: HashSet<_> = bad.into_iter().filter(|voice| *voice < batch).collect();
            let search = search(batch, &bad, &accidents);
            prop_assert_eq!(search.answered.len() + bad.len(), batch);
            prop_assert_eq!(&search.found_bad, &bad);
            prop_assert!(search.requests <= 2 * batch, "{} requests", search.requests);
        }
    }
}
