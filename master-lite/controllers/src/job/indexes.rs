//! Sets of completion indexes, kept as intervals: `1,3-5,7`.

use std::fmt;

/// Indexes as ordered intervals that neither touch nor overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads what [`fmt::Display`] wrote, up to `completions`. Parts that make no sense are left out, as upstream.
    pub fn parse(text: &str, completions: i32) -> Self {
        let mut result = Indexes::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let mut bounds = part.split('-');
            let Some(first) = bounds.next().and_then(|text| text.parse::<i32>().ok()) else { continue };
            if first >= completions {
                break;
            }
            let last = match bounds.next() {
                None => first,
                Some(text) => match text.parse::<i32>() {
                    Ok(last) => last.min(completions - 1),
                    Err(_) => continue,
                },
            };
            if last >= first {
                result.push((first, last));
            }
        }
        result
    }

    /// Adds an interval that begins at or behind the last one's beginning.
    fn push(&mut self, (first, last): (i32, i32)) {
        match self.0.last_mut() {
            Some(present) if first <= present.1.saturating_add(1) => present.1 = present.1.max(last),
            _ => self.0.push((first, last)),
        }
    }

    /// All that is in either.
    pub fn union(&self, other: &Indexes) -> Indexes {
        let mut all: Vec<(i32, i32)> = self.0.iter().chain(&other.0).copied().collect();
        all.sort_unstable();
        let mut result = Indexes::default();
        all.into_iter().for_each(|interval| result.push(interval));
        result
    }

    /// How many there are.
    pub fn len(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `index` is among them.
    pub fn contains(&self, index: i32) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(at).is_some_and(|(first, _)| *first <= index)
    }

    /// How many are in both.
    pub fn overlap(&self, other: &Indexes) -> i32 {
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut common = 0;
        while let (Some(left), Some(right)) = (a.peek(), b.peek()) {
            common += (left.1.min(right.1) - left.0.max(right.0) + 1).max(0);
            if left.1 < right.1 {
                a.next();
            } else {
                b.next();
            }
        }
        common
    }

    /// The first `count` indexes below `completions` that are not among them.
    pub fn missing(&self, count: usize, completions: i32) -> Vec<i32> {
        let mut result = Vec::with_capacity(count);
        let mut next = 0;
        for (first, last) in self.0.iter().chain(std::iter::once(&(completions, completions))) {
            while next < *first && next < completions && result.len() < count {
                result.push(next);
                next += 1;
            }
            next = next.max(last.saturating_add(1));
        }
        result
    }
}

impl FromIterator<i32> for Indexes {
    fn from_iter<I: IntoIterator<Item = i32>>(indexes: I) -> Self {
        let mut sorted: Vec<i32> = indexes.into_iter().collect();
        sorted.sort_unstable();
        let mut result = Indexes::default();
        sorted.into_iter().for_each(|index| result.push((index, index)));
        result
    }
}

impl fmt::Display for Indexes {
    /// Two that follow each other are written one by one, more with a hyphen.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (first, last)) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            match last - first {
                0 => write!(f, "{first}")?,
                1 => write!(f, "{first},{last}")?,
                _ => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text() {
        let check = |text: &str, completions, expected: &str| {
            assert_eq!(Indexes::parse(text, completions).to_string(), expected, "{text}");
        };
        check("", 5, "");
        check("0-2,4", 5, "0-2,4");
        check("0,1", 5, "0,1");
        check("0,1,2,4", 5, "0-2,4");
        check("0-9", 5, "0-4");
        check("3,x,4-y,4", 9, "3,4");
        check("7", 5, "");
    }

    proptest! {
        #[test]
        fn a_set_of_numbers(a in prop::collection::btree_set(0..40i32, 0..20),
                            b in prop::collection::btree_set(0..40i32, 0..20), count in 0..12usize) {
            let (x, y): (Indexes, Indexes) = (a.iter().copied().collect(), b.iter().copied().collect());
            prop_assert_eq!(Indexes::parse(&x.to_string(), 40), x.clone());
            prop_assert_eq!(x.len(), i32::try_from(a.len()).unwrap());
            prop_assert!((0..40).all(|i| x.contains(i) == a.contains(&i)));
            let union: BTreeSet<i32> = a.union(&b).copied().collect();
            prop_assert_eq!(x.union(&y), union.into_iter().collect());
            prop_assert_eq!(x.overlap(&y), i32::try_from(a.intersection(&b).count()).unwrap());
            let missing: Vec<i32> = (0..40).filter(|i| !a.contains(i)).take(count).collect();
            prop_assert_eq!(x.missing(count, 40), missing);
        }

        #[test]
        fn any_text_is_survived(text in "[0-9,x-]{0,24}") {
            let indexes = Indexes::parse(&text, 1000);
            prop_assert!(indexes.len() <= 1000);
            let again = Indexes::parse(&indexes.to_string(), 1000);
            prop_assert_eq!(again, indexes);
        }
    }
}
