//! Query parameters of exec and attach, as kubelet names them (`input`, `output`, `error`) and as the API does.

use http::Uri;

/// What a session streams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StreamOptions {
    /// Client to process.
    pub stdin: bool,
    /// Process to client.
    pub stdout: bool,
    /// Process to client.
    pub stderr: bool,
    /// With a terminal.
    pub tty: bool,
    /// The command to run (exec).
    pub command: Vec<String>,
}

impl StreamOptions {
    /// Reads the query of `uri`.
    pub(crate) fn from_uri(uri: &Uri) -> Result<Self, String> {
        let mut options = Self::default();
        for (name, value) in query_pairs(uri) {
            let on = matches!(value.as_str(), "1" | "true");
            match name.as_str() {
                "input" | "stdin" => options.stdin = on,
                "output" | "stdout" => options.stdout = on,
                "error" | "stderr" => options.stderr = on,
                "tty" => options.tty = on,
                "command" => options.command.push(value),
                _ => {}
            }
        }
        // A terminal has one output; upstream drops the other too.
        options.stderr &= !options.tty;
        if !options.stdin && !options.stdout && !options.stderr {
            return Err("you must specify at least 1 of stdin, stdout, stderr".to_owned());
        }
        Ok(options)
    }
}

/// The decoded pairs of a query.
pub(crate) fn query_pairs(uri: &Uri) -> Vec<(String, String)> {
    let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

/// application/x-www-form-urlencoded.
fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes().iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let rest = bytes.as_slice();
                let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
                let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
                match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                    Some(value) => {
                        out.push(value);
                        bytes.nth(1);
                    }
                    None => out.push(byte),
                }
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, expected: Option<StreamOptions>) {
        let uri: Uri = format!("/exec/a/b/c?{query}").parse().unwrap();
        assert_eq!(StreamOptions::from_uri(&uri).ok(), expected, "{query}");
    }

    #[test]
    fn queries() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        check("", None);
        check("output=0", None);
        check(
            "command=sh&command=-c&command=echo%20a%2Bb+c&output=1&error=1",
            Some(StreamOptions {
                stdout: true,
                stderr: true,
                command: words(&["sh", "-c", "echo a+b c"]),
                ..StreamOptions::default()
            }),
        );
        check(
            "stdin=true&stdout=true&stderr=true&tty=true",
            Some(StreamOptions { stdin: true, stdout: true, tty: true, ..StreamOptions::default() }),
        );
    }
}
