//! Converts OpenMetrics to Prometheus' own text format, version 0.0.4, which node_exporter's textfile collector,
//! promtool and older scrapers read: <https://prometheus.io/docs/instrumenting/exposition_formats/>. Pure.
//!
//! The samples are the same. The metadata differs: a counter is described by the name of its samples, an info metric is
//! a gauge, and there are no units and no end marker.

use std::collections::HashMap;

/// Converts metrics to the text format.
pub(super) fn from_openmetrics(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // HELP comes before TYPE, but the name in HELP depends on the type.
    let mut help = None;
    for line in text.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some(described) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = described.split_once(' ') else {
                continue;
            };
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, says)) = help.take().filter(|(of, _)| *of == name) {
                out.push_str(&format!("# HELP {name}{suffix} {says}\n"));
            }
            out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// What a text says of a gauge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GaugeValue {
    /// The new value.
    New,
    /// The earlier value, or else the new one.
    Earlier,
    /// The earlier value, or else nothing: the new one is unknown.
    EarlierOrNone,
}

/// Adds the values of an earlier text: the counters and histograms of a file continue from the last run.
pub(super) fn continued(text: &str, earlier: &str, gauge: impl Fn(&str) -> GaugeValue) -> String {
    let earlier: HashMap<_, f64> = earlier.lines().filter_map(sample).collect();
    let mut out = String::with_capacity(text.len());
    let mut adds = false;
    for line in text.lines() {
        if let Some(described) = line.strip_prefix("# TYPE ") {
            adds = described.ends_with(" counter") || described.ends_with(" histogram");
        }
        let value = match sample(line) {
            None => None,
            Some((name, now)) => match (earlier.get(name), adds, gauge(name)) {
                (Some(before), true, _) => Some(format!("{name} {}\n", now + before)),
                (Some(before), false, GaugeValue::Earlier | GaugeValue::EarlierOrNone) => {
                    Some(format!("{name} {before}\n"))
                }
                (None, false, GaugeValue::EarlierOrNone) => Some(String::new()),
                (Some(_), false, GaugeValue::New) | (None, _, _) => None,
            },
        };
        match value {
            Some(value) => out.push_str(&value),
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

/// Splits a line into the name with its labels, and the value.
fn sample(line: &str) -> Option<(&str, f64)> {
    let (name, value) = line.rsplit_once(' ').filter(|_| !line.starts_with('#'))?;
    let value = value.parse().ok().filter(|value: &f64| value.is_finite())?;
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_openmetrics_metadata_to_the_text_format() {
        let openmetrics = "\
# HELP passes Passes by exit code.
# TYPE passes counter
passes_total{exit=\"0\"} 3
# HELP lag_seconds How late.
# TYPE lag_seconds histogram
# UNIT lag_seconds seconds
lag_seconds_sum 1.5
lag_seconds_count 2
lag_seconds_bucket{le=\"+Inf\"} 2
# HELP build The version.
# TYPE build info
build_info{version=\"1\"} 1
# TYPE odd unknown
odd 1
# EOF
";
        assert_eq!(
            from_openmetrics(openmetrics),
            "\
# HELP passes_total Passes by exit code.
# TYPE passes_total counter
passes_total{exit=\"0\"} 3
# HELP lag_seconds How late.
# TYPE lag_seconds histogram
lag_seconds_sum 1.5
lag_seconds_count 2
lag_seconds_bucket{le=\"+Inf\"} 2
# HELP build_info The version.
# TYPE build_info gauge
build_info{version=\"1\"} 1
# TYPE odd untyped
odd 1
"
        );
    }

    #[test]
    fn counters_and_histograms_accumulate_but_gauges_do_not() {
        let file = |passes: u64, lag: f64, age: f64| {
            format!(
                "# TYPE passes_total counter\npasses_total{{exit=\"0\"}} {passes}\n\
                 # TYPE lag_seconds histogram\nlag_seconds_sum {lag}\n\
                 # TYPE age_seconds gauge\nage_seconds {age}\n\
                 # TYPE kept gauge\nkept {age}\n"
            )
        };
        let gauge = |name: &str| match name {
            "kept" => GaugeValue::EarlierOrNone,
            _ => GaugeValue::New,
        };
        let text = continued(&file(2, 0.5, 7.0), &file(3, 1.25, 9.0), gauge);
        let expected = file(5, 1.75, 7.0).replace("kept 7", "kept 9");
        assert_eq!(text, expected);
        // Before the first value is known, there is none.
        let expected = file(2, 0.5, 7.0).replace("kept 7\n", "");
        assert_eq!(continued(&file(2, 0.5, 7.0), "", gauge), expected);
    }

    #[test]
    fn missing_or_malformed_earlier_samples_count_as_zero() {
        let text = "# TYPE a_total counter\na_total 1\nb_total{x=\"a b\"} 2\n";
        for earlier in [
            "",
            "a_total\n",
            "a_total many",
            "a_total NaN\n",
            "a_total +Inf\nc_total 5\n",
            "\u{0}",
        ] {
            assert_eq!(
                continued(text, earlier, |_| GaugeValue::Earlier),
                text,
                "{earlier:?}"
            );
        }
    }
}
