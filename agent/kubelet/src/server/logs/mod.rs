//! `/containerLogs`: reading what podinit wrote, in CRI's log format, rotated files included.

mod entry;
mod files;
mod follow;
mod options;
mod read;
mod watch;

pub(super) use options::LogOptions;
pub(super) use read::stream;
pub(super) use watch::DirWatcher;
