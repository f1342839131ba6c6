//! Where a pass is in the table. Pure.
//!
//! A pass takes the rows in the order of their positions. Where the last one did not get to the end, this
//! one begins after it and wraps around: otherwise rows at the end would never be asked about.
//!
//! Where the application hinted at some voices, these come first, and the walk over the table leaves
//! them out. Their rows are no places in the table: the next pass begins where the walk stopped.

use std::collections::VecDeque;

use chrono::{DateTime, Utc};

use crate::core::transition::Claimed;
use crate::core::voice::{Position, RowId};
use crate::store::{Page, Selection};

/// Names looked for in one statement.
const NAMES_AT_ONCE: usize = 1000;
/// Rows that one statement with names may find: a name can be that of a row and of a voice, and an
/// application may use one voice in several rows.
const ROWS_OF_NAMES: u32 = 10_000;

/// The place of a pass, or its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cursor {
    way: Way,
    /// Row or provider ids of the voices that come first.
    hints: Vec<String>,
    /// Voices that may still be claimed.
    left: Option<u64>,
    /// Of the limit, what is kept for the rows that it will go on with.
    reserved: u64,
    /// Voices claimed.
    claimed: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    /// The hints, and then as without them.
    Hinted {
        after: Option<Position>,
        then: Box<Way>,
    },
    /// From a row to the end of the table, and then from its beginning.
    ToTheEnd {
        start: Option<Position>,
        after: Option<Position>,
    },
    /// From the beginning of the table to where the pass had started.
    ToTheStart {
        start: Position,
        after: Option<Position>,
    },
    /// By name.
    Named(Vec<String>),
    /// Those that were due at one moment, in the order in which they were.
    Due {
        rows: VecDeque<String>,
        read_at: DateTime<Utc>,
    },
    Over,
}

/// Where in the walk over the table some voices were claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// How many voices were claimed before them.
    pub(super) number: u64,
    /// The last row before them.
    pub(super) preceded_by: Option<Position>,
}

impl Place {
    /// The place of what follows these voices on their page.
    pub(super) fn behind(&self, voices: &[Claimed]) -> Self {
        Self {
            number: self.number + voices.len() as u64,
            preceded_by: voices.last().map(|voice| voice.position.clone()),
        }
    }
}

impl Cursor {
    /// Over the whole table, beginning after a row.
    pub(super) fn over_all(limit: Option<u64>, resume_after: Option<Position>) -> Self {
        let way = Way::ToTheEnd {
            start: resume_after.clone(),
            after: resume_after,
        };
        Self::on(way, limit)
    }

    pub(super) fn over_names(limit: Option<u64>, names: Vec<String>) -> Self {
        Self::on(Way::Named(names), limit)
    }

    /// Over the rows that were due at one moment.
    pub(super) fn over_due(limit: Option<u64>, rows: Vec<RowId>, read_at: DateTime<Utc>) -> Self {
        let rows = rows.iter().map(|row| row.as_str().to_owned()).collect();
        Self::on(Way::Due { rows, read_at }, limit)
    }

    fn on(way: Way, limit: Option<u64>) -> Self {
        Self {
            way,
            hints: Vec::new(),
            left: limit,
            reserved: 0,
            claimed: 0,
        }
    }

    /// Takes these voices first. For a cursor that has not moved, and goes by no names.
    pub(super) fn begin_with(&mut self, hints: Vec<String>) {
        if hints.is_empty() {
            return;
        }
        let mut then = std::mem::replace(&mut self.way, Way::Over);
        if let Way::Due { rows, .. } = &mut then {
            rows.retain(|row| !hints.contains(row));
        }
        self.way = Way::Hinted {
            after: None,
            then: Box::new(then),
        };
        self.hints = hints;
    }

    /// Keeps a part of the limit for the rows that it will go on with.
    pub(super) fn reserve(&mut self, voices: u64) {
        if let Some(left) = &mut self.left {
            self.reserved = voices.min(*left);
            *left -= self.reserved;
        }
    }

    /// Gives back what was kept. Returns whether that was anything.
    pub(super) fn release(&mut self) -> bool {
        let reserved = std::mem::take(&mut self.reserved);
        self.left = self.left.map(|left| left + reserved);
        reserved > 0
    }

    /// Goes on with these rows. For a cursor that is at its end.
    pub(super) fn go_on_with(&mut self, rows: Vec<RowId>, read_at: DateTime<Utc>) {
        self.release();
        self.way = Self::over_due(None, rows, read_at).way;
    }

    /// What to claim next, and how many rows at the most.
    pub(super) fn next(&self, size: usize) -> Option<(Selection, u32)> {
        let size = match &self.way {
            Way::Named(_) => ROWS_OF_NAMES,
            Way::Hinted { .. }
            | Way::ToTheEnd { .. }
            | Way::ToTheStart { .. }
            | Way::Due { .. }
            | Way::Over => u32::try_from(size).unwrap_or(u32::MAX),
        };
        let left = self
            .left
            .map_or(u32::MAX, |left| u32::try_from(left).unwrap_or(u32::MAX));
        let selection = match &self.way {
            Way::Hinted { after, .. } => self.hinted(after),
            Way::ToTheEnd { after, .. } => self.range(after, None),
            Way::ToTheStart { start, after } => self.range(after, Some(start)),
            Way::Named(names) if names.is_empty() => return None,
            Way::Named(names) => {
                Selection::Named(names.iter().take(NAMES_AT_ONCE).cloned().collect())
            }
            Way::Due { rows, .. } if rows.is_empty() => return None,
            Way::Due { rows, read_at } => {
                let size = size.min(left) as usize;
                Self::due(rows.iter().take(size), read_at)
            }
            Way::Over => return None,
        };
        (left > 0).then_some((selection, size.min(left)))
    }

    fn due<'a>(rows: impl Iterator<Item = &'a String>, read_at: &DateTime<Utc>) -> Selection {
        Selection::Due {
            rows: rows.cloned().collect(),
            read_at: *read_at,
        }
    }

    fn hinted(&self, after: &Option<Position>) -> Selection {
        Selection::Hinted {
            names: self.hints.clone(),
            after: after.clone(),
        }
    }

    fn range(&self, after: &Option<Position>, up_to: Option<&Position>) -> Selection {
        Selection::Range {
            after: after.clone(),
            up_to: up_to.cloned(),
            except: self.hints.clone(),
        }
    }

    /// Goes on behind a page that was claimed by this selection. Returns the page's place, if it was
    /// one of the table.
    pub(super) fn advance(&mut self, selection: &Selection, page: &Page) -> Option<Place> {
        let place = match &self.way {
            Way::ToTheEnd { after, .. } | Way::ToTheStart { after, .. } => Some(Place {
                number: self.claimed,
                preceded_by: after.clone(),
            }),
            Way::Hinted { .. } | Way::Named(_) | Way::Due { .. } | Way::Over => None,
        };
        self.claimed += page.voices.len() as u64;
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(page.voices.len() as u64 + page.leased_elsewhere);
        }
        self.way = match (
            std::mem::replace(&mut self.way, Way::Over),
            page.last.clone(),
        ) {
            (Way::Hinted { then, .. }, Some(last)) => Way::Hinted {
                then,
                after: Some(last),
            },
            (Way::Hinted { then, .. }, None) => *then,
            (Way::Due { mut rows, read_at }, _) => {
                if let Selection::Due { rows: claimed, .. } = selection {
                    rows.drain(..claimed.len().min(rows.len()));
                }
                Way::Due { rows, read_at }
            }
            (Way::ToTheEnd { start, .. }, Some(last)) => Way::ToTheEnd {
                start,
                after: Some(last),
            },
            (
                Way::ToTheEnd {
                    start: Some(start), ..
                },
                None,
            ) => Way::ToTheStart { start, after: None },
            (Way::ToTheStart { start, .. }, Some(last)) => Way::ToTheStart {
                start,
                after: Some(last),
            },
            (Way::Named(names), _) => Way::Named(names.into_iter().skip(NAMES_AT_ONCE).collect()),
            (Way::ToTheEnd { start: None, .. } | Way::ToTheStart { .. }, None) | (Way::Over, _) => {
                Way::Over
            }
        };
        place
    }

    /// What was never claimed, and the row after which it begins: for a pass that had to stop.
    pub(super) fn rest(&self) -> (Vec<Selection>, Option<Position>) {
        self.rest_of(&self.way)
    }

    fn rest_of(&self, way: &Way) -> (Vec<Selection>, Option<Position>) {
        let wrapped = |start: &Option<Position>| start.as_ref().map(|s| self.range(&None, Some(s)));
        match way {
            Way::Hinted { after, then } => {
                let (mut rest, place) = self.rest_of(then);
                rest.insert(0, self.hinted(after));
                (rest, place)
            }
            Way::ToTheEnd { start, after } => {
                let ahead = [self.range(after, None)];
                (
                    ahead.into_iter().chain(wrapped(start)).collect(),
                    after.clone(),
                )
            }
            Way::ToTheStart { start, after } => {
                (vec![self.range(after, Some(start))], after.clone())
            }
            Way::Named(names) if names.is_empty() => (Vec::new(), None),
            Way::Named(names) => (vec![Selection::Named(names.clone())], None),
            Way::Due { rows, .. } if rows.is_empty() => (Vec::new(), None),
            Way::Due { rows, read_at } => (vec![Self::due(rows.iter(), read_at)], None),
            Way::Over => (Vec::new(), None),
        }
    }

    /// Rows that are still to be claimed, where they are given one by one.
    pub(super) fn rows_left(&self) -> usize {
        match &self.way {
            Way::Due { rows, .. } => rows.len(),
            Way::Hinted { .. }
            | Way::ToTheEnd { .. }
            | Way::ToTheStart { .. }
            | Way::Named(_)
            | Way::Over => 0,
        }
    }

    /// Voices that may still be claimed, where there is a limit.
    pub(super) fn left(&self) -> Option<u64> {
        self.left.map(|left| left + self.reserved)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A table whose rows are these numbers, claimed as a store would.
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
            .map(|row| Claimed {
                row: RowId::new(row.to_string()),
                position: Position::new(row.to_string()),
                provider_id: None,
                age: crate::core::verdict::Age::default(),
                unasked_for: std::time::Duration::ZERO,
                kind: None,
                is_isolated: false,
                unanswered: 0,
            })
            .collect();
        let last = found.last().filter(|_| found.len() == limit as usize);
        Page {
            last: last.map(|voice| voice.position.clone()),
            voices: found,
            ..Page::default()
        }
    }

    fn cursor(hints: &[u32], limit: Option<u64>, start: Option<Position>) -> Cursor {
        let mut cursor = Cursor::over_all(limit, start);
        cursor.begin_with(hints.iter().map(u32::to_string).collect());
        cursor
    }

    /// Rows that the application may hint at, some of which are not there.
    fn hints() -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(0u32..60, 0..20)
    }

    fn place() -> impl Strategy<Value = Option<Position>> {
        prop::option::of((0u32..60).prop_map(|row| Position::new(row.to_string())))
    }

    fn walk(cursor: &mut Cursor, rows: &[u32], size: usize, pages: usize) -> Vec<u32> {
        let mut seen = Vec::new();
        for _ in 0..pages {
            let Some((selection, limit)) = cursor.next(size) else {
                break;
            };
            let page = claim(rows, &selection, limit);
            seen.extend(
                page.voices
                    .iter()
                    .map(|v| v.row.as_str().parse::<u32>().expect("a number")),
            );
            cursor.advance(&selection, &page);
        }
        seen
    }

    proptest! {
        /// Wherever it begins, and whatever the hints, a pass sees every row once, and the hinted ones first.
        #[test]
        fn every_row_is_seen_once(n in 0u32..40, hints in hints(), start in place(), size in 1usize..12) {
            let rows: Vec<u32> = (10..10 + n).collect();
            let mut seen = walk(&mut cursor(&hints, None, start), &rows, size, 1000);
            let hinted = rows.iter().filter(|row| hints.contains(row)).count();
            prop_assert!(seen[..hinted].iter().all(|row| hints.contains(row)));
            seen.sort_unstable();
            prop_assert_eq!(seen, rows);
        }

        /// Passes that stop early take turns: together they see everything, whatever the first one
        /// is hinted at.
        #[test]
        fn short_passes_get_around(n in 1u32..40, mut hints in hints(), size in 1usize..12, limit in 1u64..8) {
            let rows: Vec<u32> = (10..10 + n).collect();
            let mut seen = std::collections::BTreeSet::new();
            let mut resume = None;
            for _ in 0..rows.len() + 2 {
                let mut cursor = cursor(&std::mem::take(&mut hints), Some(limit), resume.take());
                seen.extend(walk(&mut cursor, &rows, size, 1000));
                resume = cursor.rest().1;
            }
            prop_assert_eq!(seen.len(), rows.len());
        }

        /// What is left over is just what was not seen.
        #[test]
        fn the_rest_is_what_was_not_seen(n in 0u32..40, hints in hints(), start in place(), size in 1usize..12, pages in 0usize..5) {
            let rows: Vec<u32> = (10..10 + n).collect();
            let mut cursor = cursor(&hints, None, start);
            let mut seen = walk(&mut cursor, &rows, size, pages);
            for selection in cursor.rest().0 {
                seen.extend(claim(&rows, &selection, 1000).voices.iter().map(|v| v.row.as_str().parse::<u32>().expect("a number")));
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, rows);
        }

        /// While only hints were followed, the next pass begins where this one would have.
        #[test]
        fn hints_move_nothing(n in 1u32..40, hints in hints(), start in place(), size in 1usize..12) {
            let rows: Vec<u32> = (10..10 + n).collect();
            let mut cursor = cursor(&hints, None, start.clone());
            while let Some((selection @ Selection::Hinted { .. }, limit)) = cursor.next(size) {
                prop_assert_eq!(cursor.rest().1, start.clone());
                prop_assert_eq!(cursor.advance(&selection, &claim(&rows, &selection, limit)), None);
            }
            prop_assert_eq!(cursor.rest().1, start);
        }
    }

    #[test]
    fn names_are_taken_in_portions() {
        let names: Vec<String> = (0..2400).map(|n| n.to_string()).collect();
        let mut cursor = Cursor::over_names(None, names);
        let mut portions = Vec::new();
        while let Some((Selection::Named(names), _)) = cursor.next(100) {
            portions.push(names.len());
            cursor.advance(&Selection::Named(Vec::new()), &Page::default());
        }
        assert_eq!(portions, [1000, 1000, 400]);
    }
}
