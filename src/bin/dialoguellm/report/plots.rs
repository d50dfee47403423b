//! Plots as SVG, each with what it says in words.

use super::percent;
use dialoguellm::emotion::trust::{Bin, ece_of, risk_at};
use dialoguellm::{Error, Result};
use plotters::prelude::*;
use serde_json::{Value, json};
use std::ops::Range;

/// A plot and what it says in words.
fn plot(id: &str, says: String, svg: String) -> Value {
    json!({"id": id, "says": says, "svg": svg})
}

/// `before`: before calibration, none where there is none.
pub fn reliability_plot(bins: &[Bin], before: &[Bin]) -> Result<Value> {
    let mut says = format!(
        "Reliability: the part of answers that is right against their probability, in {} bins of as many turns; the \
         distance from the diagonal is {} in the mean.",
        bins.len(),
        percent(ece_of(bins))
    );
    if !before.is_empty() {
        says += &format!(" The thin line is before calibration: {}.", percent(ece_of(before)));
    }
    let line = |bins: &[Bin]| bins.iter().map(|bin| (bin.confidence, bin.accuracy)).collect::<Vec<_>>();
    let axes = Axes { x: "probability", y: "right", x_range: 0.0..1.0, y_range: 0.0..1.0 };
    let (thin, strong) = (line(before), line(bins));
    let curves = [Curve::plain(&[(0.0, 0.0), (1.0, 1.0)]), Curve::plain(&thin), Curve::marked(&strong)];
    Ok(plot("reliability", says, axes.draw(&curves)?))
}

pub fn risk_plot(points: &[(f64, f64)]) -> Result<Value> {
    let at = |coverage| risk_at(points, coverage).map_or("-".to_owned(), percent);
    let says = format!(
        "Risk and coverage: the part of answers that is wrong if only the most confident are given; {} of all, {} of the \
         most confident 80 %, {} of half.",
        at(1.0),
        at(0.8),
        at(0.5)
    );
    let top = points.iter().map(|(_, risk)| *risk).fold(0.05, f64::max);
    let axes = Axes { x: "answered", y: "wrong", x_range: 0.0..1.0, y_range: 0.0..top };
    Ok(plot("risk", says, axes.draw(&[Curve::line(points)])?))
}

/// Loss, learning rate and dev scores, where training left them.
pub fn training_plots(metrics: &[Value]) -> Result<Vec<Value>> {
    let series = |x: &str, y: &str| -> Vec<(f64, f64)> {
        metrics.iter().filter_map(|line| Some((line.get(x)?.as_f64()?, line.get(y)?.as_f64()?))).collect()
    };
    let (loss, rate, dev) = (series("step", "loss"), series("step", "lr"), series("step", "weighted_f1"));
    let mut all = Vec::new();
    let smooth = smoothed(&loss, 20);
    if let (Some(first), Some(last)) = (smooth.first(), smooth.last()) {
        let says = format!("Loss by step, the mean of 20 steps: {:.3} first, {:.3} last.", first.1, last.1);
        all.push(plot("loss", says, Axes::around("step", "loss", &smooth).draw(&[Curve::line(&smooth)])?));
    }
    if let Some(most) = rate.iter().map(|(_, rate)| *rate).reduce(f64::max) {
        let says = format!("Learning rate by step, at most {most:.1e}.");
        all.push(plot("rate", says, Axes::around("step", "rate", &rate).draw(&[Curve::line(&rate)])?));
    }
    if let Some(best) = dev.iter().map(|(_, f1)| *f1).reduce(f64::max) {
        let says = format!("Weighted F1 of the dev split by step, at best {}.", percent(best));
        all.push(plot("dev", says, Axes::around("step", "weighted F1", &dev).draw(&[Curve::marked(&dev)])?));
    }
    Ok(all)
}

/// A tick's number without zeros at its end.
fn short(x: &f64) -> String {
    format!("{}", (x * 1e6).round() / 1e6)
}

/// The mean of each `n` points.
fn smoothed(points: &[(f64, f64)], n: usize) -> Vec<(f64, f64)> {
    let mean =
        |some: &[(f64, f64)]| (some[some.len() - 1].0, some.iter().map(|(_, y)| y).sum::<f64>() / some.len() as f64);
    points.chunks(n).map(mean).collect()
}

/// A line of points, perhaps with a dot at each.
struct Curve<'a> {
    points: &'a [(f64, f64)],
    strong: bool,
    dots: bool,
}

impl<'a> Curve<'a> {
    fn plain(points: &'a [(f64, f64)]) -> Self {
        Self { points, strong: false, dots: false }
    }
    fn line(points: &'a [(f64, f64)]) -> Self {
        Self { points, strong: true, dots: false }
    }
    fn marked(points: &'a [(f64, f64)]) -> Self {
        Self { points, strong: true, dots: true }
    }
}

/// The page's style sheet gives these three colours others.
const INK: RGBColor = BLACK;
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
const MARK: RGBColor = RGBColor(0x33, 0x66, 0x99);

struct Axes<'a> {
    x: &'a str,
    y: &'a str,
    x_range: Range<f64>,
    y_range: Range<f64>,
}

impl<'a> Axes<'a> {
    /// Around all points, from 0 on.
    fn around(x: &'a str, y: &'a str, points: &[(f64, f64)]) -> Self {
        let most = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).filter(|v| v.is_finite()).fold(0.0, f64::max);
        let above = |v: f64| if v > 0.0 { 1.02 * v } else { 1.0 };
        Self { x, y, x_range: 0.0..above(most(|p| p.0)), y_range: 0.0..above(most(|p| p.1)) }
    }

    fn draw(&self, curves: &[Curve]) -> Result<String> {
        let mut svg = String::new();
        self.draw_on(&mut svg, curves).map_err(|error| Error::internal(format!("a plot: {error}")))?;
        Ok(svg)
    }

    fn draw_on(&self, svg: &mut String, curves: &[Curve]) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::with_string(svg, (480, 320)).into_drawing_area();
        let text = ("sans-serif", 14).into_font().color(&INK);
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(self.x_range.clone(), self.y_range.clone())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .label_style(text.clone())
            .axis_desc_style(text)
            .x_label_formatter(&short)
            .y_label_formatter(&short)
            .x_labels(6)
            .y_labels(6)
            .x_desc(self.x)
            .y_desc(self.y)
            .draw()?;
        for curve in curves {
            let color = if curve.strong { MARK } else { INK };
            let points = || curve.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite());
            chart.draw_series(LineSeries::new(points(), color.stroke_width(if curve.strong { 2 } else { 1 })))?;
            if curve.dots {
                chart.draw_series(points().map(|point| Circle::new(point, 4, color.filled())))?;
            }
        }
        area.present()?;
        Ok(())
    }
}

/// Means with their deviations, side by side.
pub fn spread_plot(what: &str, points: &[(String, f64, f64)]) -> Result<Value> {
    let words: Vec<String> =
        points.iter().map(|(name, mean, deviation)| format!("{name} {mean:.2} ± {deviation:.2}")).collect();
    let mut svg = String::new();
    draw_spread(&mut svg, what, points).map_err(|error| Error::internal(format!("a plot: {error}")))?;
    Ok(plot("spread", format!("{what}: {}.", words.join("; ")), svg))
}

fn draw_spread(
    svg: &mut String,
    what: &str,
    points: &[(String, f64, f64)],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let ends = || points.iter().flat_map(|(_, mean, deviation)| [mean - deviation, mean + deviation]);
    let (low, high) = (ends().fold(f64::INFINITY, f64::min), ends().fold(f64::NEG_INFINITY, f64::max));
    let room = (0.15 * (high - low)).max(0.5);
    let area = SVGBackend::with_string(svg, (960, 320)).into_drawing_area();
    let text = ("sans-serif", 14).into_font().color(&INK);
    let mut chart = ChartBuilder::on(&area)
        .margin(8)
        .x_label_area_size(40)
        .y_label_area_size(56)
        // the last one is inside too
        .build_cartesian_2d((0..points.len().saturating_sub(1).max(1)).into_segmented(), low - room..high + room)?;
    let name = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(i) => points.get(*i).map_or(String::new(), |(name, ..)| name.clone()),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(text.clone())
        .axis_desc_style(text)
        .x_labels(points.len())
        .x_label_formatter(&name)
        .y_label_formatter(&short)
        .y_labels(6)
        .y_desc(what)
        .draw()?;
    for (i, (_, mean, deviation)) in points.iter().enumerate() {
        let at = |y: f64| (SegmentValue::CenterOf(i), y);
        chart.draw_series(std::iter::once(PathElement::new(
            vec![at(mean - deviation), at(mean + deviation)],
            MARK.stroke_width(2),
        )))?;
        chart.draw_series(std::iter::once(Circle::new(at(*mean), 4, MARK.filled())))?;
    }
    area.present()?;
    Ok(())
}
