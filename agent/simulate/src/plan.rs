//! What a pod's containers will do, and when: the flags' times, unless the pod's annotations say otherwise. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use keelson_kubelet::node::parse_duration;

/// How long making the sandbox takes.
pub const START_AFTER: &str = "simulate.keelson.io/start-after";
/// How long each container runs until it exits by itself.
pub const END_AFTER: &str = "simulate.keelson.io/end-after";
/// With which code it exits then; 0 without.
pub const EXIT_CODE: &str = "simulate.keelson.io/exit-code";

/// The times of one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Plan {
    /// Until the sandbox is there.
    pub start_after: Duration,
    /// From a container's start to its end; none: it runs until it is stopped.
    pub end_after: Option<Duration>,
    /// Exit code of an end by itself.
    pub exit_code: i32,
}

impl Plan {
    /// The plan of a pod with these annotations.
    ///
    /// # Errors
    /// The text of a value that can't be read, with the annotation's name.
    pub fn of(defaults: Self, annotations: &BTreeMap<String, String>) -> Result<Self, String> {
        let time = |name: &str, default| match annotations.get(name) {
            Some(text) => {
                parse_duration(text).map(Some).map_err(|error| format!("annotation {name}: {error}"))
            }
            None => Ok(default),
        };
        let exit_code = match annotations.get(EXIT_CODE) {
            Some(text) => text
                .parse::<u8>()
                .map_err(|_no_code| format!("annotation {EXIT_CODE}: {text:?} is no exit code of 0 to 255"))?
                .into(),
            None => defaults.exit_code,
        };
        Ok(Self {
            start_after: time(START_AFTER, Some(defaults.start_after))?.unwrap_or_default(),
            end_after: time(END_AFTER, defaults.end_after)?,
            exit_code,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(annotations: &[(&str, &str)]) -> Result<Plan, String> {
        let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let defaults = Plan { start_after: Duration::from_millis(5), end_after: None, exit_code: 0 };
        Plan::of(defaults, &annotations)
    }

    #[test]
    fn annotations_have_priority() {
        let at = Duration::from_secs;
        assert_eq!(plan(&[]), Ok(Plan { start_after: Duration::from_millis(5), ..Plan::default() }));
        let all = [(START_AFTER, "2s"), (END_AFTER, "1m"), (EXIT_CODE, "7")];
        assert_eq!(plan(&all), Ok(Plan { start_after: at(2), end_after: Some(at(60)), exit_code: 7 }));
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for (name, value) in [(START_AFTER, "soon"), (END_AFTER, "-1s"), (EXIT_CODE, "256")] {
            let error = plan(&[(name, value)]).unwrap_err();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
    }
}
