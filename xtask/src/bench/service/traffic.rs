//! What goes through the kernel: how the measuring program is told, and the figures in what it prints.

use anyhow::Result;
use serde_json::Value;

use super::super::api::{number, samples};
use super::super::stats::{Samples, float};
use super::ServiceArgs;

/// They are counted apart: connection tracking may lead a client's port that is used again to where it led before.
const STRAYED: &str = "new connections to an endpoint that the Service had before";

/// What a turn's traffic is.
#[derive(Debug, Clone, Copy)]
pub enum Traffic {
    /// Connections, one after another.
    Latency,
    /// Connections of several clients.
    Rate,
    /// Bytes of one connection.
    Stream,
    /// Datagrams, with such sockets.
    Udp(&'static str),
}

impl Traffic {
    /// How the measuring program is told.
    pub fn words(self, args: &ServiceArgs) -> Vec<String> {
        let millis = ["--millis".to_owned(), args.millis.to_string()];
        // Datagrams of one socket leave nothing behind.
        let many = if matches!(self, Self::Udp("connected" | "unconnected")) { 100 } else { 1 };
        let count = ["--count".to_owned(), (args.connections * many).to_string()];
        let own = match self {
            Self::Latency => vec!["connect".to_owned()],
            Self::Rate => vec!["connect".to_owned(), "--clients".to_owned(), args.clients.to_string()],
            Self::Stream => return [vec!["stream".to_owned()], millis.to_vec()].concat(),
            Self::Udp(sockets) => vec!["udp".to_owned(), "--sockets".to_owned(), sockets.to_owned()],
        };
        [own, millis.to_vec(), count.to_vec()].concat()
    }

    /// Figures in what it printed: name, unit, value.
    pub fn figures(self, told: &Value, args: &ServiceArgs) -> Result<Vec<(String, &'static str, f64)>> {
        let rate = |ns: &Samples| anyhow::Ok(float(ns.count()) / number(told, "seconds")?);
        let us = |ns: &Samples, percent| ns.percentile(percent) / 1e3;
        let ns = || samples(told, "ns");
        Ok(match self {
            Self::Latency => {
                let (name, ns) = ("a new connection and its answer".to_owned(), ns()?);
                vec![
                    (name.clone(), "µs, p50", us(&ns, 50)),
                    (name, "µs, p99", us(&ns, 99)),
                    ("new connections, 1 client".to_owned(), "1/s", rate(&ns)?),
                    ("new connections that failed, 1 client".to_owned(), "", number(told, "failed")?),
                    (format!("{STRAYED}, 1 client"), "", number(told, "strayed")?),
                ]
            }
            Self::Rate => {
                let clients = format!("{} clients", args.clients);
                vec![
                    (format!("new connections, {clients}"), "1/s", rate(&ns()?)?),
                    (format!("new connections that failed, {clients}"), "", number(told, "failed")?),
                    (format!("{STRAYED}, {clients}"), "", number(told, "strayed")?),
                ]
            }
            Self::Stream => {
                let megabytes = number(told, "bytes")? / number(told, "seconds")? / 1e6;
                vec![("bytes of one connection".to_owned(), "MB/s", megabytes)]
            }
            Self::Udp(sockets) => {
                let (name, ns) = (format!("UDP requests, {sockets}"), ns()?);
                vec![(name.clone(), "1/s", rate(&ns)?), (name, "µs, p99", us(&ns, 99))]
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::parsed;
    use super::*;

    #[test]
    fn figures_are_read_from_what_is_printed() {
        let args = parsed(&[]);
        let told = json!({"ns": [1_000, 2_000, 3_000, 4_000], "seconds": 2.0, "failed": 1, "strayed": 0});
        let figures = Traffic::Latency.figures(&told, &args).unwrap();
        let values: Vec<(&str, f64)> = figures.iter().map(|(_, unit, value)| (*unit, *value)).collect();
        assert_eq!(values, [("µs, p50", 2.0), ("µs, p99", 4.0), ("1/s", 2.0), ("", 1.0), ("", 0.0)]);
        let told = json!({"bytes": 3_000_000, "seconds": 1.5});
        assert_eq!(Traffic::Stream.figures(&told, &args).unwrap()[0].2, 2.0);
        assert!(Traffic::Udp("fresh").figures(&told, &args).is_err());
    }
}
