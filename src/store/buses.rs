//! Event buses that failed, and which process may try them again.

use std::time::Duration;

use uuid::Uuid;

use super::values::BusPermit;
use super::{BUS_PROBE, MAX_BUS_PAUSE, Store, StoreError};

impl Store {
    pub(super) async fn bus_permit_once(
        &self,
        bus: Uuid,
        run_id: Uuid,
    ) -> Result<BusPermit, StoreError> {
        let dialect = self.dialect();
        let buses = dialect.own("buses");
        let mut args = self.database.args();
        let sql = format!(
            "SELECT {left} AS backing_off FROM {buses} WHERE bus = {bus}",
            left = dialect.seconds_until("retry_at", MAX_BUS_PAUSE),
            bus = args.bind(bus),
        );
        let Some(row) = self.database.fetch_optional(sql, args).await? else {
            return Ok(BusPermit::Works);
        };
        let mut args = self.database.args();
        let run_id = args.bind(run_id);
        let sql = format!(
            "UPDATE {buses} SET retry_at = {now} + {probe}, probed_by = {run_id}
             WHERE bus = {bus} AND (NOT {is_backing_off} OR probed_by = {run_id}) RETURNING failures",
            now = dialect.now(),
            probe = dialect.span(BUS_PROBE),
            bus = args.bind(bus),
            is_backing_off = dialect.is_ahead("retry_at", MAX_BUS_PAUSE),
        );
        Ok(match self.database.fetch_optional(sql, args).await? {
            Some(probe) => BusPermit::Probe {
                failures: probe.times("failures")?,
            },
            None => BusPermit::BackingOff(row.get("backing_off")?),
        })
    }

    pub(super) async fn bus_failed_once(
        &self,
        bus: Uuid,
        failures: u32,
        pause: Duration,
    ) -> Result<(), StoreError> {
        let dialect = self.dialect();
        let mut args = self.database.args();
        // If several processes fail at once, the first one counts.
        let sql = format!(
            "INSERT INTO {buses} AS b (bus, failures, retry_at) VALUES ({bus}, {failures}, {now} + {pause})
             ON CONFLICT (bus) DO UPDATE
             SET failures = EXCLUDED.failures, retry_at = EXCLUDED.retry_at, probed_by = NULL
             WHERE b.failures < EXCLUDED.failures",
            buses = dialect.own("buses"),
            bus = args.bind(bus),
            failures = args.bind(failures.min(i32::MAX.unsigned_abs())),
            now = dialect.now(),
            pause = dialect.seconds(&args.bind(pause)),
        );
        self.database.execute(sql, args).await.map(drop)
    }

    pub(super) async fn bus_works_once(&self, bus: Uuid) -> Result<(), StoreError> {
        let mut args = self.database.args();
        let sql = format!(
            "DELETE FROM {} WHERE bus = {}",
            self.dialect().own("buses"),
            args.bind(bus)
        );
        self.database.execute(sql, args).await.map(drop)
    }
}
