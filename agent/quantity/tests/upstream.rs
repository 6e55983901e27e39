#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
//! The same answers as apimachinery's, recorded from it.

use keelson_quantity::{Quantity, canonical};

fn check(line: &str) -> Result<(), String> {
    let columns: Vec<&str> = line.split('\t').collect();
    let text = columns[0];
    let expect = |what: &str, got: String, want: &str| {
        if got == want { Ok(()) } else { Err(format!("{text:?} {what}: {got}, upstream {want}")) }
    };
    let parsed = match text.parse::<Quantity>() {
        Ok(parsed) => parsed,
        Err(error) => return expect("error", format!("!{error}"), columns[1]),
    };
    expect("text", canonical(text).map_err(|error| error.to_string())?.into_owned(), columns[1])?;
    let other = Quantity::millis(1500);
    expect("order", (parsed.cmp(&other) as i32).to_string(), columns[5])?;
    // Beyond 128 bits of 10^-9 units sums saturate here.
    let huge = parsed.nanos().unsigned_abs() > u128::MAX / 4;
    if !huge {
        expect("negated", (-parsed).to_string(), columns[2])?;
        expect("sum", (parsed + other).to_string(), columns[3])?;
        expect("difference", (parsed - other).to_string(), columns[4])?;
    }
    // Out of 64 bits upstream's values wrap or are 0; below zero, what its big integers hold is rounded the wrong way.
    let exact = |value: i64| !matches!(value, i64::MIN | i64::MAX) && parsed.sign() >= 0;
    if exact(parsed.value()) {
        expect("value", parsed.value().to_string(), columns[6])?;
    }
    if exact(parsed.milli_value()) {
        expect("thousandths", parsed.milli_value().to_string(), columns[7])?;
    }
    Ok(())
}

#[test]
fn answers_as_upstream() {
    let lines = include_str!("upstream.tsv").lines().filter(|line| !line.starts_with('#'));
    let wrong: Vec<String> = lines.filter_map(|line| check(line).err()).collect();
    assert!(wrong.is_empty(), "{}\n{}", wrong.len(), wrong.join("\n"));
}
