//! The position of a pass in the table: a queue of segments, claimed one after the other. Pure.
//!
//! A pass takes the rows in the order of their positions. If the last pass did not reach the end, this one begins after
//! its last row and wraps around; otherwise rows at the end would never be looked up.
//!
//! If the application sent hints about voices, these come first, and the walk over the table skips them. They do not
//! count for the position in the table: the next pass begins where the walk stopped.

use std::collections::{HashSet, VecDeque};

use chrono::{DateTime, Utc};

use crate::core::transition::Claimed;
use crate::core::voice::{Position, RowId};
use crate::store::{Page, Selection};

/// Names that one statement looks for.
const NAMES_AT_ONCE: usize = 1000;
/// The maximum number of rows that one statement with names finds. A name can be a row id and a provider id, and an
/// application may use one voice in several rows.
const ROWS_OF_NAMES: u32 = 10_000;

/// The voices that a pass has yet to claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segments {
    queue: VecDeque<Segment>,
    /// Row or provider ids of the voices that come first.
    hints: Vec<String>,
    /// The number of voices that may still be claimed.
    left: Option<u64>,
    /// The part of the limit that is reserved for the rows of `continue_with`.
    reserved: u64,
    /// The number of claimed voices.
    claimed: u64,
    /// Voices that were claimed by name: some have two names, and a voice that is cloned again has a new provider id.
    named: HashSet<(RowId, Option<String>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    /// The voices of the application's hints, after a row.
    Hinted(Option<Position>),
    /// Rows of the table, after one row and up to another one.
    Range {
        after: Option<Position>,
        up_to: Option<Position>,
    },
    /// Voices by name; never empty.
    Named(Vec<String>),
    /// Rows that were due at one time, in the order of their due times; never empty.
    Due {
        rows: Vec<String>,
        read_at: DateTime<Utc>,
    },
}

/// The place in the walk over the table at which voices were claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The number of voices that were claimed before them.
    pub(super) number: u64,
    /// The last row before them.
    pub(super) preceded_by: Option<Position>,
}

impl Place {
    /// The place after these voices on their page.
    pub(super) fn behind(&self, voices: &[Claimed]) -> Self {
        Self {
            number: self.number + voices.len() as u64,
            preceded_by: voices.last().map(|voice| voice.position.clone()),
        }
    }
}

impl Segments {
    /// The whole table, from the row after this one.
    pub(super) fn over_all(limit: Option<u64>, resume_after: Option<Position>) -> Self {
        let to_the_end = Segment::Range {
            after: resume_after.clone(),
            up_to: None,
        };
        let to_the_start = resume_after.map(|start| Segment::Range {
            after: None,
            up_to: Some(start),
        });
        Self::new([to_the_end].into_iter().chain(to_the_start), limit)
    }

    pub(super) fn over_names(limit: Option<u64>, names: Vec<String>) -> Self {
        let portions = names.chunks(NAMES_AT_ONCE);
        Self::new(portions.map(|names| Segment::Named(names.to_vec())), limit)
    }

    /// The rows that were due at one time.
    pub(super) fn over_due(limit: Option<u64>, rows: Vec<RowId>, read_at: DateTime<Utc>) -> Self {
        Self::new(
            due(rows.iter().map(RowId::to_string).collect(), read_at),
            limit,
        )
    }

    fn new(segments: impl IntoIterator<Item = Segment>, limit: Option<u64>) -> Self {
        Self {
            queue: segments.into_iter().collect(),
            hints: Vec::new(),
            left: limit,
            reserved: 0,
            claimed: 0,
            named: HashSet::new(),
        }
    }

    /// Claims these voices first. Only for a pass that has claimed nothing and that claims no voices by name.
    pub(super) fn begin_with(&mut self, hints: Vec<String>) {
        if hints.is_empty() {
            return;
        }
        let hinted: HashSet<&String> = hints.iter().collect();
        for segment in &mut self.queue {
            if let Segment::Due { rows, .. } = segment {
                rows.retain(|row| !hinted.contains(row));
            }
        }
        self.queue
            .retain(|segment| !matches!(segment, Segment::Due { rows, .. } if rows.is_empty()));
        self.queue.push_front(Segment::Hinted(None));
        self.hints = hints;
    }

    /// Reserves a part of the limit for the rows of `continue_with`.
    pub(super) fn reserve(&mut self, voices: u64) {
        if let Some(left) = &mut self.left {
            self.reserved = voices.min(*left);
            *left -= self.reserved;
        }
    }

    /// Releases the reserved part. Returns whether there was any.
    pub(super) fn release(&mut self) -> bool {
        let reserved = std::mem::take(&mut self.reserved);
        self.left = self.left.map(|left| left + reserved);
        reserved > 0
    }

    /// Continues with these rows only: the others are claimed, or the limit has no room for them.
    pub(super) fn continue_with(&mut self, rows: Vec<RowId>, read_at: DateTime<Utc>) {
        self.release();
        self.queue = due(rows.iter().map(RowId::to_string).collect(), read_at)
            .into_iter()
            .collect();
    }

    /// What to claim next, and the maximum number of rows.
    pub(super) fn next(&self, size: usize) -> Option<(Selection, u32)> {
        let saturated = |number| u32::try_from(number).unwrap_or(u32::MAX);
        let left = self.left.map_or(u32::MAX, saturated);
        let size = u32::try_from(size).unwrap_or(u32::MAX).min(left);
        let segment = self.queue.front().filter(|_| left > 0)?;
        Some(match segment {
            Segment::Hinted(_) | Segment::Range { .. } => (self.selection(segment), size),
            Segment::Named(_) => (self.selection(segment), ROWS_OF_NAMES.min(left)),
            Segment::Due { rows, read_at } => {
                let rows = rows.iter().take(size as usize).cloned().collect();
                let read_at = *read_at;
                (Selection::Due { rows, read_at }, size)
            }
        })
    }

    /// The remaining rows of a segment.
    fn selection(&self, segment: &Segment) -> Selection {
        match segment.clone() {
            Segment::Hinted(after) => Selection::Hinted {
                names: self.hints.clone(),
                after,
            },
            Segment::Range { after, up_to } => Selection::Range {
                after,
                up_to,
                except: self.hints.clone(),
            },
            Segment::Named(names) => Selection::Named(names),
            Segment::Due { rows, read_at } => Selection::Due { rows, read_at },
        }
    }

    /// Moves on after a page that was claimed with this selection, and removes voices from it that were already claimed
    /// by another name. Returns the page's place if it came from the table.
    pub(super) fn advance(&mut self, selection: &Selection, page: &mut Page) -> Option<Place> {
        match selection {
            Selection::Range { .. } => {}
            Selection::Hinted { .. } | Selection::Named(_) | Selection::Due { .. } => {
                let name = |voice: &Claimed| (voice.row.clone(), voice.provider_id.clone());
                page.voices.retain(|voice| self.named.insert(name(voice)));
            }
        }
        let number = self.claimed;
        self.claimed += page.voices.len() as u64;
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(page.voices.len() as u64 + page.leased_elsewhere);
        }
        let (place, rest) = match (self.queue.pop_front()?, page.last.clone()) {
            (Segment::Range { after, up_to }, last) => {
                let rest = last.map(|last| Segment::Range {
                    after: Some(last),
                    up_to,
                });
                let preceded_by = after;
                (
                    Some(Place {
                        number,
                        preceded_by,
                    }),
                    rest,
                )
            }
            (Segment::Hinted(_), last) => (None, last.map(|last| Segment::Hinted(Some(last)))),
            (Segment::Named(_), _) => (None, None),
            (Segment::Due { mut rows, read_at }, _) => {
                if let Selection::Due { rows: claimed, .. } = selection {
                    rows.drain(..claimed.len().min(rows.len()));
                }
                (None, due(rows, read_at))
            }
        };
        if let Some(rest) = rest {
            self.queue.push_front(rest);
        }
        place
    }

    /// What was not claimed, and the row after which it begins: for a pass that had to stop.
    pub(super) fn rest(&self) -> (Vec<Selection>, Option<Position>) {
        let place = self.queue.iter().find_map(|segment| match segment {
            Segment::Range { after, .. } => Some(after.clone()),
            Segment::Hinted(_) | Segment::Named(_) | Segment::Due { .. } => None,
        });
        let rest = self.queue.iter().map(|segment| self.selection(segment));
        (rest.collect(), place.flatten())
    }

    /// The number of rows that are left to claim, if they are known one by one.
    pub(super) fn rows_left(&self) -> usize {
        let rows = self.queue.iter().map(|segment| match segment {
            Segment::Due { rows, .. } => rows.len(),
            Segment::Hinted(_) | Segment::Range { .. } | Segment::Named(_) => 0,
        });
        rows.sum()
    }

    /// The number of voices that may still be claimed, if there is a limit.
    pub(super) fn left(&self) -> Option<u64> {
        self.left.map(|left| left + self.reserved)
    }
}

fn due(rows: Vec<String>, read_at: DateTime<Utc>) -> Option<Segment> {
    (!rows.is_empty()).then_some(Segment::Due { rows, read_at })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn voice(row: u32, provider_id: Option<&str>) -> Claimed {
        Claimed {
            row: RowId::new(row.to_string()),
            position: Position::new(row.to_string()),
            provider_id: provider_id.map(str::to_owned),
            age: crate::core::verdict::Age::default(),
            unasked_for: std::time::Duration::ZERO,
            kind: None,
            is_isolated: false,
            unanswered: 0,
            nudge: None,
        }
    }

    /// Claims from a table whose rows are these numbers, like a store.
    fn claim(rows: &[u32], selection: &Selection, limit: u32) -> Page {
        let nothing = &None;
        let (after, up_to, names, named) = match selection {
            Selection::Range {
                after,
                up_to,
                except,
            } => (after, up_to, except, false),
            Selection::Hinted { names, after } => (after, nothing, names, true),
            Selection::Named(_) | Selection::Due { .. } => panic!("no names here"),
        };
        let number = |row: &Position| row.as_str().parse::<u32>().expect("a number");
        let found: Vec<_> = rows
            .iter()
            .filter(|row| after.as_ref().is_none_or(|after| **row > number(after)))
            .filter(|row| up_to.as_ref().is_none_or(|up_to| **row <= number(up_to)))
            .filter(|row| names.contains(&row.to_string()) == named)
            .take(limit as usize)
            .map(|row| voice(*row, None))
            .collect();
        let last = found.last().filter(|_| found.len() == limit as usize);
        Page {
            last: last.map(|voice| voice.position.clone()),
            voices: found,
            ..Page::default()
        }
    }

    fn segments(hints: &[u32], limit: Option<u64>, start: Option<Position>) -> Segments {
        let mut segments = Segments::over_all(limit, start);
        segments.begin_with(hints.iter().map(u32::to_string).collect());
        segments
    }

    /// Rows in the application's hints. Some of them do not exist.
    fn hints() -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(0u32..60, 0..20)
    }

    fn place() -> impl Strategy<Value = Option<Position>> {
        prop::option::of((0u32..60).prop_map(|row| Position::new(row.to_string())))
    }

    fn walk(segments: &mut Segments, rows: &[u32], size: usize, pages: usize) -> Vec<u32> {
        let mut seen = Vec::new();
        for _ in 0..pages {
            let Some((selection, limit)) = segments.next(size) else {
                break;
            };
            let mut page = claim(rows, &selection, limit);
            segments.advance(&selection, &mut page);
            seen.extend(
                page.voices
                    .iter()
                    .map(|v| v.row.as_str().parse::<u32>().expect("a number")),
            );
        }
        seen
    }

    proptest! {
        /// From any start position and with any hints, a pass sees every row once, and the hinted rows first.
        #[test]
        fn pass_sees_every_row_once_and_hinted_rows_first(n in 0u32..40, hints in hints(), start in place(), size in 1usize..12) {
            let rows: Vec<u32> = (10..10 + n).collect();
            let mut seen = walk(&mut segments(&hints, None, start), &rows, size, 1000);
            let hinted = rows.iter().filter(|row| hints.contains(row)).count();
            prop_assert!(seen[..hinted].iter().all(|row| hints.contains(row)));
            seen.sort_unstable();
            prop_assert_eq!(seen, rows);
        }

        /// Passes that stop early together see every row, with any hints in the first one.
        #[test]
        fn short_passes_together_see_every_row(n in 1u32..40, mut hints in hints(), size in 1usize..12, limit in 1u64..8) {
            let rows: Vec<u32> = (10..10 + n).collect();
            let mut seen = std::collections::BTreeSet::new();
            let mut resume = None;
            for _ in 0..rows.len() + 2 {
                let mut segments = segments(&std::mem::take(&mut hints), Some(limit), resume.take());
                seen.extend(walk(&mut segments, &rows, size, 1000));
                resume = segments.rest().1;
            }
            prop_assert_eq!(seen.len(), rows.len());
        }

        #[test]
        fn rest_contains_exactly_the_unseen_rows(n in 0u32..40, hints in hints(), start in place(), size in 1usize..12, pages in 0usize..5) {
            let rows: Vec<u32> = (10..10 + n).collect();
            let mut segments = segments(&hints, None, start);
            let mut seen = walk(&mut segments, &rows, size, pages);
            for selection in segments.rest().0 {
                seen.extend(claim(&rows, &selection, 1000).voices.iter().map(|v| v.row.as_str().parse::<u32>().expect("a number")));
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, rows);
        }

        /// If only hinted voices were claimed, the next pass begins where this one would have begun.
        #[test]
        fn hints_do_not_move_the_start_of_the_next_pass(n in 1u32..40, hints in hints(), start in place(), size in 1usize..12) {
            let rows: Vec<u32> = (10..10 + n).collect();
            let mut segments = segments(&hints, None, start.clone());
            while let Some((selection @ Selection::Hinted { .. }, limit)) = segments.next(size) {
                prop_assert_eq!(segments.rest().1, start.clone());
                prop_assert_eq!(segments.advance(&selection, &mut claim(&rows, &selection, limit)), None);
            }
            prop_assert_eq!(segments.rest().1, start);
        }
    }

    #[test]
    fn named_voices_are_claimed_in_portions() {
        let names: Vec<String> = (0..2400).map(|n| n.to_string()).collect();
        let mut segments = Segments::over_names(None, names);
        let mut portions = Vec::new();
        while let Some((Selection::Named(names), _)) = segments.next(100) {
            portions.push(names.len());
            segments.advance(&Selection::Named(Vec::new()), &mut Page::default());
        }
        assert_eq!(portions, [1000, 1000, 400]);
    }

    /// A hint may contain the provider id of a voice, and a schedule its row id.
    #[test]
    fn voice_with_two_names_is_claimed_once_unless_cloned_again() {
        let due = ["1", "2", "3"].map(|row| RowId::new(row.to_owned()));
        let mut segments = Segments::over_due(Some(5), due.to_vec(), Utc::now());
        segments.begin_with(vec!["first".to_owned(), "second".to_owned()]);
        let mut pages = Vec::new();
        for found in [
            [(1, "first"), (2, "second")].as_slice(),
            &[(1, "first"), (2, "anew"), (3, "third")],
        ] {
            let (selection, _) = segments.next(10).expect("more");
            let mut page = Page {
                voices: found
                    .iter()
                    .map(|(row, id)| voice(*row, Some(id)))
                    .collect(),
                ..Page::default()
            };
            segments.advance(&selection, &mut page);
            let ids = page
                .voices
                .into_iter()
                .filter_map(|voice| voice.provider_id);
            pages.push(ids.collect::<Vec<_>>());
        }
        assert_eq!(pages, [["first", "second"], ["anew", "third"]]);
        assert_eq!(segments.left(), Some(1));
        assert_eq!(segments.next(10), None);
    }
}
