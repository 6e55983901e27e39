//! Next times that upstream's library (`robfig/cron` 3.0.1) gives, most of them about changes of clock. A line is
//! zone, schedule, start and next time in seconds since 1970 (`-`: none).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use keelson_cron::{Schedule, Timestamp};

#[test]
fn next_times_are_upstreams() {
    for line in include_str!("vectors.txt").lines() {
        let [zone, schedule, start, next] = line.split('|').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let start = Timestamp::from_second(start.parse().unwrap()).unwrap();
        let found = Schedule::parse_in(schedule, zone).unwrap().next(start);
        let shown = found.map_or("-".to_owned(), |time| time.as_second().to_string());
        assert_eq!(shown, next, "{line}");
        // The zone may be part of the schedule too.
        let prefixed = Schedule::parse(&format!("TZ={zone} {schedule}")).unwrap();
        assert_eq!(prefixed.next(start), found, "{line}");
    }
}
