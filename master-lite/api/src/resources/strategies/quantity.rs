//! Just enough of `resource.Quantity` to compare amounts.

/// A quantity in thousandths (`m`), rounded up; `None` if the text is no quantity or is out of range.
pub fn parse_quantity(value: &serde_json::Value) -> Option<i128> {
    let text = match value {
        serde_json::Value::String(s) => s.trim().to_owned(),
        serde_json::Value::Number(n) => n.to_string(),
        _ => return None,
    };
    let split = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    // Everything is counted in billionths (`n`) first.
    let nano: i128 = 1_000_000_000;
    let scale: i128 = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => nano,
        "k" => nano * 1_000,
        "M" => nano * 1_000_000,
        "G" => nano * 1_000_000_000,
        "T" => nano * 1_000_000_000_000,
        "P" => nano * 1_000_000_000_000_000,
        "E" => nano * 1_000_000_000_000_000_000,
        "Ki" => nano << 10,
        "Mi" => nano << 20,
        "Gi" => nano << 30,
        "Ti" => nano << 40,
        "Pi" => nano << 50,
        "Ei" => nano << 60,
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            let power: i32 = digits.parse().ok()?;
            if power >= 0 {
                nano.checked_mul(10_i128.checked_pow(power.unsigned_abs())?)?
            } else {
                nano / 10_i128.checked_pow(power.unsigned_abs().min(9))?
            }
        }
    };
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 {
        return None;
    }
    let parse = |s: &str| if s.is_empty() { Some(0) } else { s.parse::<i128>().ok() };
    let mut total = parse(whole)?.checked_mul(scale)?;
    let divisor = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    total = total.checked_add(parse(fraction)?.checked_mul(scale)?.div_euclid(divisor))?;
    let milli = total.checked_add(999_999)?.div_euclid(1_000_000);
    Some(if negative { -milli } else { milli })
}

#[cfg(test)]
mod tests {
    use super::parse_quantity;
    use serde_json::json;

    #[test]
    fn quantities() {
        let cases = [
            (json!("100m"), Some(100)),
            (json!("0.1"), Some(100)),
            (json!(2), Some(2000)),
            (json!("1Ki"), Some(1_024_000)),
            (json!("1e3"), Some(1_000_000)),
            (json!("1.5Gi"), Some(1_610_612_736_000)),
            (json!(""), None),
            (json!("x"), None),
            (json!("1ZZ"), None),
        ];
        for (value, expected) in cases {
            assert_eq!(parse_quantity(&value), expected, "{value}");
        }
    }
}
