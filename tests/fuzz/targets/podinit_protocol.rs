//! The protocol between agent and podinit, both ways, and the exit record.
#![no_main]

use keelson_podinit::protocol::{FromPodinit, Request};
use keelson_podinit::record::ExitRecord;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((seq, request)) = Request::decode(bytes) {
        let again = Request::decode(&request.encode(seq)).expect("our own bytes");
        assert_eq!(again, (seq, request));
    }
    let _ = FromPodinit::decode(bytes);
    let _ = ExitRecord::decode(bytes);
});
