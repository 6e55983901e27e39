//! keelson-podinit
fn main() {}
