//! A layer: gzip, zstd or plain, unpacked into a folder that it must not leave.
#![no_main]

use keelson_images::{Limits, unpack_layer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|layer: &[u8]| {
    let Ok(outer) = tempfile::tempdir() else { return };
    let into = outer.path().join("layer");
    std::fs::create_dir(&into).expect("a new folder");
    let _ = unpack_layer(layer, &into, Limits { bytes: 1 << 20, entries: 200 });
    let beside: Vec<_> = std::fs::read_dir(outer.path()).expect("the folder").collect();
    assert_eq!(beside.len(), 1, "something was made outside of the layer");
});
