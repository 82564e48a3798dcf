//! The picture: a small bar chart for each figure, every bar with its number.

use std::fmt::Write;

/// One figure of all competitors.
pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    pub(crate) unit: &'a str,
    pub(crate) more_is_better: bool,
    pub(crate) bars: Vec<(&'a str, f64)>,
}

const WIDTH: usize = 460;
const LABEL: usize = 200;
const BAR: usize = 16;
const STEP: usize = 22;
const COLUMNS: usize = 2;

/// Colours that are told apart without colour vision, too: ours dark, the floor pale.
fn color(name: &str) -> &'static str {
    match name {
        name if name.starts_with("twill") => "#1b5e8c",
        name if name.starts_with("floor") => "#b9c4cc",
        _ => "#d9822b",
    }
}

/// Draws all charts in two columns.
pub(crate) fn draw(title: &str, subtitle: &str, charts: &[Chart<'_>]) -> String {
    let bars = charts.iter().map(|chart| chart.bars.len()).max().unwrap_or(0);
    let cell = 46 + bars * STEP;
    let rows = charts.len().div_ceil(COLUMNS);
    let (width, height) = (COLUMNS * WIDTH + 20, 70 + rows * cell);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"#ffffff\"/>\n<text x=\"20\" y=\"30\" font-size=\"20\" font-weight=\"bold\">{}\
         </text>\n<text x=\"20\" y=\"50\" fill=\"#555555\">{}</text>\n",
        escape(title),
        escape(subtitle)
    );
    for (index, chart) in charts.iter().enumerate() {
        let (column, row) = (index % COLUMNS, index / COLUMNS);
        draw_chart(&mut svg, chart, 20 + column * WIDTH, 70 + row * cell);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_chart(svg: &mut String, chart: &Chart<'_>, x: usize, y: usize) {
    let better = if chart.more_is_better { "more is better" } else { "less is better" };
    let most = chart.bars.iter().map(|bar| bar.1).fold(0.0, f64::max);
    // Writing to a String cannot fail.
    let _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{}\" font-weight=\"bold\">{} <tspan font-weight=\"normal\" \
         fill=\"#555555\">({}, {better})</tspan></text>",
        y + 16,
        escape(chart.title),
        escape(chart.unit)
    );
    for (index, (name, value)) in chart.bars.iter().enumerate() {
        let top = y + 26 + index * STEP;
        let room = f64::from(u16::try_from(WIDTH - LABEL - 90).unwrap_or(u16::MAX));
        let length = if most > 0.0 { value / most * room } else { 0.0 };
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n<rect x=\"{}\" y=\"{top}\" \
             width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\"/>\n<text x=\"{:.1}\" y=\"{}\">{value:.2}\
             </text>",
            x + LABEL - 8,
            top + 12,
            escape(name),
            x + LABEL,
            length.max(1.0),
            color(name),
            f64::from(u16::try_from(x + LABEL + 6).unwrap_or(u16::MAX)) + length,
            top + 12,
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_has_its_name_and_number() {
        let chart = Chart {
            title: "ADD <p50>",
            unit: "ms",
            more_is_better: false,
            bars: vec![("twill", 1.5), ("ptp & co", 6.0)],
        };
        let svg = draw("T", "s", &[chart]);
        for part in ["ADD &lt;p50&gt;", "twill", "ptp &amp; co", "1.50", "6.00", "less is better"] {
            assert!(svg.contains(part), "no {part} in {svg}");
        }
        assert_eq!(svg.matches("<rect").count(), 3, "two bars and the ground");
    }
}
