//! keelson-agent
fn main() {}
