//! `$(VAR)` in commands, arguments, environment values and subPathExpr.
//!
//! Source: `third_party/forked/golang/expansion/expand.go`: `$$` is an escaped `$`; a reference to an unknown name
//! and a reference that never closes stay as they are.

/// Replaces each `$(NAME)` by what `lookup` gives; unknown names are left in place.
pub fn expand(input: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        rest = match after.as_bytes().first() {
            Some(b'$') => {
                out.push('$');
                &after[1..]
            }
            Some(b'(') => match after.find(')') {
                Some(close) => {
                    let name = &after[1..close];
                    match lookup(name) {
                        Some(value) => out.push_str(&value),
                        None => {
                            out.push_str("$(");
                            out.push_str(name);
                            out.push(')');
                        }
                    }
                    &after[close + 1..]
                }
                None => {
                    out.push_str("$(");
                    &after[1..]
                }
            },
            // A `$` that begins nothing; what follows it is copied by the next round or the tail. A character
            // that follows can't be `$` or `(` here, so nothing is read twice.
            _ => {
                out.push('$');
                after
            }
        };
    }
    out.push_str(rest);
    out
}

/// As [`expand`], but a reference to an unknown name is an error that names it: upstream's rule for subPathExpr.
pub fn expand_strict(input: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let missing = std::cell::RefCell::new(None);
    let out = expand(input, |name| {
        let value = lookup(name);
        if value.is_none() {
            missing.borrow_mut().get_or_insert_with(|| name.to_owned());
        }
        value
    });
    match missing.into_inner() {
        Some(name) => Err(format!("missing value for {name:?}")),
        None => Ok(out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &str, want: &str) {
        let got = expand(input, |name| match name {
            "VAR_A" => Some("A".into()),
            "VAR_B" => Some("B".into()),
            "VAR_REF" => Some("$(VAR_A)".into()),
            "VAR_EMPTY" => Some(String::new()),
            _ => None,
        });
        assert_eq!(got, want, "{input:?}");
    }

    // The cases of upstream's expand_test.go.
    #[test]
    fn upstream_cases() {
        check("$(VAR_A)", "A");
        check("___$(VAR_B)___", "___B___");
        check("$(VAR_REF)", "$(VAR_A)");
        check("$(VAR_A)$(VAR_B)", "AB");
        check("foo-$(VAR_EMPTY)-bar", "foo--bar");
        check("$$(VAR_A)", "$(VAR_A)");
        check("$$$(VAR_A)", "$A");
        check("$$$$(VAR_A)", "$$(VAR_A)");
        check("f000-$$VAR_A", "f000-$VAR_A");
        check("foo\\$(VAR_A)bar", "foo\\Abar");
        check("foo$(", "foo$(");
        check("$(VAR_A", "$(VAR_A");
        check("$(VAR_DNE)", "$(VAR_DNE)");
        check("$", "$");
        check("$VAR_A", "$VAR_A");
        check("$)$(VAR_A)", "$)A");
        check("$()", "$()");
        check("$(A B)", "$(A B)");
        check("$ü$(VAR_A)", "$üA");
        check("$((VAR_A))", "$((VAR_A))");
    }

    #[test]
    fn strict_names_what_is_missing() {
        assert_eq!(expand_strict("a$(X)b", |_| None), Err("missing value for \"X\"".into()));
        assert_eq!(expand_strict("a$$(X)b", |_| None), Ok("a$(X)b".into()));
    }

    proptest::proptest! {
        #[test]
        fn text_without_dollar_is_untouched(text in "[^$]{0,40}") {
            assert_eq!(expand(&text, |_| Some("x".into())), text);
        }
    }
}
