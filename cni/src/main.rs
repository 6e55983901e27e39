//! keelson-cni
fn main() {}
