//! Label and field selectors of a request.
#![no_main]

use keelson_api::resources::selector::{FieldSelector, LabelSelector};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = LabelSelector::parse(text);
    let _ = FieldSelector::parse(text);
});
