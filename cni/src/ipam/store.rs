//! Records of given addresses: a folder per network, a file per address, one lock.
//!
//! Guarantees: a record exists before its address is used and stays until the address is unused, whatever
//! instant the process is killed at. A record appears by rename, so it is whole or absent; its data is on
//! disk before the rename, so that a power cut leaves no empty record behind. The folder itself is not
//! synced: after a power cut no pod of before exists, so a lost record is an address rightly free.
//! A file whose content can't be read belongs to nobody and is what [`Ipam::release_stale`] removes first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::range::Range;
use crate::error::{Error, Result};
use crate::types::invocation::Owner;

/// How long to wait for another process that holds the lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// A network's address records, locked for as long as the value lives.
#[derive(Debug)]
pub struct Ipam {
    network: String,
    dir: PathBuf,
    ranges: Vec<Range>,
    // Held for its flock.
    _lock: File,
}

impl Ipam {
    /// Opens and locks the records of `network` under `data_dir`, making the folder when it is new.
    ///
    /// # Errors
    /// I/O errors, or [`Error::TryAgain`] when the lock stays taken for ten seconds.
    pub fn open(data_dir: &Path, network: &str, ranges: &[Range]) -> Result<Ipam> {
        let dir = data_dir.join(network);
        fs::create_dir_all(&dir).map_err(|e| Error::io(format!("make folder {}", dir.display()), e))?;
        let path = dir.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io(format!("open {}", path.display()), e))?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::TryAgain(format!("{} is locked by another process", path.display())));
                }
                Err(TryLockError::Error(e)) => return Err(Error::io(format!("lock {}", path.display()), e)),
            }
        }
        let ipam = Ipam { network: network.to_owned(), dir, ranges: ranges.to_vec(), _lock: lock };
        ipam.remove_unfinished()?;
        Ok(ipam)
    }

    /// Gives `owner` one address of every range, those it holds already included (a repeated ADD after a
    /// crash gets what it had). On failure nothing new stays reserved.
    ///
    /// # Errors
    /// [`Error::Exhausted`] or an I/O error.
    pub fn allocate(&self, owner: &Owner) -> Result<Vec<IpAddr>> {
        let records = self.records()?;
        let mut given = Vec::new();
        let mut fresh = Vec::new();
        for range in &self.ranges {
            let held = records.iter().find(|(ip, record)| {
                record.as_ref().is_some_and(|held| held == owner) && range.is_allocatable(**ip)
            });
            if let Some((ip, _)) = held {
                given.push(*ip);
                continue;
            }
            match self.allocate_fresh(range, &records, owner) {
                Ok(ip) => {
                    given.push(ip);
                    fresh.push(ip);
                }
                Err(error) => {
                    for ip in fresh {
                        self.remove(ip)?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(given)
    }

    fn allocate_fresh(
        &self,
        range: &Range,
        records: &BTreeMap<IpAddr, Option<Owner>>,
        owner: &Owner,
    ) -> Result<IpAddr> {
        let pointer = self.pointer_name(range);
        let previous =
            fs::read_to_string(self.dir.join(&pointer)).ok().and_then(|text| text.trim().parse().ok());
        let Some(ip) = range.next_free(previous, |ip| records.contains_key(&ip)) else {
            return Err(Error::Exhausted { network: self.network.clone(), range: range.net().to_string() });
        };
        self.write(&ip.to_string(), &format!("{}\n{}\n", owner.container_id, owner.ifname), true)?;
        // A lost pointer costs nothing but the order of reuse, so it isn't synced, and a full disk is no failure.
        if let Err(error) = self.write(&pointer, &ip.to_string(), false) {
            tracing::debug!(%error, "the last address given isn't remembered");
        }
        Ok(ip)
    }

    /// Frees every address of `owner` and returns them. Freeing nothing is success.
    ///
    /// # Errors
    /// I/O errors.
    pub fn release(&self, owner: &Owner) -> Result<Vec<IpAddr>> {
        let mut freed = Vec::new();
        for (ip, record) in self.records()? {
            if record.as_ref() == Some(owner) {
                self.remove(ip)?;
                freed.push(ip);
            }
        }
        Ok(freed)
    }

    /// Owners with a record that are not among `valid`.
    ///
    /// # Errors
    /// I/O errors.
    pub fn stale_owners(&self, valid: &BTreeSet<Owner>) -> Result<BTreeSet<Owner>> {
        Ok(self.records()?.into_values().flatten().filter(|owner| !valid.contains(owner)).collect())
    }

    /// Frees every address whose owner is not among `valid`, unreadable records included.
    ///
    /// # Errors
    /// I/O errors.
    pub fn release_stale(&self, valid: &BTreeSet<Owner>) -> Result<Vec<IpAddr>> {
        let mut freed = Vec::new();
        for (ip, record) in self.records()? {
            if !record.is_some_and(|owner| valid.contains(&owner)) {
                self.remove(ip)?;
                freed.push(ip);
            }
        }
        Ok(freed)
    }

    /// Addresses that `owner` holds.
    ///
    /// # Errors
    /// I/O errors.
    pub fn held_by(&self, owner: &Owner) -> Result<Vec<IpAddr>> {
        let records = self.records()?.into_iter();
        Ok(records.filter(|(_, record)| record.as_ref() == Some(owner)).map(|(ip, _)| ip).collect())
    }

    /// The first range that has no free address left, if any.
    ///
    /// # Errors
    /// I/O errors.
    pub fn exhausted_range(&self) -> Result<Option<Range>> {
        let records = self.records()?;
        Ok(self.ranges.iter().copied().find(|r| r.next_free(None, |ip| records.contains_key(&ip)).is_none()))
    }

    /// Every record. An unreadable one still holds its address.
    fn records(&self) -> Result<BTreeMap<IpAddr, Option<Owner>>> {
        let mut records = BTreeMap::new();
        for (name, path) in self.entries()? {
            let Ok(ip) = name.parse::<IpAddr>() else { continue };
            let text = fs::read_to_string(&path).unwrap_or_default();
            let mut lines = text.lines();
            let owner = match (lines.next(), lines.next()) {
                (Some(id), Some(ifname)) => Owner::new(id, ifname).ok(),
                _ => None,
            };
            records.insert(ip, owner);
        }
        Ok(records)
    }

    fn entries(&self) -> Result<Vec<(String, PathBuf)>> {
        let context = |e| Error::io(format!("read folder {}", self.dir.display()), e);
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(context)? {
            let entry = entry.map_err(context)?;
            if let Ok(name) = entry.file_name().into_string() {
                entries.push((name, entry.path()));
            }
        }
        Ok(entries)
    }

    /// A process that was killed before its rename leaves a temporary file: under the lock it is garbage.
    fn remove_unfinished(&self) -> Result<()> {
        for (name, path) in self.entries()? {
            if name.starts_with(TEMPORARY) {
                fs::remove_file(&path).map_err(|e| Error::io(format!("remove {}", path.display()), e))?;
            }
        }
        Ok(())
    }

    fn write(&self, name: &str, text: &str, sync: bool) -> Result<()> {
        let path = self.dir.join(name);
        let temporary = self.dir.join(format!("{TEMPORARY}{name}"));
        let attempt = || {
            let mut file = File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            if sync {
                file.sync_data()?;
            }
            fs::rename(&temporary, &path)
        };
        attempt().map_err(|e| Error::io(format!("write {}", path.display()), e))
    }

    fn remove(&self, ip: IpAddr) -> Result<()> {
        let path = self.dir.join(ip.to_string());
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", path.display()), e))
            }
            _ => Ok(()),
        }
    }

    fn pointer_name(&self, range: &Range) -> String {
        format!("last_reserved_ip.{}", if range.net().addr().is_ipv4() { "4" } else { "6" })
    }
}

const TEMPORARY: &str = ".tmp-";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owner(n: u8) -> Owner {
        Owner::new(&format!("pod{n}"), "eth0").unwrap()
    }

    fn ranges() -> Vec<Range> {
        ["10.0.0.0/28", "fd00::/124"].iter().map(|net| Range::new(net.parse().unwrap())).collect()
    }

    fn open(dir: &Path) -> Ipam {
        Ipam::open(dir, "net", &ranges()).unwrap()
    }

    #[test]
    fn freed_addresses_are_reused_last() {
        let dir = tempfile::tempdir().unwrap();
        let ipam = open(dir.path());
        let first = ipam.allocate(&owner(0)).unwrap();
        ipam.release(&owner(0)).unwrap();
        // 13 addresses of the /28 can be given; the freed one comes after the 12 others.
        for n in 1..=12 {
            assert_ne!(ipam.allocate(&owner(n)).unwrap()[0], first[0], "pod {n}");
        }
        assert_eq!(ipam.allocate(&owner(13)).unwrap()[0], first[0]);
        assert_eq!(ipam.allocate(&owner(14)).unwrap_err().code(), 102);
        assert!(ipam.exhausted_range().unwrap().is_some());
    }

    #[test]
    fn repeated_allocation_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).allocate(&owner(1)).unwrap();
        assert_eq!(open(dir.path()).allocate(&owner(1)).unwrap(), first);
    }

    #[test]
    fn torn_state_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("net");
        drop(open(dir.path()));
        fs::write(folder.join(".tmp-10.0.0.2"), "half").unwrap();
        fs::write(folder.join("10.0.0.2"), "").unwrap();
        fs::write(folder.join("last_reserved_ip.4"), "garbage").unwrap();
        let ipam = open(dir.path());
        assert!(!folder.join(".tmp-10.0.0.2").exists());
        // The unreadable record holds its address until the next GC.
        assert_eq!(ipam.allocate(&owner(1)).unwrap()[0], "10.0.0.3".parse::<IpAddr>().unwrap());
        let freed = ipam.release_stale(&[owner(1)].into()).unwrap();
        assert_eq!(freed, ["10.0.0.2".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_pointer_that_cannot_be_written_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let ipam = open(dir.path());
        fs::create_dir(dir.path().join("net/last_reserved_ip.4")).unwrap();
        let given = ipam.allocate(&owner(1)).unwrap();
        assert_eq!(ipam.held_by(&owner(1)).unwrap().len(), given.len());
        assert_ne!(ipam.allocate(&owner(2)).unwrap()[0], given[0]);
    }

    #[test]
    fn failure_in_the_second_range_frees_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let small = vec![ranges()[0], Range::new("fd00::/126".parse().unwrap())];
        let ipam = Ipam::open(dir.path(), "net", &small).unwrap();
        ipam.allocate(&owner(1)).unwrap();
        ipam.allocate(&owner(2)).unwrap();
        assert_eq!(ipam.allocate(&owner(3)).unwrap_err().code(), 102);
        assert!(ipam.held_by(&owner(3)).unwrap().is_empty());
    }

    #[derive(Debug, Clone)]
    enum Op {
        Allocate(u8),
        Release(u8),
        Reopen,
        Gc(BTreeSet<u8>),
        Crash(u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0u8..20).prop_map(Op::Allocate),
            4 => (0u8..20).prop_map(Op::Release),
            1 => Just(Op::Reopen),
            1 => proptest::collection::btree_set(0u8..20, 0..20).prop_map(Op::Gc),
            1 => (0u8..13).prop_map(Op::Crash),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn agrees_with_a_model(ops in proptest::collection::vec(op(), 1..60)) {
            let dir = tempfile::tempdir().unwrap();
            let mut ipam = open(dir.path());
            let mut model: BTreeMap<u8, Vec<IpAddr>> = BTreeMap::new();
            for op in ops {
                match op {
                    Op::Allocate(n) => match ipam.allocate(&owner(n)) {
                        Ok(ips) => {
                            prop_assert_eq!(ips.len(), 2);
                            if let Some(held) = model.get(&n) {
                                prop_assert_eq!(held, &ips);
                            }
                            for (other, held) in &model {
                                prop_assert!(*other == n || held.iter().all(|ip| !ips.contains(ip)));
                            }
                            model.insert(n, ips);
                        }
                        Err(error) => {
                            prop_assert_eq!(error.code(), 102);
                            prop_assert!(!model.contains_key(&n) && model.len() == 13);
                        }
                    },
                    Op::Release(n) => {
                        let mut freed = ipam.release(&owner(n)).unwrap();
                        let mut held = model.remove(&n).unwrap_or_default();
                        freed.sort();
                        held.sort();
                        prop_assert_eq!(freed, held);
                    }
                    Op::Reopen => {
                        drop(ipam);
                        ipam = open(dir.path());
                    }
                    Op::Gc(valid) => {
                        ipam.release_stale(&valid.iter().map(|n| owner(*n)).collect()).unwrap();
                        model.retain(|n, _| valid.contains(n));
                    }
                    // Killed before the rename: the temporary file is there, the record is not.
                    Op::Crash(n) => {
                        drop(ipam);
                        fs::write(dir.path().join(format!("net/.tmp-10.0.0.{}", n + 2)), "pod9\n").unwrap();
                        ipam = open(dir.path());
                    }
                }
            }
            // Whatever happened, everything that isn't held can still be given.
            let free = 13 - model.len();
            for n in 0..free {
                prop_assert!(ipam.allocate(&owner(100 + u8::try_from(n).unwrap())).is_ok());
            }
            prop_assert!(ipam.allocate(&owner(200)).is_err());
        }
    }
}
