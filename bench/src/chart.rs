//! A picture of a scenario: bars with their spread, as SVG.
//!
//! One panel a figure, one bar a contender: the bar ends at the median, the line across it goes from
//! the smallest to the largest value. Drawn here and not by plotters, which would cost
//! each cold build some 8 s of CPU time.

use std::fmt::Write;

use super::figures::{ContenderFigures, ScenarioFigures};
use super::role::Role;
use super::stats::Samples;
use super::unit::Unit;

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 16.0;
/// Where bars begin: names stand to the left.
const NAMES: f64 = 300.0;
/// Room for the value to the right of the longest bar.
const VALUES: f64 = 110.0;
const ROW: f64 = 20.0;
const BAR: f64 = 12.0;
const HEAD: f64 = 64.0;
const PANEL_HEAD: f64 = 44.0;
const PANEL_FOOT: f64 = 18.0;
const GRID_LINES: f64 = 4.0;

/// What a panel shows.
struct Panel {
    title: &'static str,
    unit: Unit,
    value: fn(&ContenderFigures) -> Option<&Samples>,
}

const PANELS: [Panel; 3] = [
    Panel {
        title: "total time",
        unit: Unit::Milliseconds,
        value: |c| c.total_ms.as_ref(),
    },
    Panel {
        title: "largest gap that the guest saw",
        unit: Unit::Milliseconds,
        value: |c| c.guest_gap_ms.as_ref(),
    },
    Panel {
        title: "CPU time of both sides, vCPUs aside",
        unit: Unit::Seconds,
        value: |c| c.cpu_s.as_ref(),
    },
];

/// The picture of a scenario.
pub(super) fn svg(figures: &ScenarioFigures, title: &str) -> String {
    let mut body = String::new();
    let mut y = HEAD;
    for panel in &PANELS {
        y = draw_panel(&mut body, panel, figures, y);
    }
    let height = y + MARGIN;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>{title}</title>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-size=\"15\" font-weight=\"bold\" fill=\"#1a1a1a\">{}</text>\n",
        escaped(figures.name),
        title = escaped(title),
    );
    text += &legend();
    text += &body;
    text += "</svg>\n";
    text
}

fn colour(role: Role) -> &'static str {
    match role {
        Role::Engine => "#0b6e4f",
        Role::PreparedEngine => "#85b7a7",
        Role::Peer => "#c06014",
        Role::PreparedPeer => "#e2b68d",
        Role::ColdLimit | Role::PopulatedLimit => "#7a869a",
    }
}

fn legend() -> String {
    let mut text = String::new();
    let mut x = MARGIN;
    for (role, label) in [
        (Role::Engine, "vmm"),
        (Role::Peer, "QEMU"),
        (Role::PreparedEngine, "vmm, memory ready before"),
        (Role::PreparedPeer, "QEMU, memory ready before"),
        (Role::ColdLimit, "plain copy over sockets"),
    ] {
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"38\" width=\"12\" height=\"12\" fill=\"{}\"/>\
             <text x=\"{}\" y=\"48\" fill=\"#1a1a1a\">{label}</text>",
            colour(role),
            x + 17.0
        );
        x += 17.0 + 7.0 * label.chars().count() as f64 + 22.0;
    }
    let _ = writeln!(
        text,
        "<text x=\"{}\" y=\"24\" text-anchor=\"end\" fill=\"#5a5a5a\">bar: median; line: smallest \
         to largest; shorter is better</text>",
        WIDTH - MARGIN
    );
    text
}

/// Draws a panel from `top` on; where it ends.
fn draw_panel(text: &mut String, panel: &Panel, figures: &ScenarioFigures, top: f64) -> f64 {
    let rows: Vec<_> = figures
        .contenders
        .iter()
        .filter_map(|contender| Some((contender, (panel.value)(contender)?)))
        .collect();
    let Some(most) = rows
        .iter()
        .map(|(_, samples)| samples.max)
        .max_by(f64::total_cmp)
        .filter(|most| *most > 0.0)
    else {
        return top;
    };
    let step = round_step(most / GRID_LINES);
    let end = step * (most / step).ceil();
    let x = |value: f64| NAMES + (WIDTH - MARGIN - VALUES - NAMES) * value / end;
    let (first, bottom) = (top + PANEL_HEAD, top + PANEL_HEAD + ROW * rows.len() as f64);
    let _ = writeln!(
        text,
        "<text x=\"{MARGIN}\" y=\"{}\" font-weight=\"bold\" fill=\"#1a1a1a\">{}</text>",
        top + 20.0,
        panel.title
    );
    let mut mark = 0.0;
    while mark <= end * 1.000_001 {
        let _ = writeln!(
            text,
            "<line x1=\"{0:.1}\" y1=\"{1:.1}\" x2=\"{0:.1}\" y2=\"{bottom:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{0:.1}\" y=\"{2:.1}\" text-anchor=\"middle\" font-size=\"11\" \
             fill=\"#5a5a5a\">{3}</text>",
            x(mark),
            first - 4.0,
            first - 8.0,
            panel.unit.show(mark)
        );
        mark += step;
    }
    for (index, (contender, samples)) in rows.iter().enumerate() {
        let middle = first + ROW * (index as f64 + 0.5);
        let weight = if matches!(contender.role, Role::Engine | Role::PreparedEngine) {
            " font-weight=\"bold\""
        } else {
            ""
        };
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#1a1a1a\"{weight}>{}</text>\
             <rect x=\"{NAMES}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\"/>\
             <line x1=\"{:.1}\" y1=\"{middle:.1}\" x2=\"{:.1}\" y2=\"{middle:.1}\" \
             stroke=\"#1a1a1a\" stroke-width=\"1.5\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#1a1a1a\"{weight}>{}</text>",
            NAMES - 8.0,
            middle + 4.0,
            escaped(&contender.name),
            middle - BAR / 2.0,
            x(samples.median) - NAMES,
            colour(contender.role),
            x(samples.min),
            x(samples.max),
            x(samples.max.max(samples.median)) + 6.0,
            middle + 4.0,
            panel.unit.show(samples.median)
        );
    }
    bottom + PANEL_FOOT
}

/// The smallest of 1, 2, 5, 10, 20, ... that is at least `least`.
fn round_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let step = steps
        .iter()
        .find(|step| **step * power >= least * 0.999_999);
    step.unwrap_or(&10.0) * power
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_numbers() {
        for (least, step) in [
            (0.9, 1.0),
            (1.0, 1.0),
            (1.2, 2.0),
            (30.0, 50.0),
            (0.013, 0.02),
            (600.0, 1000.0),
        ] {
            assert!(
                (round_step(least) - step).abs() < 1e-9,
                "{least}: {}",
                round_step(least)
            );
        }
    }

    #[test]
    fn names_cannot_break_the_picture() {
        assert_eq!(escaped("a<b>&c"), "a&lt;b&gt;&amp;c");
    }
}
