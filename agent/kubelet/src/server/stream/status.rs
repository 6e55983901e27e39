//! What the error stream says at the end: a `metav1.Status`, as kubectl's decoder expects it.

use serde_json::{Value, json};

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// All went well (for exec: exit code 0).
    Success,
    /// The command's exit code, not 0.
    ExitCode(i32),
    /// Something else went wrong; the text says what.
    Failed(String),
}

impl Ending {
    /// The bytes for the error stream: a Status in JSON, or before v4 bare text and nothing for success.
    pub(super) fn encode(&self, json: bool) -> Vec<u8> {
        if json {
            return self.status().to_string().into_bytes();
        }
        self.status()["message"].as_str().unwrap_or_default().as_bytes().to_vec()
    }

    fn status(&self) -> Value {
        match self {
            Self::Success => json!({ "metadata": {}, "status": "Success" }),
            Self::ExitCode(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!(
                    "command terminated with non-zero exit code: command terminated with exit code {code}"
                ),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Self::Failed(message) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {message}"),
                "reason": "InternalError",
                "details": { "causes": [{ "message": message }] },
                "code": 500,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        let parse = |ending: Ending| serde_json::from_slice::<Value>(&ending.encode(true)).unwrap();
        assert_eq!(parse(Ending::Success)["status"], "Success");
        let failed = parse(Ending::ExitCode(3));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "3" }));
        assert_eq!(parse(Ending::Failed("x".to_owned()))["reason"], "InternalError");
        let bare = |ending: Ending| String::from_utf8(ending.encode(false)).unwrap();
        assert_eq!(bare(Ending::Success), "");
        assert_eq!(
            bare(Ending::ExitCode(3)),
            "command terminated with non-zero exit code: command terminated with exit code 3"
        );
        assert_eq!(bare(Ending::Failed("x".to_owned())), "Internal error occurred: x");
    }
}
