//! From OpenMetrics to Prometheus' own text format, version 0.0.4, which node_exporter's textfile collector, promtool and
//! older scrapers read: <https://prometheus.io/docs/instrumenting/exposition_formats/>. Pure.
//!
//! The samples are the same. What differs is the metadata: a counter is described by the name of its samples, an info
//! metric is a gauge, and there are neither units nor an end.

/// The same metrics in the text format.
pub(super) fn from_openmetrics(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // HELP comes before TYPE, on which its name depends.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_as_the_text_format_has_it() {
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
}
