//! The programs and maps in the kernel.
//!
//! Pinned under `<pin dir>/<ABI version>`: a map by its name, a link as `link_<program>`. A new agent opens the maps it
//! finds, attaches its own programs beside the old ones (a translated address is no Service's, so running both does
//! no harm) and only then lets the old ones go.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, MapData};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use aya::{Ebpf, EbpfLoader};
use keelson_ebpf_abi::{
    Affinity, AffinityKey, Backend, Frontend, FrontendKey, HOST_NETNS, PIN_VERSION, Reverse, ReverseKey,
    SlotKey,
};

use crate::diff::{Installed, MapOp};
use crate::error::ProxyError;

/// The object that `cargo xtask build-ebpf` made.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/prebuilt/keelson.bpf.o");

/// Programs of the socket hooks, in the order in which they are attached: the way back before the way there.
const PROGRAMS: [&str; 8] =
    ["getpeername4", "getpeername6", "recvmsg4", "recvmsg6", "sendmsg4", "sendmsg6", "connect4", "connect6"];
const MAPS: [&str; 4] = ["FRONTENDS", "SLOTS", "REVERSE", "AFFINITY"];

/// Maps and programs of one node.
pub struct Kernel {
    frontends: HashMap<MapData, FrontendKey, Frontend>,
    slots: HashMap<MapData, SlotKey, Backend>,
    affinity: HashMap<MapData, AffinityKey, Affinity>,
    // Kept so that its type stays checked against the object.
    _reverse: HashMap<MapData, ReverseKey, Reverse>,
}

impl Kernel {
    /// Loads the programs, attaches them to a cgroup (all sockets made below it see Services) and pins everything
    /// under `pin_dir`, a folder of a bpffs. The network namespace of this process is the node's: its loopback has the
    /// node ports.
    ///
    /// # Errors
    /// Anything the kernel refuses; what was attached by an earlier agent then stays as it is.
    pub fn attach(cgroup: &Path, pin_dir: &Path) -> Result<Self, ProxyError> {
        let dir = pin_dir.join(PIN_VERSION);
        fs::create_dir_all(&dir).map_err(|source| ProxyError::Io {
            action: "make",
            path: dir.clone(),
            source,
        })?;
        let netns = netns_cookie().map_err(|source| ProxyError::Io {
            action: "tell the network namespace of",
            path: "/proc/self/ns/net".into(),
            source,
        })?;
        let mut loader = EbpfLoader::new();
        loader.override_global(HOST_NETNS, &netns, true);
        for name in MAPS {
            loader.map_pin_path(name, dir.join(name));
        }
        let mut object = loader.load(OBJECT).map_err(|error| ProxyError::Load(Box::new(error)))?;
        let kernel = Self {
            frontends: take(&mut object, "FRONTENDS")?,
            slots: take(&mut object, "SLOTS")?,
            affinity: take(&mut object, "AFFINITY")?,
            _reverse: take(&mut object, "REVERSE")?,
        };
        let cgroup_dir = File::open(cgroup).map_err(|source| ProxyError::Io {
            action: "open",
            path: cgroup.to_owned(),
            source,
        })?;
        for name in PROGRAMS {
            attach_one(&mut object, name, &cgroup_dir, &dir)?;
        }
        Ok(kernel)
    }

    /// What the maps hold now.
    ///
    /// # Errors
    /// A map can't be read.
    pub fn installed(&self) -> Result<Installed, ProxyError> {
        let failed = |name| move |source| ProxyError::Map { action: "read", name, source: Box::new(source) };
        Ok(Installed {
            frontends: self.frontends.iter().collect::<Result<_, _>>().map_err(failed("FRONTENDS"))?,
            slots: self.slots.iter().collect::<Result<_, _>>().map_err(failed("SLOTS"))?,
        })
    }

    /// Executes one operation.
    ///
    /// # Errors
    /// The kernel refuses it, such as a full map.
    pub fn apply(&mut self, op: &MapOp) -> Result<(), ProxyError> {
        let failed = |action, name| move |source| ProxyError::Map { action, name, source: Box::new(source) };
        match op {
            MapOp::PutSlot(key, backend) => {
                self.slots.insert(key, backend, 0).map_err(failed("write", "SLOTS"))
            }
            MapOp::PutFrontend(key, frontend) => {
                self.frontends.insert(key, frontend, 0).map_err(failed("write", "FRONTENDS"))
            }
            MapOp::DeleteFrontend(key) => {
                gone_is_fine(self.frontends.remove(key)).map_err(failed("remove from", "FRONTENDS"))
            }
            MapOp::DeleteSlot(key) => {
                gone_is_fine(self.slots.remove(key)).map_err(failed("remove from", "SLOTS"))
            }
            MapOp::ForgetAffinity { service, backend } => {
                let clients: Vec<AffinityKey> = self
                    .affinity
                    .iter()
                    .filter_map(Result::ok)
                    .filter(|(key, value)| key.service == *service && value.backend == *backend)
                    .map(|(key, _)| key)
                    .collect();
                for key in clients {
                    gone_is_fine(self.affinity.remove(&key)).map_err(failed("remove from", "AFFINITY"))?;
                }
                Ok(())
            }
        }
    }
}

/// Removes the pins of every version under `pin_dir`, and with them the programs and maps that no agent holds; that there
/// are none is success.
///
/// # Errors
/// A pin can't be removed.
pub fn detach(pin_dir: &Path) -> Result<(), ProxyError> {
    match fs::remove_dir_all(pin_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ProxyError::Io { action: "remove", path: pin_dir.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// The cookie by which the kernel tells this process's network namespace from all others.
fn netns_cookie() -> std::io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let mut cookie = 0u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, which has them, and the descriptor is open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(std::io::Error::last_os_error()) }
}

fn gone_is_fine(result: Result<(), aya::maps::MapError>) -> Result<(), aya::maps::MapError> {
    match result {
        Err(aya::maps::MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(2) => Ok(()),
        other => other,
    }
}

fn take<K: aya::Pod, V: aya::Pod>(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<HashMap<MapData, K, V>, ProxyError> {
    let map = object.take_map(name).ok_or(ProxyError::Missing(name))?;
    HashMap::try_from(map).map_err(|source| ProxyError::Map {
        action: "open",
        name,
        source: Box::new(source),
    })
}

fn attach_one(object: &mut Ebpf, name: &'static str, cgroup: &File, dir: &Path) -> Result<(), ProxyError> {
    let failed = |action| move |source| ProxyError::Program { action, name, source: Box::new(source) };
    let program: &mut CgroupSockAddr =
        object.program_mut(name).ok_or(ProxyError::Missing(name))?.try_into().map_err(failed("find"))?;
    program.load().map_err(failed("load"))?;
    // Single: several links of one cgroup are fine, AllowMultiple itself is refused for links (EINVAL).
    let id = program.attach(cgroup, CgroupAttachMode::Single).map_err(failed("attach"))?;
    let link = program.take_link(id).map_err(failed("attach"))?;
    let link: FdLink = link.try_into().map_err(|error| ProxyError::Io {
        action: "take the link of",
        path: PathBuf::from(name),
        source: std::io::Error::other(format!("{error}")),
    })?;
    let place = dir.join(format!("link_{name}"));
    let fresh = dir.join(format!("new_{name}"));
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| ProxyError::Io { action, path, source }
    };
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(io("remove", &fresh)(error));
        }
        _ => {}
    }
    link.pin(&fresh).map_err(|source| ProxyError::Pin { path: fresh.clone(), source: Box::new(source) })?;
    // The old link goes with its last name, after the new one is in place.
    fs::rename(&fresh, &place).map_err(io("rename to", &place))
}
