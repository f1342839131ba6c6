//! What happens around the instances: time, the application, the provider, and whoever looks.

use std::collections::BTreeSet;
use std::time::Duration;

use uuid::Uuid;
use voice_sync::core::voice::RowId;

use super::reference::{Row, Told, Violation};
use super::world::World;
use super::{Change, Recording, Status};
use crate::support::app::NewVoice;

/// A place for a row, with all clones that were ever made for it.
#[derive(Default)]
pub(super) struct Slot {
    row: Option<RowId>,
    clones: Vec<String>,
}

impl World<'_> {
    /// Lets the leases grow older.
    pub(super) async fn skip(&mut self, seconds: u32) {
        self.skipped += Duration::from_secs(seconds.into());
        let milliseconds = u64::from(seconds) * 1000;
        let sql = format!(
            "UPDATE voice_sync_leases SET lease_until = lease_until - {milliseconds};
             UPDATE voice_sync_voices SET set_aside_until = set_aside_until - {milliseconds};
             UPDATE voice_sync_batches SET leased_until = leased_until - {milliseconds}"
        );
        self.site.app.execute(&sql).await;
    }

    fn clone_anew(&mut self, slot: usize) -> String {
        self.number += 1;
        let provider_id = format!("clone{}", self.number);
        self.provider
            .insert(provider_id.clone(), Status::Processing);
        self.slots[slot].clones.push(provider_id.clone());
        provider_id
    }

    /// The application changes a row, if it has a reason to.
    pub(super) async fn change(&mut self, slot: usize, change: Change) -> bool {
        let Some(id) = self.slots[slot].row.clone() else {
            return match change {
                Change::Insert => {
                    self.insert(slot).await;
                    true
                }
                Change::CloneAnew | Change::Complete | Change::Fail | Change::Delete => false,
            };
        };
        let known = &self.reference.rows[&id];
        let mut row = known.clone();
        match change {
            Change::Insert => return false,
            Change::CloneAnew => {
                row.provider_id = self.clone_anew(slot);
                row.status = Status::Processing;
                row.completed_at = None;
            }
            Change::Complete if row.status != Status::Completed => {
                row.status = Status::Completed;
                row.completed_at = Some("2026-11-02 08:00:00.000000".to_owned());
                row.preview_url = Some("https://application/own.mp3".to_owned());
            }
            Change::Fail if row.status != Status::Failed => row.status = Status::Failed,
            Change::Complete | Change::Fail => return false,
            Change::Delete => {
                self.slots[slot].row = None;
                self.reference.rows.remove(&id);
                let sql = "DELETE FROM voices WHERE id = $1";
                let deleted = sqlx::query(sql)
                    .bind(id.as_str())
                    .execute(self.site.pool())
                    .await;
                deleted.expect("a row is deleted");
                return true;
            }
        }
        let sql = "UPDATE voices SET elevenlabs_voice_id = $2, status = $3, preview_url = $4,
                                     completed_at = $5 WHERE id = $1";
        sqlx::query(sql)
            .bind(id.as_str())
            .bind(&row.provider_id)
            .bind(row.status.as_str())
            .bind(&row.preview_url)
            .bind(&row.completed_at)
            .execute(self.site.pool())
            .await
            .expect("a row is changed");
        self.reference.rows.insert(id, row);
        true
    }

    async fn insert(&mut self, slot: usize) {
        let voice = NewVoice {
            id: self.fresh_id(),
            user_id: self.fresh_id(),
            provider_id: self.clone_anew(slot),
            status: Status::Processing.as_str(),
        };
        let app = &self.site.app;
        let id = RowId::new(app.stored(voice.id));
        let row = Row {
            provider_id: voice.provider_id.clone(),
            user_id: app.stored(voice.user_id),
            status: Status::Processing,
            preview_url: None,
            completed_at: None,
        };
        app.insert(&[voice]).await;
        self.slots[slot].row = Some(id.clone());
        self.reference.rows.insert(id, row);
    }

    /// The provider comes to the end with a clone.
    pub(super) fn provide(&mut self, slot: usize, clone: Recording, verdict: Status) -> bool {
        let clones = &self.slots[slot].clones;
        let chosen = match clone {
            Recording::Current => clones.last(),
            Recording::Former => clones.iter().rev().nth(1),
        };
        let status = chosen.and_then(|id| self.provider.get_mut(id));
        match status {
            Some(status) if *status == Status::Processing => {
                *status = verdict;
                true
            }
            Some(_) | None => false,
        }
    }

    /// Holds the database against the reference. The rows that moved since the last time.
    pub(super) async fn look(&mut self) -> Result<BTreeSet<RowId>, Violation> {
        type Read = (
            String,
            String,
            String,
            String,
            Option<String>,
            Option<String>,
        );
        let pool = self.site.pool();
        let sql = "SELECT id, elevenlabs_voice_id, user_id, status, preview_url,
                          CAST(completed_at AS TEXT) FROM voices";
        let rows: Vec<Read> = sqlx::query_as(sql)
            .fetch_all(pool)
            .await
            .expect("rows are read");
        let rows = rows.into_iter().map(
            |(id, provider_id, user_id, status, preview_url, completed_at)| {
                let row = Row {
                    provider_id,
                    user_id,
                    status: Status::parse(&status),
                    preview_url,
                    completed_at,
                };
                (RowId::new(id), row)
            },
        );
        let moved = self.reference.look_at_rows(rows.collect())?;
        let sql = "SELECT event_id, event_type, voice_id, user_id FROM voice_sync_outbox";
        let events: Vec<(String, String, String, Option<String>)> = sqlx::query_as(sql)
            .fetch_all(pool)
            .await
            .expect("events are read");
        let events: Vec<_> = events
            .into_iter()
            .map(|(id, event_type, voice_id, user_id)| {
                let id = Uuid::parse_str(&id).expect("a UUID");
                (
                    id,
                    Told {
                        event_type,
                        voice_id,
                        user_id,
                    },
                )
            })
            .collect();
        self.reference.look_at_outbox(&events)?;
        Ok(moved)
    }
}
