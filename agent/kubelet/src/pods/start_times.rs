//! The phases of a pod's start as one line of the log, which `cargo xtask bench pod-start` reads.

use std::fmt::Write;

use keelson_cri::phase::Phase;

/// `name@offset+duration`, microseconds, one word a phase, in the order in which they began.
pub fn line(phases: &[Phase]) -> String {
    let mut sorted: Vec<&Phase> = phases.iter().collect();
    sorted.sort_by_key(|phase| phase.offset);
    let mut out = String::new();
    for phase in sorted {
        let gap = if out.is_empty() { "" } else { " " };
        // Writing to a String can't fail.
        let _ = write!(out, "{gap}{}@{}+{}", phase.name, phase.offset.as_micros(), phase.took.as_micros());
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn phases_stand_in_the_order_of_their_beginning() {
        let phase = |name, offset, took| Phase {
            name,
            offset: Duration::from_micros(offset),
            took: Duration::from_micros(took),
        };
        let line = line(&[phase("sandbox.network", 40, 2), phase("sandbox", 10, 50), phase("create", 61, 1)]);
        assert_eq!(line, "sandbox@10+50 sandbox.network@40+2 create@61+1");
    }
}
