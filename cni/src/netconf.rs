//! Network configurations as a runtime reads them: lists of plugins in a folder.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use ipnet::IpNet;

use crate::error::{Error, Result};
use crate::plugin::PLUGIN_TYPE;
use crate::types::config::{Config, Mode, parse_object};
use crate::types::invocation::is_identifier;
use crate::types::version::Version;

/// File name of the configuration that is written when there is none.
pub const DEFAULT_FILE: &str = "10-keelson.conflist";

/// A network: its plugins in order.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConfig {
    /// Version selected from what the configuration offers.
    pub version: Version,
    /// Network name.
    pub name: String,
    /// CHECK must not be called.
    pub disable_check: bool,
    /// GC must not be called.
    pub disable_gc: bool,
    /// Plugin objects as they were written, unknown keys included.
    pub plugins: Vec<PluginConfig>,
}

/// One plugin of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConfig {
    /// Name of the executable.
    pub kind: String,
    /// The object as it was written.
    pub object: Map<String, Value>,
}

impl PluginConfig {
    fn from_object(object: Map<String, Value>) -> Result<PluginConfig> {
        let kind = object.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        if kind.is_empty() || kind.contains(['/', '\\', '\0']) || kind == "." || kind == ".." {
            return Err(Error::InvalidConfig(format!("invalid plugin type {kind:?}")));
        }
        Ok(PluginConfig { kind, object })
    }

    /// Whether the plugin declares `capability`.
    pub fn has_capability(&self, capability: &str) -> bool {
        self.object
            .get("capabilities")
            .and_then(|c| c.get(capability))
            .and_then(Value::as_bool)
            .unwrap_or(false)
    }
}

impl NetworkConfig {
    /// Reads a list (`plugins`) or, as in versions before 1.0.0, a single plugin's configuration.
    ///
    /// # Errors
    /// Codes 1, 6 and 7 of the specification.
    pub fn parse(bytes: &[u8]) -> Result<NetworkConfig> {
        let mut root = parse_object(bytes)?;
        let offered = root.get("cniVersions").and_then(Value::as_array).cloned().unwrap_or_default();
        let offered = offered.iter().chain(root.get("cniVersion")).filter_map(Value::as_str);
        let version = Version::select(offered)?;
        let name = root.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !is_identifier(&name) {
            return Err(Error::InvalidConfig(format!("invalid network name {name:?}")));
        }
        let disable_check = flag(&root, "disableCheck")?;
        let disable_gc = flag(&root, "disableGC")?;
        let inlined_only = flag(&root, "loadOnlyInlinedPlugins")?;
        let plugins = match root.remove("plugins") {
            Some(Value::Array(list)) => list
                .into_iter()
                .map(|plugin| match plugin {
                    Value::Object(object) => PluginConfig::from_object(object),
                    other => Err(Error::InvalidConfig(format!("plugin is not an object: {other}"))),
                })
                .collect::<Result<Vec<_>>>()?,
            Some(_) => return Err(Error::InvalidConfig("plugins must be a list".into())),
            None if inlined_only => {
                return Err(Error::InvalidConfig("loadOnlyInlinedPlugins without plugins".into()));
            }
            None => vec![PluginConfig::from_object(root)?],
        };
        Ok(NetworkConfig { version, name, disable_check, disable_gc, plugins })
    }
}

fn flag(root: &Map<String, Value>, key: &str) -> Result<bool> {
    match root.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        // libcni takes the strings too.
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(Error::InvalidConfig(format!("{key} must be true or false, not {other}"))),
    }
}

/// A network with the file it came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The file.
    pub path: PathBuf,
    /// What it says.
    pub network: NetworkConfig,
}

/// The network to use: the first usable file of `dir` in lexical order, as kubelet's runtimes choose. `None`
/// when there is no file at all.
///
/// # Errors
/// When there are files and none is usable, the first one's error.
pub fn load_first(dir: &Path) -> Result<Option<Loaded>> {
    let mut failure = None;
    for path in candidates(dir)? {
        match load(dir, &path) {
            Ok(loaded) => return Ok(Some(loaded)),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "skipped unusable network configuration");
                failure.get_or_insert(Error::InvalidConfig(format!("{}: {error}", path.display())));
            }
        }
    }
    failure.map_or(Ok(None), Err)
}

fn load(dir: &Path, path: &Path) -> Result<Loaded> {
    let text = fs::read(path).map_err(|e| Error::io(format!("read {}", path.display()), e))?;
    let mut network = NetworkConfig::parse(&text)?;
    let root = parse_object(&text)?;
    if root.contains_key("plugins") && !flag(&root, "loadOnlyInlinedPlugins")? {
        // Plugins from the sibling folder that is named after the network (specification 1.1, section 1).
        for path in candidates(&dir.join(&network.name))? {
            let bytes = fs::read(&path).map_err(|e| Error::io(format!("read {}", path.display()), e))?;
            network.plugins.push(PluginConfig::from_object(parse_object(&bytes)?)?);
        }
    }
    if network.plugins.is_empty() {
        return Err(Error::InvalidConfig("network has no plugins".into()));
    }
    Ok(Loaded { path: path.to_owned(), network })
}

/// Files that may hold configurations, in lexical order; none when the folder is missing.
fn candidates(dir: &Path) -> Result<Vec<PathBuf>> {
    let context = |e| Error::io(format!("read folder {}", dir.display()), e);
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(context)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(context)?.path();
        let known = path.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json");
        if known && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// What the default configuration says.
#[derive(Debug, Clone)]
pub struct DefaultNetwork {
    /// How pods are wired.
    pub mode: Mode,
    /// The node's pod ranges, at most one per family.
    pub pod_cidrs: Vec<IpNet>,
    /// Ranges that are reached with pod addresses: every node's pods, and services.
    pub cluster_cidrs: Vec<IpNet>,
    /// MTU in bytes, 0 to derive it.
    pub mtu: u32,
    /// What a tunnel between nodes takes of each packet, in bytes.
    pub overhead: u32,
    /// Folder of the address records.
    pub data_dir: PathBuf,
}

/// What [`ensure_default`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefaultOutcome {
    /// There was no configuration: this file was written.
    Written(PathBuf),
    /// The default file had other pod ranges (the node was registered anew) and was updated.
    Updated(PathBuf),
    /// The default file is there and right.
    Unchanged(PathBuf),
    /// An administrator's configuration is there and is used.
    Foreign(PathBuf),
}

/// Writes `10-keelson.conflist` into `dir` when no configuration is there, and follows the node's ranges and the
/// tunnel's overhead in it later. Everything else that someone has changed in the file stays.
///
/// # Errors
/// I/O errors; [`Error::InvalidConfig`] when the ranges are unusable.
pub fn ensure_default(dir: &Path, network: &DefaultNetwork) -> Result<DefaultOutcome> {
    let path = dir.join(DEFAULT_FILE);
    let files = candidates(dir)?;
    if !files.contains(&path) {
        if let Some(foreign) = files.into_iter().next() {
            return Ok(DefaultOutcome::Foreign(foreign));
        }
        write_atomically(&path, &render(network)?)?;
        return Ok(DefaultOutcome::Written(path));
    }
    if let Some(first) = files.first().filter(|first| **first != path) {
        return Ok(DefaultOutcome::Foreign(first.clone()));
    }
    let text = fs::read(&path).map_err(|e| Error::io(format!("read {}", path.display()), e))?;
    let Ok(mut root) = parse_object(&text) else {
        // Ours and torn: nothing in it can be kept.
        write_atomically(&path, &render(network)?)?;
        return Ok(DefaultOutcome::Updated(path));
    };
    let fresh = parse_object(&render(network)?)?;
    let mut changed = false;
    let plugins = root.get_mut("plugins").and_then(Value::as_array_mut).into_iter().flatten();
    for plugin in plugins.filter(|p| p.get("type").and_then(Value::as_str) == Some(PLUGIN_TYPE)) {
        let (ranges, overhead) = (&fresh["plugins"][0]["ipam"]["ranges"], &fresh["plugins"][0]["overhead"]);
        if plugin["ipam"]["ranges"] != *ranges || plugin["overhead"] != *overhead {
            plugin["ipam"]["ranges"] = ranges.clone();
            plugin["overhead"] = overhead.clone();
            changed = true;
        }
    }
    if !changed {
        return Ok(DefaultOutcome::Unchanged(path));
    }
    let mut bytes = serde_json::to_vec_pretty(&root)
        .map_err(|source| Error::Decode { what: path.display().to_string(), source })?;
    bytes.push(b'\n');
    write_atomically(&path, &bytes)?;
    Ok(DefaultOutcome::Updated(path))
}

/// The bridges that the default configuration in `dir` names; none when there is no such file.
///
/// # Errors
/// I/O errors; a file that is not a configuration.
pub fn default_bridges(dir: &Path) -> Result<Vec<String>> {
    let path = dir.join(DEFAULT_FILE);
    let text = match fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Error::io(format!("read {}", path.display()), e))?,
    };
    let plugins = NetworkConfig::parse(&text)?.plugins.into_iter().filter(|p| p.kind == PLUGIN_TYPE);
    Ok(plugins.filter_map(|p| p.object.get("bridge").and_then(Value::as_str).map(str::to_owned)).collect())
}

/// Removes the default configuration; that there is none is success.
///
/// # Errors
/// I/O errors.
pub fn remove_default(dir: &Path) -> Result<()> {
    let path = dir.join(DEFAULT_FILE);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

fn render(network: &DefaultNetwork) -> Result<Vec<u8>> {
    let plugin = json!({
        "type": PLUGIN_TYPE,
        "mode": network.mode,
        "bridge": "cni0",
        "mtu": network.mtu,
        "overhead": network.overhead,
        "ipMasq": true,
        "clusterCIDR": network.cluster_cidrs,
        "ipam": {"ranges": network.pod_cidrs, "dataDir": network.data_dir},
        "capabilities": {"portMappings": true},
    });
    // What is written must be what the plugin takes.
    let mut request = plugin.clone();
    request["cniVersion"] = json!(Version::V1_1_0.as_str());
    request["name"] = json!("keelson");
    Config::parse(request.to_string().as_bytes())?;
    let list = json!({"cniVersion": Version::V1_1_0.as_str(), "name": "keelson", "plugins": [plugin]});
    let mut bytes = serde_json::to_vec_pretty(&list)
        .map_err(|source| Error::Decode { what: "default configuration".into(), source })?;
    bytes.push(b'\n');
    Ok(bytes)
}

pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let attempt = || {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // A leading dot and no known extension: no reader takes it for a configuration.
        let temporary = path.with_file_name(format!(".{name}.tmp"));
        fs::write(&temporary, bytes)?;
        fs::rename(&temporary, path)
    };
    attempt().map_err(|e| Error::io(format!("write {}", path.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(cidr: &str) -> DefaultNetwork {
        DefaultNetwork {
            mode: Mode::Bridge,
            pod_cidrs: vec![cidr.parse().unwrap()],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "10.96.0.0/16".parse().unwrap()],
            mtu: 0,
            overhead: 50,
            data_dir: "/var/lib/keelson/cni".into(),
        }
    }

    #[test]
    fn first_usable_file_wins() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert!(load_first(dir.path()).unwrap().is_none());
        assert!(load_first(&dir.path().join("missing")).unwrap().is_none());
        put("00-broken.conf", "{");
        assert!(load_first(dir.path()).is_err());
        put("20-b.conflist", r#"{"cniVersion":"1.0.0","name":"b","plugins":[{"type":"x"},{"type":"y"}]}"#);
        put("10-a.conf", r#"{"cniVersion":"0.4.0","name":"a","type":"x","keep":1}"#);
        put("05-ignored.txt", "{}");
        let loaded = load_first(dir.path()).unwrap().unwrap();
        assert_eq!((loaded.network.name.as_str(), loaded.network.version), ("a", Version::V0_4_0));
        assert_eq!(loaded.network.plugins[0].object["keep"], 1);
    }

    #[test]
    fn sibling_folder_adds_plugins() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("net")).unwrap();
        fs::write(dir.path().join("net/10-x.conf"), r#"{"type":"extra"}"#).unwrap();
        let text = r#"{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"x"}]}"#;
        fs::write(dir.path().join("10.conflist"), text).unwrap();
        assert_eq!(load_first(dir.path()).unwrap().unwrap().network.plugins.len(), 2);
        let text =
            r#"{"cniVersion":"1.1.0","name":"net","loadOnlyInlinedPlugins":true,"plugins":[{"type":"x"}]}"#;
        fs::write(dir.path().join("10.conflist"), text).unwrap();
        assert_eq!(load_first(dir.path()).unwrap().unwrap().network.plugins.len(), 1);
    }

    #[test]
    fn default_is_written_once_and_follows_the_ranges() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DEFAULT_FILE);
        let ensure = |cidr: &str| ensure_default(dir.path(), &network(cidr)).unwrap();
        assert_eq!(ensure("10.244.1.0/24"), DefaultOutcome::Written(path.clone()));
        assert_eq!(ensure("10.244.1.0/24"), DefaultOutcome::Unchanged(path.clone()));
        let edited = fs::read_to_string(&path).unwrap().replace("\"mtu\": 0", "\"mtu\": 1400");
        fs::write(&path, edited).unwrap();
        assert_eq!(ensure("10.244.2.0/24"), DefaultOutcome::Updated(path.clone()));
        let loaded = load_first(dir.path()).unwrap().unwrap();
        assert_eq!(loaded.network.plugins[0].object["mtu"], 1400);
        assert_eq!(loaded.network.plugins[0].object["ipam"]["ranges"][0], "10.244.2.0/24");
        assert_eq!(default_bridges(dir.path()).unwrap(), ["cni0"]);
        let unwrapped = DefaultNetwork { overhead: 0, ..network("10.244.2.0/24") };
        assert_eq!(ensure_default(dir.path(), &unwrapped).unwrap(), DefaultOutcome::Updated(path.clone()));
        assert_eq!(load_first(dir.path()).unwrap().unwrap().network.plugins[0].object["overhead"], 0);
        let foreign = dir.path().join("05-cilium.conflist");
        fs::write(&foreign, "{}").unwrap();
        assert_eq!(ensure("10.244.2.0/24"), DefaultOutcome::Foreign(foreign.clone()));
        remove_default(dir.path()).unwrap();
        remove_default(dir.path()).unwrap();
        assert!(!path.exists() && foreign.exists());
        assert!(default_bridges(dir.path()).unwrap().is_empty());
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_never_panics(key in "[a-zA-Z]{0,24}", text in ".{0,60}") {
            let _ = NetworkConfig::parse(text.as_bytes());
            for key in ["cniVersion", "cniVersions", "name", "plugins", "disableGC", key.as_str()] {
                for value in [serde_json::json!(text), serde_json::json!([text, 1]), serde_json::json!({ "type": text })] {
                    let mut root = serde_json::json!({"cniVersion": "1.0.0", "name": "a", "type": "x"});
                    root[key] = value;
                    let _ = NetworkConfig::parse(root.to_string().as_bytes());
                }
            }
        }
    }

    #[test]
    fn unusable_lists_are_refused() {
        for (text, code) in [
            ("[]", 6),
            (r#"{"cniVersion":"0.1.0","name":"a","type":"x"}"#, 1),
            (r#"{"cniVersion":"1.0.0","name":"../a","type":"x"}"#, 7),
            (r#"{"cniVersion":"1.0.0","name":"a","plugins":{}}"#, 7),
            (r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"../../bin/sh"}]}"#, 7),
            (r#"{"cniVersion":"1.0.0","name":"a","loadOnlyInlinedPlugins":true,"type":"x"}"#, 7),
        ] {
            assert_eq!(NetworkConfig::parse(text.as_bytes()).unwrap_err().code(), code, "{text}");
        }
    }
}
