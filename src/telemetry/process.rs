//! The standard metrics of a process, read when they are scraped
//! (<https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>).

use std::fmt;

use procfs::ProcResult;
use procfs::process::{LimitValue, Process};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

#[derive(Debug)]
pub(super) struct ProcessCollector;

struct Readings {
    cpu_seconds: f64,
    resident_bytes: f64,
    virtual_bytes: f64,
    open_files: f64,
    max_files: f64,
    threads: f64,
    started_at: f64,
}

fn read() -> ProcResult<Readings> {
    let process = Process::myself()?;
    let stat = process.stat()?;
    let ticks = procfs::ticks_per_second() as f64;
    let max_files = match process.limits()?.max_open_files.soft_limit {
        LimitValue::Unlimited => f64::INFINITY,
        LimitValue::Value(files) => files as f64,
    };
    Ok(Readings {
        cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
        resident_bytes: (stat.rss * procfs::page_size()) as f64,
        virtual_bytes: stat.vsize as f64,
        open_files: process.fd_count()? as f64,
        max_files,
        threads: stat.num_threads as f64,
        started_at: procfs::boot_time_secs()? as f64 + stat.starttime as f64 / ticks,
    })
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Without /proc, these metrics are missing.
        let Ok(readings) = read() else {
            return Ok(());
        };
        let cpu = ConstCounter::new(readings.cpu_seconds);
        let help = "Total user and system CPU time spent in seconds";
        let metric = encoder.encode_descriptor(
            "process_cpu",
            help,
            Some(&Unit::Seconds),
            cpu.metric_type(),
        )?;
        cpu.encode(metric)?;
        let gauges = [
            (
                "process_resident_memory",
                "Resident memory size in bytes",
                Some(Unit::Bytes),
                readings.resident_bytes,
            ),
            (
                "process_virtual_memory",
                "Virtual memory size in bytes",
                Some(Unit::Bytes),
                readings.virtual_bytes,
            ),
            (
                "process_open_fds",
                "Number of open file descriptors",
                None,
                readings.open_files,
            ),
            (
                "process_max_fds",
                "Maximum number of open file descriptors",
                None,
                readings.max_files,
            ),
            (
                "process_threads",
                "Number of threads",
                None,
                readings.threads,
            ),
            (
                "process_start_time",
                "Start time of the process since unix epoch in seconds",
                Some(Unit::Seconds),
                readings.started_at,
            ),
        ];
        for (name, help, unit, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(
                name,
                help,
                unit.as_ref(),
                gauge.metric_type(),
            )?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_metrics_of_this_process() {
        let readings = read().expect("/proc is there");
        assert!(readings.resident_bytes > 1e6 && readings.resident_bytes <= readings.virtual_bytes);
        assert!(readings.open_files >= 3.0 && readings.open_files <= readings.max_files);
        assert!(readings.threads >= 1.0 && readings.cpu_seconds >= 0.0);
        let now = chrono::Utc::now().timestamp() as f64;
        assert!(
            (now - readings.started_at).abs() < 3600.0,
            "{}",
            readings.started_at
        );
    }
}
