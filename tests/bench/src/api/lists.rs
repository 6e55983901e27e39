//! Lists of the stored pods, in the ways that clients ask for them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{APPS, micros};
use crate::wire::{Ask, Connection, JSON, PROTOBUF, Target};

/// What to list.
#[derive(clap::Args)]
pub struct Args {
    /// How many pods are stored.
    #[arg(long)]
    pods: usize,
    /// How often each list is asked for.
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// How long each way may take, seconds.
    #[arg(long, default_value_t = 300)]
    limit: u64,
}

/// What kubectl sends for what it prints as a table.
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
/// What a client sends that wants names and labels only, as some controllers do.
const METADATA: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
/// How many objects kubectl asks for at once.
const CHUNK: usize = 500;

/// A way of listing.
struct Way {
    name: &'static str,
    accept: &'static str,
    query: &'static str,
    /// One part after another.
    chunked: bool,
}

const WAYS: &[Way] = &[
    Way { name: "full", accept: JSON, query: "", chunked: false },
    Way { name: "full, from the cache", accept: JSON, query: "resourceVersion=0", chunked: false },
    Way { name: "full, protobuf", accept: PROTOBUF, query: "", chunked: false },
    Way { name: "full, metadata only, protobuf", accept: METADATA, query: "", chunked: false },
    Way { name: "by label, one of 100", accept: JSON, query: "labelSelector=app%3Dapp-7", chunked: false },
    Way { name: "in chunks of 500", accept: JSON, query: "", chunked: true },
    Way { name: "as a Table, in chunks of 500", accept: TABLE, query: "", chunked: true },
];

/// The lists of one way.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    /// Bytes of one whole list.
    bytes: usize,
    /// Each list's time.
    us: Vec<u64>,
}

/// Lists, and prints the times.
pub async fn run(target: &Target, args: &Args) -> Result<()> {
    let mut connection = target.connect().await?;
    let mut rows = Vec::new();
    for way in WAYS {
        let lists = async {
            let mut row = Row { name: way.name, bytes: 0, us: Vec::new() };
            for _ in 0..args.repeat {
                let (bytes, us) = match way.chunked {
                    true => chunks(&mut connection, way, args.pods).await?,
                    false => whole(&mut connection, way).await?,
                };
                row.bytes = bytes;
                row.us.push(us);
            }
            anyhow::Ok(row)
        };
        let limit = Duration::from_secs(args.limit);
        rows.push(tokio::time::timeout(limit, lists).await.with_context(|| way.name)??);
    }
    check(&mut connection, args.pods).await?;
    println!("{}", json!({"rows": rows}));
    Ok(())
}

async fn whole(connection: &mut Connection, way: &Way) -> Result<(usize, u64)> {
    let began = Instant::now();
    let bytes = connection.drain(Ask::get(format!("/api/v1/pods?{}", way.query)).accepts(way.accept)).await?;
    Ok((bytes, micros(began)))
}

/// One part of a list, of pods or of rows.
#[derive(Deserialize)]
struct Chunk {
    metadata: ListMeta,
    #[serde(default, alias = "rows")]
    items: Vec<IgnoredAny>,
}

#[derive(Deserialize)]
struct ListMeta {
    #[serde(rename = "continue", default)]
    more: String,
}

/// A list in parts; what it takes us to read them is not counted.
async fn chunks(connection: &mut Connection, way: &Way, expected: usize) -> Result<(usize, u64)> {
    let (mut bytes, mut us, mut count) = (0, 0, 0);
    let mut more = String::new();
    loop {
        let mut path = format!("/api/v1/pods?limit={CHUNK}");
        if !more.is_empty() {
            // Its alphabet is that of base64 for URLs.
            path.push_str(&format!("&continue={more}"));
        }
        let began = Instant::now();
        let body: Bytes = connection.ask(Ask::get(path).accepts(way.accept)).await?;
        us += micros(began);
        bytes += body.len();
        let chunk: Chunk = serde_json::from_slice(&body)?;
        count += chunk.items.len();
        ensure!(count <= expected, "{count} pods and more, of {expected}");
        more = chunk.metadata.more;
        if more.is_empty() {
            ensure!(count == expected, "{count} of {expected} pods");
            return Ok((bytes, us));
        }
    }
}

/// Whether the label selects what it should; the other lists are counted, or hold what the counted ones hold.
async fn check(connection: &mut Connection, pods: usize) -> Result<()> {
    let body = connection.ask(Ask::get("/api/v1/pods?labelSelector=app%3Dapp-7")).await?;
    let chunk: Chunk = serde_json::from_slice(&body)?;
    let expected = pods / APPS + usize::from(pods % APPS > 7);
    ensure!(chunk.items.len() == expected, "{} of {expected} pods by label", chunk.items.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_counts_pods_or_rows() {
        let read = |text: &str| {
            let chunk: Chunk = serde_json::from_str(text).unwrap();
            (chunk.items.len(), chunk.metadata.more)
        };
        let list = r#"{"kind":"PodList","metadata":{"resourceVersion":"1","continue":"abc"},"items":[{},{"a":[1]}]}"#;
        assert_eq!(read(list), (2, "abc".to_owned()));
        let table = r#"{"kind":"Table","metadata":{},"columnDefinitions":[{}],"rows":[{"cells":[1]}]}"#;
        assert_eq!(read(table), (1, String::new()));
    }
}
