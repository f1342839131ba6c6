//! The figures as a plot: for each shape, the mean lag of each schedule against its requests.

use std::fmt::Write;

pub(crate) const SCHEDULES: [&str; 4] = [
    "every 5 s",
    "a tenth of the age",
    "request budget",
    "best in hindsight",
];
const COLORS: [&str; 4] = ["#8c8c8c", "#d95f02", "#1f6feb", "#2a9d5c"];

/// Of a panel, and around it.
const WIDTH: f64 = 168.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 62.0;
const GAP: f64 = 18.0;
const BOTTOM: f64 = 48.0;
/// Seconds, on a logarithmic scale, and requests a voice.
const LEAST_LAG: f64 = 0.1;
const MOST_LAG: f64 = 20.0;
const MOST_REQUESTS: f64 = 1.4;

/// What one schedule came to.
#[derive(Clone, Copy)]
pub(crate) struct Point {
    pub(crate) mean_lag: f64,
    pub(crate) requests: f64,
}

/// Each shape with the points of all schedules, in their order.
pub(crate) fn svg(shapes: &[(&str, [Point; 4])]) -> String {
    let width = LEFT + shapes.len() as f64 * (WIDTH + GAP);
    let height = TOP + HEIGHT + BOTTOM;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"Mean lag against requests a voice, for five shapes of completion times\">\n\
         <style>text{{font:12px system-ui,sans-serif;fill:#57606a}}.title{{font-weight:600}}\
         .axis{{stroke:#8b949e;fill:none}}.grid{{stroke:#8b949e;stroke-opacity:.25}}</style>\n"
    );
    // Writing to a string cannot fail.
    let _never = write(&mut svg, shapes);
    svg.push_str("</svg>\n");
    svg
}

fn write(svg: &mut String, shapes: &[(&str, [Point; 4])]) -> std::fmt::Result {
    for (at, (name, color)) in SCHEDULES.iter().zip(COLORS).enumerate() {
        let x = LEFT + 190.0 * at as f64;
        writeln!(
            svg,
            "<circle cx=\"{x}\" cy=\"16\" r=\"5\" fill=\"{color}\"/>"
        )?;
        writeln!(svg, "<text x=\"{}\" y=\"20\">{name}</text>", x + 12.0)?;
    }
    let axis = TOP + HEIGHT + 34.0;
    writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{axis}\">requests a voice</text>"
    )?;
    let middle = TOP + HEIGHT / 2.0;
    writeln!(
        svg,
        "<text transform=\"translate(14 {middle}) rotate(-90)\" text-anchor=\"middle\">mean lag, s</text>"
    )?;
    for (at, (shape, points)) in shapes.iter().enumerate() {
        let left = LEFT + at as f64 * (WIDTH + GAP);
        panel(svg, left, shape, points, at == 0)?;
    }
    Ok(())
}

fn panel(
    svg: &mut String,
    left: f64,
    shape: &str,
    points: &[Point; 4],
    is_first: bool,
) -> std::fmt::Result {
    let x = |requests: f64| left + WIDTH * (requests / MOST_REQUESTS).clamp(0.0, 1.0);
    let y = |lag: f64| {
        let share = (lag / LEAST_LAG).ln() / (MOST_LAG / LEAST_LAG).ln();
        TOP + HEIGHT * (1.0 - share.clamp(0.0, 1.0))
    };
    let bottom = TOP + HEIGHT;
    writeln!(
        svg,
        "<text class=\"title\" x=\"{left}\" y=\"{}\">{shape}</text>",
        TOP - 10.0
    )?;
    for lag in [0.1, 1.0, 10.0] {
        let (y, right) = (y(lag), left + WIDTH);
        writeln!(svg, "<path class=\"grid\" d=\"M{left} {y:.1}H{right}\"/>")?;
        if is_first {
            let (x, y) = (left - 8.0, y + 4.0);
            writeln!(
                svg,
                "<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{lag}</text>"
            )?;
        }
    }
    for requests in [0.0, 0.5, 1.0] {
        let (x, y) = (x(requests), bottom + 16.0);
        writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{requests}</text>"
        )?;
    }
    writeln!(
        svg,
        "<path class=\"axis\" d=\"M{left} {TOP}V{bottom}H{}\"/>",
        left + WIDTH
    )?;
    for ((point, color), name) in points.iter().zip(COLORS).zip(SCHEDULES) {
        let Point { mean_lag, requests } = *point;
        writeln!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\" fill=\"{color}\"><title>{name}: {mean_lag:.2} s, {requests:.3} requests a voice</title></circle>",
            x(requests),
            y(mean_lag)
        )?;
    }
    Ok(())
}
