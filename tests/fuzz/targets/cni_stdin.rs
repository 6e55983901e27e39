//! What a runtime gives a plugin on standard input, and what a plugin answers.
#![no_main]

use keelson_cni::AddResult;
use keelson_cni::types::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Config::parse(bytes);
    if let Ok(value) = serde_json::from_slice(bytes) {
        let _ = AddResult::from_json(&value);
    }
});
