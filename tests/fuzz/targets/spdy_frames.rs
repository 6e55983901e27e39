//! SPDY/3.1 frames of a port-forward, in pieces of as many bytes as the first byte says.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&piece, bytes)) = input.split_first() else { return };
    keelson_kubelet::server::fuzzing::spdy_frames(bytes, usize::from(piece).max(1));
});
