//! Samples and tables.

use serde_json::{Value, json};

/// Samples of one figure, sorted.
pub struct Samples(Vec<f64>);

impl Samples {
    /// Of values in any order.
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The value that `percent` of the samples do not exceed (nearest rank); 0 without samples.
    pub fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(rank).copied().unwrap_or(0.0)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Count, median, quartiles, 99th percentile and extremes.
    pub fn json(&self) -> Value {
        json!({
            "count": self.count(), "min": self.percentile(0), "p25": self.percentile(25), "p50": self.percentile(50),
            "p75": self.percentile(75), "p99": self.percentile(99), "max": self.percentile(100),
        })
    }
}

/// How one series compares with another taken in the same rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// Geometric mean of the rounds' ratios.
    pub mean: f64,
    /// Bounds of the 95 % confidence interval of it; none with fewer than two rounds.
    pub interval: Option<(f64, f64)>,
}

/// Student's t for 95 % (two-sided) by degrees of freedom, from 1.
const STUDENT: [f64; 15] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
];
/// The same for more.
const NORMAL: f64 = 1.96;

impl Ratio {
    /// `ours / theirs` in pairs: the logarithms of the pairs' ratios are taken for normally distributed. None where there
    /// are no pairs or one of the values is not positive.
    pub fn paired(ours: &[f64], theirs: &[f64]) -> Option<Self> {
        if ours.len() != theirs.len() || ours.iter().chain(theirs).any(|&value| value <= 0.0) {
            return None;
        }
        let logs: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| (ours / theirs).ln()).collect();
        let mean = average(&logs)?;
        let squares: Vec<f64> = logs.iter().map(|log| (log - mean).powi(2)).collect();
        let interval = average(&squares).filter(|_| logs.len() > 1).map(|variance| {
            // The deviation of the mean, with Bessel's correction.
            let freedom = logs.len() - 1;
            let half = STUDENT.get(freedom - 1).unwrap_or(&NORMAL) * (variance / float(freedom)).sqrt();
            ((mean - half).exp(), (mean + half).exp())
        });
        Some(Self { mean: mean.exp(), interval })
    }
}

fn average(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / float(values.len()))
}

/// A number of things as a figure.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub fn float(count: usize) -> f64 {
    count as f64
}

/// Prints rows of the same columns, the first aligned left, the others right.
pub fn table(header: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(header.get(column).map(|cell| cell.chars().count())).max().unwrap_or(0)
    };
    let print = |cells: &[String]| {
        let mut line = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let width = width(column);
            line.push_str(&if column == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") });
        }
        println!("{}", line.trim_end());
    };
    print(&header.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>());
    rows.iter().for_each(|row| print(row));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples = Samples::new((1..=200).rev().map(f64::from).collect());
        assert_eq!(samples.percentile(0), 1.0);
        assert_eq!(samples.percentile(50), 100.0);
        assert_eq!(samples.percentile(99), 198.0);
        assert_eq!(samples.percentile(100), 200.0);
        assert_eq!(Samples::new(Vec::new()).percentile(50), 0.0);
    }

    #[test]
    fn a_steady_ratio_has_a_narrow_interval() {
        let ratio = Ratio::paired(&[2.0, 20.0, 200.0], &[1.0, 10.0, 100.0]).unwrap();
        assert!((ratio.mean - 2.0).abs() < 1e-9);
        let (low, high) = ratio.interval.unwrap();
        assert!((high - low).abs() < 1e-9);
    }

    #[test]
    fn the_interval_is_students() {
        // Logarithms 0 and ln 4: mean ln 2, standard error ln 2, so that the half width is 12.706 of it.
        let ratio = Ratio::paired(&[1.0, 4.0], &[1.0, 1.0]).unwrap();
        assert!((ratio.mean - 2.0).abs() < 1e-9);
        let (low, high) = ratio.interval.unwrap();
        assert!((high.ln() - 2f64.ln() * 13.706).abs() < 1e-9, "{high}");
        assert!((low.ln() + 2f64.ln() * 11.706).abs() < 1e-9, "{low}");
    }

    #[test]
    fn without_pairs_there_is_no_ratio() {
        assert_eq!(Ratio::paired(&[], &[]), None);
        assert_eq!(Ratio::paired(&[1.0], &[]), None);
        assert_eq!(Ratio::paired(&[0.0], &[1.0]), None);
        assert_eq!(Ratio::paired(&[3.0], &[1.0]).unwrap().interval, None);
    }
}
