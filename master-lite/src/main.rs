//! keelson-master
fn main() {}
