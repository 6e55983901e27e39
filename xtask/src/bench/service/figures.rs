//! Figures by the number of Services, by what was measured, and by the way that it went.

use serde_json::{Value, json};

use super::super::compare::digits;
use super::super::stats::{Ratio, Samples, table};

/// A way from a client to an endpoint.
#[derive(Debug, Clone)]
pub struct Way {
    /// Name in the table.
    pub name: String,
    /// Index of the host.
    pub place: usize,
    /// By the Services' ClusterIPs, not by the endpoint's address.
    pub services: bool,
    /// From outside of the cgroup in which sockets see Services.
    pub outside: bool,
    /// Name of the direct way that it is compared with.
    pub direct: Option<String>,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
struct What {
    services: usize,
    name: String,
    unit: &'static str,
}

#[derive(Debug)]
struct Row {
    what: What,
    way: String,
    /// One a round.
    values: Vec<f64>,
}

/// The figures, in the order in which they were first given.
#[derive(Debug, Default)]
pub struct Figures {
    rows: Vec<Row>,
}

/// Whom the others are compared with.
pub struct Compared<'a> {
    pub ways: &'a [Way],
    /// Name of the way on a host without a proxy.
    pub bare: &'a str,
    /// Name of our way.
    pub ours: &'a str,
}

impl Compared<'_> {
    fn direct(&self, way: &str) -> Option<&str> {
        self.ways.iter().find(|known| known.name == way)?.direct.as_deref()
    }

    /// Whether it is another proxy's way.
    fn is_rival(&self, way: &str) -> bool {
        way != self.ours && self.ways.iter().any(|known| known.name == way && known.services)
    }
}

impl Figures {
    /// Adds the figure of one more round.
    pub fn add(&mut self, services: usize, name: &str, unit: &'static str, way: &str, value: f64) {
        let what = What { services, name: name.to_owned(), unit };
        match self.rows.iter_mut().find(|row| row.what == what && row.way == way) {
            Some(row) => row.values.push(value),
            None => self.rows.push(Row { what, way: way.to_owned(), values: vec![value] }),
        }
    }

    fn values(&self, what: &What, way: &str) -> Option<&[f64]> {
        let row = self.rows.iter().find(|row| row.what == *what && row.way == way)?;
        Some(&row.values)
    }

    /// What was measured, each once, in order.
    fn all(&self) -> Vec<&What> {
        let mut all: Vec<&What> = Vec::new();
        for row in &self.rows {
            if !all.contains(&&row.what) {
                all.push(&row.what);
            }
        }
        all
    }

    /// The ratio of one way's figures to another's.
    fn ratio(&self, what: &What, way: &str, to: &str) -> Option<Ratio> {
        Ratio::paired(self.values(what, way)?, self.values(what, to)?).filter(|_| way != to)
    }

    /// To its direct way, to the one on a host without a proxy, and ours to it.
    fn ratios(&self, what: &What, way: &str, compared: &Compared<'_>) -> [Option<Ratio>; 3] {
        [
            compared.direct(way).and_then(|direct| self.ratio(what, way, direct)),
            self.ratio(what, way, compared.bare),
            self.ratio(what, compared.ours, way).filter(|_| compared.is_rival(way)),
        ]
    }

    /// Figures with so many Services to those with the fewest: 1 is flat.
    fn growth(&self, compared: &Compared<'_>) -> Vec<(&Row, usize, Ratio)> {
        let through = |row: &&Row| compared.ways.iter().any(|way| way.services && way.name == row.way);
        let fewest = self.rows.iter().map(|row| row.what.services).min().unwrap_or_default();
        let grown = self.rows.iter().filter(through).filter(|row| row.what.services > fewest);
        grown
            .filter_map(|row| {
                let what = What { services: fewest, ..row.what.clone() };
                let ratio = Ratio::paired(&row.values, self.values(&what, &row.way)?)?;
                Some((row, fewest, ratio))
            })
            .collect()
    }

    /// Prints medians, extremes and ratios.
    pub fn print(&self, compared: &Compared<'_>) {
        let mut cells: Vec<Vec<String>> = Vec::new();
        for what in self.all() {
            let title = format!("{}: {}", counted(what.services), what.name);
            let rows = || self.rows.iter().filter(|row| row.what == *what);
            if rows().all(|row| row.values.iter().all(|&value| value == 0.0)) {
                cells.push(vec![format!("{title}: 0 everywhere")]);
                continue;
            }
            cells.push(vec![title]);
            for row in rows() {
                let samples = Samples::new(row.values.clone());
                let [least, median, most] = [0, 50, 100].map(|percent| digits(samples.percentile(percent)));
                let extremes =
                    if samples.count() > 1 { format!("{least} – {most}") } else { String::new() };
                let mut line = vec![format!("  {}", row.way), what.unit.to_owned(), median, extremes];
                line.extend(self.ratios(what, &row.way, compared).map(shown));
                cells.push(line);
            }
        }
        table(&["", "", "median", "min – max", "to direct", "to no proxy", "Keelson to it"], &cells);
        let grown: Vec<Vec<String>> = self
            .growth(compared)
            .into_iter()
            .map(|(row, fewest, ratio)| {
                let what = format!("{}, {}: {}", row.what.name, row.what.unit, row.way);
                vec![what, format!("{} to {fewest}", row.what.services), shown(Some(ratio))]
            })
            .collect();
        if !grown.is_empty() {
            println!();
            table(&["with many Services to few", "Services", "ratio"], &grown);
        }
    }

    /// The same for programs.
    pub fn json(&self, compared: &Compared<'_>) -> Value {
        let rows = self.rows.iter().map(|row| {
            let [direct, bare, ours] = self.ratios(&row.what, &row.way, compared).map(told);
            json!({
                "Services": row.what.services, "what": row.what.name, "unit": row.what.unit, "way": row.way,
                "values": row.values, "to direct": direct, "to no proxy": bare, "Keelson to it": ours,
            })
        });
        let growth = self.growth(compared).into_iter().map(|(row, fewest, ratio)| {
            json!({
                "what": row.what.name, "unit": row.what.unit, "way": row.way,
                "Services": [row.what.services, fewest], "ratio": told(Some(ratio)),
            })
        });
        json!({"rows": rows.collect::<Vec<_>>(), "growth": growth.collect::<Vec<_>>()})
    }
}

fn counted(services: usize) -> String {
    if services == 1 { "1 Service".to_owned() } else { format!("{services} Services") }
}

/// A ratio with its 95 % confidence interval.
fn shown(ratio: Option<Ratio>) -> String {
    let Some(ratio) = ratio else { return String::new() };
    let interval = ratio.interval.map(|(low, high)| format!(" ({low:.2} – {high:.2})")).unwrap_or_default();
    format!("{:.2}{interval}", ratio.mean)
}

fn told(ratio: Option<Ratio>) -> Value {
    ratio.map_or(Value::Null, |ratio| json!({"mean": ratio.mean, "95 %": ratio.interval}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_is_compared_with_what_it_should_be() {
        let way = |name: &str, services, direct: Option<&str>| Way {
            name: name.to_owned(),
            place: 0,
            services,
            outside: false,
            direct: direct.map(str::to_owned),
        };
        let ways = [
            way("bare", false, None),
            way("here", false, None),
            way("ours", true, Some("here")),
            way("peer", true, None),
        ];
        let compared = Compared { ways: &ways, bare: "bare", ours: "ours" };
        let mut figures = Figures::default();
        for (services, scale) in [(1, 1.0), (10, 0.5)] {
            for round in [1.0, 2.0] {
                for (way, value) in [("bare", 100.0), ("here", 80.0), ("ours", 60.0), ("peer", 30.0)] {
                    figures.add(services, "rate", "1/s", way, value * round * scale);
                }
            }
        }
        let what = figures.all()[0].clone();
        let means = |way: &str| {
            figures
                .ratios(&what, way, &compared)
                .map(|ratio| ratio.map(|ratio| (ratio.mean * 100.0).round() / 100.0))
        };
        assert_eq!(means("bare"), [None, None, None]);
        assert_eq!(means("here"), [None, Some(0.8), None]);
        assert_eq!(means("ours"), [Some(0.75), Some(0.6), None]);
        assert_eq!(means("peer"), [None, Some(0.3), Some(2.0)]);
        let growth: Vec<(&str, usize, String)> = figures
            .growth(&compared)
            .into_iter()
            .map(|(row, fewest, ratio)| (row.way.as_str(), fewest, shown(Some(ratio))))
            .collect();
        let flat = "0.50 (0.50 – 0.50)".to_owned();
        assert_eq!(growth, [("ours", 1, flat.clone()), ("peer", 1, flat)]);
        let json = figures.json(&compared);
        assert_eq!(json["rows"][2]["values"], json!([60.0, 120.0]));
        assert_eq!(json["growth"][0]["Services"], json!([10, 1]));
    }
}
