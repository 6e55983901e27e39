//! One agent at a time over one run folder.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

/// How often the lock is asked for before somebody else is taken to run: a killed agent's is let go a moment after its
/// death.
const TRIES: u32 = 20;
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// Takes the lock of a run folder; it is held as long as the file is open.
pub fn take(run_dir: &Path) -> anyhow::Result<File> {
    let path = run_dir.join("agent.lock");
    let file = std::fs::create_dir_all(run_dir)
        .and_then(|()| File::options().create(true).truncate(false).write(true).open(&path))
        .with_context(|| format!("open {}", path.display()))?;
    for _ in 0..TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", path.display()));
            }
        }
    }
    bail!("a keelson-agent runs on this machine already: it holds {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = std::env::temp_dir().join(format!("keelson-lock-{}", std::process::id()));
        let held = take(&dir).unwrap();
        assert!(take(&dir).unwrap_err().to_string().contains("runs on this machine already"));
        drop(held);
        take(&dir).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }
}
