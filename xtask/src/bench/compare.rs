//! Figures of Keelson beside those of a peer, taken in the same rounds.

use serde_json::{Map, Value, json};

use super::stats::{Ratio, Samples, table};

/// Whose figure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Keelson's.
    Ours,
    /// The peer's.
    Peers,
}

/// The figures, in the order in which they were first given.
#[derive(Debug, Default)]
pub struct Comparison {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    unit: &'static str,
    /// One a round.
    ours: Vec<f64>,
    peers: Vec<f64>,
}

impl Comparison {
    /// Adds the figure of one more round.
    pub fn add(&mut self, whose: Whose, name: &str, unit: &'static str, value: f64) {
        let place = self.rows.iter().position(|row| row.name == name && row.unit == unit);
        let place = place.unwrap_or_else(|| {
            self.rows.push(Row { name: name.to_owned(), unit, ours: Vec::new(), peers: Vec::new() });
            self.rows.len() - 1
        });
        if let Some(row) = self.rows.get_mut(place) {
            match whose {
                Whose::Ours => row.ours.push(value),
                Whose::Peers => row.peers.push(value),
            }
        }
    }

    /// Prints medians, extremes, and the ratio with its confidence interval.
    pub fn print(&self, peer: &str) {
        let cells: Vec<Vec<String>> = self.rows.iter().map(Row::cells).collect();
        table(&["", "", "Keelson", "min – max", peer, "min – max", "ratio", "95 %"], &cells);
    }

    /// By name and unit: each round's figures, and their ratio.
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| (format!("{}, {}", row.name, row.unit), row.json()));
        Value::Object(rows.collect::<Map<_, _>>())
    }
}

impl Row {
    fn ratio(&self) -> Option<Ratio> {
        Ratio::paired(&self.ours, &self.peers)
    }

    fn cells(&self) -> Vec<String> {
        let mut cells = vec![self.name.clone(), self.unit.to_owned()];
        for values in [&self.ours, &self.peers] {
            let samples = Samples::new(values.clone());
            let extremes = [0, 100].map(|percent| digits(samples.percentile(percent)));
            cells.extend(match samples.count() {
                0 => [String::from("–"), String::new()],
                1 => [digits(samples.percentile(50)), String::new()],
                _ => [digits(samples.percentile(50)), extremes.join(" – ")],
            });
        }
        let ratio = self.ratio();
        cells.push(ratio.map(|ratio| format!("{:.2}", ratio.mean)).unwrap_or_default());
        let interval = ratio.and_then(|ratio| ratio.interval);
        cells.push(interval.map(|(low, high)| format!("{low:.2} – {high:.2}")).unwrap_or_default());
        cells
    }

    fn json(&self) -> Value {
        let ratio = self.ratio();
        json!({
            "Keelson": self.ours, "peer": self.peers, "ratio": ratio.map(|ratio| ratio.mean),
            "ratio, 95 %": ratio.and_then(|ratio| ratio.interval),
        })
    }
}

/// Three digits that count, more before the point.
pub fn digits(value: f64) -> String {
    match value.abs() {
        small if small < 10.0 => format!("{value:.2}"),
        middle if middle < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_medians_extremes_and_ratio() {
        let mut comparison = Comparison::default();
        for (ours, peers) in [(100.0, 50.0), (120.0, 60.0), (110.0, 55.0)] {
            comparison.add(Whose::Peers, "get", "ops/s", peers);
            comparison.add(Whose::Ours, "get", "ops/s", ours);
        }
        comparison.add(Whose::Ours, "alone", "ms", 1.5);
        let cells: Vec<Vec<String>> = comparison.rows.iter().map(Row::cells).collect();
        assert_eq!(
            cells[0],
            ["get", "ops/s", "110", "100 – 120", "55.0", "50.0 – 60.0", "2.00", "2.00 – 2.00"]
        );
        assert_eq!(cells[1], ["alone", "ms", "1.50", "", "–", "", "", ""]);
        let json = comparison.json();
        assert_eq!(json["get, ops/s"]["Keelson"], json!([100.0, 120.0, 110.0]));
        assert_eq!(json["alone, ms"]["ratio"], Value::Null);
    }
}
