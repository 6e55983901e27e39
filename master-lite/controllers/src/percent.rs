//! Numbers that may be given as a part of a whole.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Which way a percentage that comes out between two numbers goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// To the next larger number.
    Up,
    /// To the next smaller number.
    Down,
}

/// `value` as it is, or as a percentage of `of` (`GetScaledValueFromIntOrPercent`); an absent one is 0.
pub fn scaled(value: Option<&IntOrString>, of: i32, round: Round) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(value)) => *value,
        // Validation has seen it; a text that is no percentage counts as nothing.
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.strip_suffix('%').and_then(|p| p.parse().ok()).unwrap_or(0);
            let hundredfold = percent.saturating_mul(i64::from(of));
            let rounded = match round {
                Round::Up => hundredfold.saturating_add(99) / 100,
                Round::Down => hundredfold / 100,
            };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding() {
        let percent = |text: &str, of, round| scaled(Some(&IntOrString::String(text.into())), of, round);
        assert_eq!(percent("25%", 10, Round::Up), 3);
        assert_eq!(percent("25%", 10, Round::Down), 2);
        assert_eq!(percent("0%", 10, Round::Up), 0);
        assert_eq!(percent("nonsense", 10, Round::Up), 0);
        assert_eq!(scaled(Some(&IntOrString::Int(7)), 3, Round::Up), 7);
        assert_eq!(scaled(None, 3, Round::Up), 0);
    }
}
