//! A small writer of plots: axes, bars with intervals or of parts, steps, and curves.

use std::fmt::Write;

/// Colours that stay apart for most eyes (Tol, muted), for schemes in their order.
pub const COLOURS: [&str; 10] =
    ["#332288", "#117733", "#999999", "#cc6677", "#88ccee", "#ddaa33", "#aa4499", "#44aa99", "#882255", "#666633"];

/// Text made fit for markup.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// One bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Its name.
    pub name: String,
    /// Its length.
    pub value: f64,
    /// From where to where it may be.
    pub interval: Option<(f64, f64)>,
    /// What stands at its end.
    pub label: String,
    /// Its colour.
    pub colour: &'static str,
}

const NAME: f64 = 165.0;
const LABEL: f64 = 150.0;
const ROW: f64 = 22.0;

/// Bars below each other, from 0, with a line at `mark` if there is one.
#[must_use]
pub fn bars(width: f64, bars: &[Bar], mark: Option<f64>) -> String {
    let height = ROW * bars.len() as f64 + 6.0;
    let most = bars.iter().map(|bar| bar.interval.map_or(bar.value, |(_, high)| high.max(bar.value)));
    let most = most.fold(mark.unwrap_or(0.0), f64::max).max(f64::MIN_POSITIVE);
    let x = |value: f64| NAME + value / most * (width - NAME - LABEL);
    let mut svg = open(width, height);
    if let Some(mark) = mark {
        line(&mut svg, (x(mark), 0.0), (x(mark), height), "#bbb");
    }
    for (i, bar) in bars.iter().enumerate() {
        let y = ROW * i as f64 + 3.0;
        let (middle, length) = (y + ROW / 2.0, (x(bar.value) - NAME).max(0.5));
        text(&mut svg, (NAME - 8.0, middle + 1.0), "end", &bar.name);
        let _ = write!(
            svg,
            "<rect x=\"{NAME}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"{}\" fill=\"{}\"/>",
            y + 3.0,
            ROW - 6.0,
            bar.colour
        );
        let mut end = x(bar.value);
        if let Some((low, high)) = bar.interval {
            line(&mut svg, (x(low), middle), (x(high), middle), "#222");
            for at in [low, high] {
                line(&mut svg, (x(at), middle - 4.0), (x(at), middle + 4.0), "#222");
            }
            end = end.max(x(high));
        }
        text(&mut svg, (end + 6.0, middle + 1.0), "start", &bar.label);
    }
    svg + "</svg>"
}

/// One line of steps: a name, the points (x ascending, y from 0 to 1), and a colour.
#[derive(Clone, Debug)]
pub struct Steps {
    /// Its name.
    pub name: String,
    /// Part of the samples that is at most so large.
    pub points: Vec<(f64, f64)>,
    /// Its colour.
    pub colour: &'static str,
}

/// Cumulative distributions over errors from 0.01% up, in decades; what is less stands at the left edge.
#[must_use]
pub fn distribution(width: f64, height: f64, lines: &[Steps]) -> String {
    let (left, right, top, bottom) = (48.0, 170.0, 10.0, 40.0);
    let most = lines.iter().flat_map(|line| line.points.iter().map(|point| point.0)).fold(1e-2, f64::max);
    let decades = (most.log10().ceil() + 4.0).max(1.0);
    let x = |error: f64| left + (error.max(1e-4).log10() + 4.0) / decades * (width - left - right);
    let y = |part: f64| top + (1.0 - part) * (height - top - bottom);
    let mut svg = open(width, height);
    for decade in 0..=decades as i32 {
        let error = 10f64.powi(decade - 4);
        line(&mut svg, (x(error), top), (x(error), height - bottom), "#ddd");
        let label = if decade == 0 { "≤0.01%".to_owned() } else { format!("{}%", error * 100.0) };
        text(&mut svg, (x(error), height - bottom + 16.0), "middle", &label);
    }
    for tenth in [0.0, 0.25, 0.5, 0.75, 1.0] {
        line(&mut svg, (left, y(tenth)), (width - right, y(tenth)), "#ddd");
        text(&mut svg, (left - 6.0, y(tenth)), "end", &format!("{:.0}%", tenth * 100.0));
    }
    text(&mut svg, ((left + width - right) / 2.0, height - 8.0), "middle", "relative error of Pss, at most");
    for (i, Steps { name, points, colour }) in lines.iter().enumerate() {
        // Lines that lie on each other show both as dashes.
        let dash = if i % 2 == 1 { " stroke-dasharray=\"6 4\"" } else { "" };
        let mut path = format!("M{:.1} {:.1}", x(0.0), y(0.0));
        for &(error, part) in points {
            let _ = write!(path, "H{:.1}V{:.1}", x(error), y(part));
        }
        let _ = write!(
            svg,
            "<path d=\"{path}H{:.1}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
            width - right
        );
        let at = top + 10.0 + 18.0 * i as f64;
        let _ = write!(
            svg,
            "<path d=\"M{:.1} {at:.1}h24\" stroke=\"{colour}\" stroke-width=\"3\"{dash}/>",
            width - right + 12.0
        );
        text(&mut svg, (width - right + 42.0, at), "start", name);
    }
    svg + "</svg>"
}

/// One bar of parts that lie behind each other: each a length and a colour.
#[derive(Clone, Debug)]
pub struct Stack {
    /// Its name.
    pub name: String,
    /// Its parts; lengths below zero are left out.
    pub parts: Vec<(f64, &'static str)>,
    /// What stands at its end.
    pub label: String,
}

/// Bars of parts, below each other, from 0; the legend names the colours.
#[must_use]
pub fn stacks(width: f64, stacks: &[Stack], legend: &[(&str, &'static str)]) -> String {
    const HEAD: f64 = 26.0;
    let height = HEAD + ROW * stacks.len() as f64 + 6.0;
    let sum = |stack: &Stack| stack.parts.iter().map(|part| part.0.max(0.0)).sum::<f64>();
    let most = stacks.iter().map(sum).fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = open(width, height);
    let mut at = 8.0;
    for &(name, colour) in legend {
        rect(&mut svg, (at, 6.0), (12.0, 12.0), colour);
        text(&mut svg, (at + 17.0, 13.0), "start", name);
        at += 38.0 + 6.6 * name.len() as f64;
    }
    for (i, stack) in stacks.iter().enumerate() {
        let y = HEAD + ROW * i as f64 + 3.0;
        text(&mut svg, (NAME - 8.0, y + ROW / 2.0 + 1.0), "end", &stack.name);
        let mut x = NAME;
        for &(length, colour) in stack.parts.iter().filter(|part| part.0 > 0.0) {
            let length = length / most * (width - NAME - LABEL);
            rect(&mut svg, (x, y + 3.0), (length, ROW - 6.0), colour);
            x += length;
        }
        text(&mut svg, (x + 6.0, y + ROW / 2.0 + 1.0), "start", &stack.label);
    }
    svg + "</svg>"
}

/// One axis of [`curves`], in the units of its points.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it shows.
    pub label: String,
    /// Where it begins.
    pub low: f64,
    /// Where it ends.
    pub high: f64,
    /// Where lines cross it, and what stands there.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// The logarithms (to 10) of nanoseconds around `values`, which are nanoseconds; with more ticks where there are fewer decades.
    #[must_use]
    pub fn of_time(label: &str, values: impl Iterator<Item = f64> + Clone) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min).max(1e-3).log10();
        let high = values.fold(1e-3, f64::max).log10();
        let (low, high) = if low < high { (low - 0.08, high + 0.08) } else { (high - 0.5, high + 0.5) };
        let steps: &[f64] = match high - low {
            decades if decades < 2.5 => &[1.0, 2.0, 5.0],
            decades if decades < 4.0 => &[1.0, 3.0],
            _ => &[1.0],
        };
        let decades = low.floor() as i32..=high.ceil() as i32;
        let ticks = decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
        let name = |ns: f64| match ns {
            ns if ns < 1e3 => format!("{} ns", trim(ns)),
            ns if ns < 1e6 => format!("{} us", trim(ns / 1e3)),
            ns => format!("{} ms", trim(ns / 1e6)),
        };
        let ticks = ticks.map(|ns| (ns.log10(), name(ns))).filter(|(at, _)| (low..=high).contains(at)).collect();
        Self { label: label.to_owned(), low, high, ticks }
    }
}

/// A number without noughts behind it.
fn trim(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A line through points.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Its name in the legend; none for one that goes with the line before.
    pub name: Option<String>,
    /// The points.
    pub points: Vec<(f64, f64)>,
    /// Its colour.
    pub colour: &'static str,
    /// Whether it is dashed.
    pub is_dashed: bool,
    /// Whether each point has a dot.
    pub has_dots: bool,
}

/// Curves over two axes.
#[must_use]
pub fn curves(width: f64, height: f64, x: &Axis, y: &Axis, curves: &[Curve]) -> String {
    let (left, right, top, bottom) = (72.0, 190.0, 10.0, 44.0);
    let at = |(px, py): (f64, f64)| {
        (
            left + (px - x.low) / (x.high - x.low) * (width - left - right),
            height - bottom - (py - y.low) / (y.high - y.low) * (height - top - bottom),
        )
    };
    let mut svg = open(width, height);
    for (tick, label) in &x.ticks {
        let (px, _) = at((*tick, y.low));
        line(&mut svg, (px, top), (px, height - bottom), "#e4e4e4");
        text(&mut svg, (px, height - bottom + 15.0), "middle", label);
    }
    for (tick, label) in &y.ticks {
        let (_, py) = at((x.low, *tick));
        line(&mut svg, (left, py), (width - right, py), "#e4e4e4");
        text(&mut svg, (left - 6.0, py), "end", label);
    }
    text(&mut svg, ((left + width - right) / 2.0, height - 10.0), "middle", &x.label);
    let _ = write!(
        svg,
        "<text transform=\"translate(12 {:.1}) rotate(-90)\" text-anchor=\"middle\" dominant-baseline=\"middle\">{}</text>",
        (top + height - bottom) / 2.0,
        escape(&y.label)
    );
    let mut legend = top + 10.0;
    for curve in curves {
        let dash = if curve.is_dashed { " stroke-dasharray=\"5 4\"" } else { "" };
        let mut path = String::new();
        for (i, &point) in curve.points.iter().enumerate() {
            let (px, py) = at(point);
            let _ = write!(path, "{}{px:.1} {py:.1}", if i == 0 { "M" } else { "L" });
            if curve.has_dots {
                let _ = write!(svg, "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3\" fill=\"{}\"/>", curve.colour);
            }
        }
        let _ =
            write!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.8\"{dash}/>", curve.colour);
        if let Some(name) = &curve.name {
            let px = width - right + 12.0;
            let _ = write!(
                svg,
                "<path d=\"M{px:.1} {legend:.1}h24\" stroke=\"{}\" stroke-width=\"3\"{dash}/>",
                curve.colour
            );
            text(&mut svg, (px + 30.0, legend), "start", name);
            legend += 18.0;
        }
    }
    svg + "</svg>"
}

fn rect(svg: &mut String, (x, y): (f64, f64), (width, height): (f64, f64), colour: &str) {
    let _ =
        write!(svg, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>");
}

fn open(width: f64, height: f64) -> String {
    format!("<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">")
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str) {
    let _ = write!(svg, "<path d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" stroke=\"{colour}\"/>");
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let _ = write!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" dominant-baseline=\"middle\">{}</text>",
        escape(text)
    );
}
