//! Volumes, and where containers mount them.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use super::env::{VOLUME_FIELDS, field_ref, resource_field_ref};
use super::errors::{Errors, Path, flag, items, list, number, set, text};
use super::rules::{self, file_mode, volume_file_path};
use crate::resources::metadata::{dns_label, dns_subdomain, qualified_name};
use keelson_quantity::Quantity;

/// Sound volumes by name.
pub(super) type Volumes<'v> = BTreeMap<&'v str, &'v Value>;

/// Upstream's order of the sources: the first that is set is checked, the others are too many.
const SOURCES: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

/// `volumes` of a pod; gives back those that containers may mount. `pod` is the pod's name, if it has one.
pub(super) fn volumes<'v>(errors: &mut Errors, spec: &'v Value, pod: &str, at: &Path) -> Volumes<'v> {
    let mut sound = Volumes::new();
    let made_claims: HashSet<String> = list(spec, "volumes")
        .iter()
        .filter(|volume| set(volume, "ephemeral") && !pod.is_empty())
        .map(|volume| format!("{pod}-{}", text(volume, "name")))
        .collect();
    for (at, volume) in items(spec, "volumes", at) {
        let mut own = Errors::default();
        source(&mut own, volume, pod, &at);
        let name = text(volume, "name");
        match name {
            "" => own.required(&at.child("name"), ""),
            _ => own.rule(&at.child("name"), &volume["name"], dns_label(name)),
        }
        if sound.contains_key(name) {
            own.duplicate(&at.child("name"), &volume["name"]);
        }
        if own.0.is_empty() {
            sound.insert(name, volume);
        }
        errors.0.append(&mut own.0);
        let claim = text(&volume["persistentVolumeClaim"], "claimName");
        if made_claims.contains(claim) {
            let words = "must not reference a PVC that gets created for an ephemeral volume";
            errors.invalid(&at.child("persistentVolumeClaim").child("claimName"), &claim.into(), words);
        }
    }
    sound
}

fn source(errors: &mut Errors, volume: &Value, pod: &str, at: &Path) {
    let mut count = 0;
    for kind in SOURCES.iter().filter(|kind| set(volume, kind)) {
        count += 1;
        let (source, at) = (&volume[*kind], at.child(kind));
        if count > 1 {
            errors.forbidden(&at, "may not specify more than 1 volume type");
            continue;
        }
        one_source(errors, kind, source, &at);
    }
    if count == 0 {
        errors.required(at, "must specify a volume type");
    }
    let name = text(volume, "name");
    if set(volume, "ephemeral")
        && !pod.is_empty()
        && let Err(why) = dns_subdomain(&format!("{pod}-{name}"))
    {
        let words = format!("PVC name {:?}: {why}", format!("{pod}-{name}"));
        errors.invalid(&at.child("name"), &volume["name"], words);
    }
}

pub(super) fn one_source(errors: &mut Errors, kind: &str, source: &Value, at: &Path) {
    match kind {
        "emptyDir" if text(source, "sizeLimit").parse::<Quantity>().is_ok_and(|size| size.sign() < 0) => {
            errors.forbidden(&at.child("sizeLimit"), "SizeLimit field must be a valid resource quantity");
        }
        "hostPath" => host_path(errors, source, at),
        "secret" => files_of(errors, source, "secretName", at),
        "configMap" => files_of(errors, source, "name", at),
        "persistentVolumeClaim" => errors.need(source, "claimName", at),
        "nfs" => {
            errors.need(source, "server", at);
            errors.need(source, "path", at);
            if !text(source, "path").starts_with('/') {
                errors.invalid(&at.child("path"), &json!(text(source, "path")), "must be an absolute path");
            }
        }
        "downwardAPI" => {
            file_mode(errors, &at.child("defaultMode"), &source["defaultMode"]);
            for (_, file) in items(source, "items", at) {
                downward_file(errors, file, at);
            }
        }
        "projected" => {
            file_mode(errors, &at.child("defaultMode"), &source["defaultMode"]);
            projected(errors, source, at);
        }
        "csi" => csi(errors, source, at),
        "ephemeral" if source["volumeClaimTemplate"].is_null() => {
            errors.required(&at.child("volumeClaimTemplate"), "");
        }
        "image" => {
            errors.need(source, "reference", at);
            errors.one_of(&at.child("pullPolicy"), &source["pullPolicy"], super::containers::PULL_POLICIES);
        }
        "gitRepo" => {
            errors.need(source, "repository", at);
            rules::descending_path(errors, &at.child("directory"), &source["directory"]);
        }
        // The other ones name storage of clouds and vendors; a node says so in an event if it can't mount one.
        _ => {}
    }
}

fn host_path(errors: &mut Errors, source: &Value, at: &Path) {
    const TYPES: &[&str] = &[
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    if text(source, "path").is_empty() {
        return errors.required(&at.child("path"), "");
    }
    rules::no_backsteps(errors, &at.child("path"), &source["path"]);
    errors.optional_one_of(&at.child("type"), &source["type"], TYPES);
}

fn files_of(errors: &mut Errors, source: &Value, name: &str, at: &Path) {
    errors.need(source, name, at);
    file_mode(errors, &at.child("defaultMode"), &source["defaultMode"]);
    for (at, item) in items(source, "items", at) {
        key_to_path(errors, item, &at);
    }
}

fn key_to_path(errors: &mut Errors, item: &Value, at: &Path) {
    errors.need(item, "key", at);
    errors.need(item, "path", at);
    volume_file_path(errors, &at.child("path"), &item["path"]);
    file_mode(errors, &at.child("mode"), &item["mode"]);
}

fn downward_file(errors: &mut Errors, file: &Value, at: &Path) {
    errors.need(file, "path", at);
    volume_file_path(errors, &at.child("path"), &file["path"]);
    match (set(file, "fieldRef"), set(file, "resourceFieldRef")) {
        (true, both) => {
            field_ref(errors, &file["fieldRef"], VOLUME_FIELDS, &at.child("fieldRef"));
            if both {
                let words = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.invalid(at, &json!("resource"), words);
            }
        }
        (false, true) => {
            resource_field_ref(errors, &file["resourceFieldRef"], true, &at.child("resourceFieldRef"));
        }
        (false, false) => errors.required(at, "one of fieldRef and resourceFieldRef is required"),
    }
    file_mode(errors, &at.child("mode"), &file["mode"]);
}

fn csi(errors: &mut Errors, source: &Value, at: &Path) {
    let driver = text(source, "driver");
    if driver.is_empty() {
        errors.required(&at.child("driver"), "");
    } else {
        errors.rule(&at.child("driver"), &source["driver"], dns_subdomain(&driver.to_lowercase()));
    }
    if set(source, "nodePublishSecretRef") {
        let secret = text(&source["nodePublishSecretRef"], "name");
        if secret.is_empty() {
            errors.required(&at.child("nodePublishSecretRef").child("name"), "");
        } else {
            errors.rule(&at.child("name"), &secret.into(), dns_subdomain(secret));
        }
    }
}

/// The sources of a projected volume, and that no two of them write the same file.
fn projected(errors: &mut Errors, volume: &Value, at: &Path) {
    let mut paths = HashSet::new();
    for (place, source) in items(volume, "sources", at) {
        let mut count = 0;
        let mut given = |kind: &str| {
            let is_set = set(source, kind);
            count += usize::from(is_set);
            is_set.then(|| (&source[kind], place.child(kind)))
        };
        let mut write = |errors: &mut Errors, path: &Value, owner: &Value| {
            let text = path.as_str().unwrap_or_default();
            if !text.is_empty() && !paths.insert(text.to_owned()) {
                errors.invalid(at, owner, "conflicting duplicate paths");
            }
        };
        for kind in ["secret", "configMap"] {
            if let Some((source, place)) = given(kind) {
                errors.need(source, "name", &place);
                for (place, item) in items(source, "items", &place) {
                    key_to_path(errors, item, &place);
                    write(errors, &item["path"], &source["name"]);
                }
            }
        }
        if let Some((source, place)) = given("downwardAPI") {
            for file in list(source, "items") {
                downward_file(errors, file, &place);
                write(errors, &file["path"], &file["path"]);
            }
        }
        if let Some((source, place)) = given("serviceAccountToken") {
            token(errors, source, at, &place);
        }
        if let Some((source, place)) = given("clusterTrustBundle") {
            trust_bundle(errors, source, &place);
            write(errors, &source["path"], &source["path"]);
        }
        if let Some((source, place)) = given("podCertificate") {
            pod_certificate(errors, source, &place);
            for field in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
                write(errors, &source[field], &source[field]);
            }
        }
        if count > 1 {
            errors.forbidden(&place, "may not specify more than 1 volume type per source");
        }
    }
}

fn token(errors: &mut Errors, source: &Value, volume: &Path, at: &Path) {
    let seconds = number(source, "expirationSeconds");
    let place = at.child("expirationSeconds");
    if seconds < 600 {
        errors.invalid(&place, &json!(seconds), "may not specify a duration less than 10 minutes");
    }
    if seconds > 1 << 32 {
        errors.invalid(&place, &json!(seconds), "may not specify a duration larger than 2^32 seconds");
    }
    // Upstream gives the volume's path here, not the source's.
    errors.need(source, "path", volume);
    volume_file_path(errors, &volume.child("path"), &source["path"]);
}

fn trust_bundle(errors: &mut Errors, source: &Value, at: &Path) {
    match (set(source, "name"), set(source, "signerName")) {
        (true, true) => errors.invalid(at, source, "only one of name and signerName may be used"),
        (true, false) => {
            if text(source, "name").is_empty() {
                errors.required(&at.child("name"), "must be a valid object name");
            }
            if set(source, "labelSelector") {
                let words = "labelSelector must be unset if name is specified";
                errors.invalid(&at.child("labelSelector"), &source["labelSelector"], words);
            }
        }
        (false, true) => {
            rules::signer_name(errors, &at.child("signerName"), &source["signerName"]);
            super::selectors::label_selector(errors, &source["labelSelector"], &at.child("labelSelector"));
        }
        (false, false) => errors.required(at, "either name or signerName must be specified"),
    }
    errors.need(source, "path", at);
    volume_file_path(errors, &at.child("path"), &source["path"]);
}

fn pod_certificate(errors: &mut Errors, source: &Value, at: &Path) {
    const KEYS: &[&str] = &["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
    rules::signer_name(errors, &at.child("signerName"), &source["signerName"]);
    if !KEYS.contains(&text(source, "keyType")) {
        errors.unsupported(&at.child("keyType"), &json!(text(source, "keyType")), KEYS);
    }
    if source["maxExpirationSeconds"].as_i64().is_some_and(|seconds| seconds < 3600) {
        let words = "if provided, maxExpirationSeconds must be >= 3600";
        errors.invalid(&at.child("maxExpirationSeconds"), &source["maxExpirationSeconds"], words);
    }
    let mut any = false;
    for field in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
        if !text(source, field).is_empty() {
            any = true;
            volume_file_path(errors, &at.child(field), &source[field]);
        }
    }
    if !any {
        errors
            .required(at, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath");
    }
}

/// `volumeMounts` of a container.
pub(super) fn mounts(errors: &mut Errors, container: &Value, volumes: &Volumes<'_>, at: &Path) {
    let list_at = at.child("volumeMounts");
    let devices = list(container, "volumeDevices");
    let mut seen = HashSet::new();
    for (at, mount) in items(container, "volumeMounts", at) {
        let (name, path) = (text(mount, "name"), text(mount, "mountPath"));
        errors.need(mount, "name", &at);
        if !volumes.contains_key(name) {
            errors.not_found(&at.child("name"), &json!(name), "");
        }
        errors.need(mount, "mountPath", &at);
        if !seen.insert(path) {
            errors.invalid(&at.child("mountPath"), &json!(path), "must be unique");
        }
        if devices.iter().any(|device| text(device, "name") == name) {
            errors.invalid(&at.child("name"), &json!(name), "must not already exist in volumeDevices");
        }
        if devices.iter().any(|device| text(device, "devicePath") == path) {
            errors.invalid(
                &at.child("mountPath"),
                &json!(path),
                "must not already exist as a path in volumeDevices",
            );
        }
        // Upstream gives the list's path for what follows.
        if !text(mount, "subPath").is_empty() {
            rules::descending_path(errors, &list_at.child("subPath"), &mount["subPath"]);
        }
        if !text(mount, "subPathExpr").is_empty() {
            if !text(mount, "subPath").is_empty() {
                let words = "subPathExpr and subPath are mutually exclusive";
                errors.invalid(&at.child("subPathExpr"), &mount["subPathExpr"], words);
            }
            rules::descending_path(errors, &list_at.child("subPathExpr"), &mount["subPathExpr"]);
        }
        mount_modes(errors, mount, container, &list_at);
    }
}

fn mount_modes(errors: &mut Errors, mount: &Value, container: &Value, at: &Path) {
    let propagation = &mount["mountPropagation"];
    let place = at.child("mountPropagation");
    errors.optional_one_of(&place, propagation, &["Bidirectional", "HostToContainer", "None"]);
    if *propagation == "Bidirectional" && !flag(&container["securityContext"], "privileged") {
        errors
            .forbidden(&place, "Bidirectional mount propagation is available only to privileged containers");
    }
    let place = at.child("recursiveReadOnly");
    match mount["recursiveReadOnly"].as_str() {
        Some("Enabled" | "IfPossible") => {
            if !flag(mount, "readOnly") {
                errors.forbidden(&place, "may only be specified when readOnly is true");
            }
            if !matches!(propagation.as_str(), None | Some("None")) {
                errors.forbidden(
                    &place,
                    "may only be specified when mountPropagation is None or not specified",
                );
            }
        }
        None | Some("Disabled") => {}
        Some(_) => {
            errors.unsupported(&place, &mount["recursiveReadOnly"], &["Disabled", "Enabled", "IfPossible"])
        }
    }
}

/// `volumeDevices` of a container.
pub(super) fn devices(errors: &mut Errors, container: &Value, volumes: &Volumes<'_>, at: &Path) {
    let (mut names, mut paths) = (HashSet::new(), HashSet::new());
    for (at, device) in items(container, "volumeDevices", at) {
        let (name, path) = (text(device, "name"), text(device, "devicePath"));
        let (name_at, path_at) = (at.child("name"), at.child("devicePath"));
        errors.need(device, "name", &at);
        if !name.is_empty() && !names.insert(name) {
            errors.invalid(&name_at, &json!(name), "must be unique");
        }
        match volumes.get(name) {
            None => errors.not_found(&name_at, &json!(name), ""),
            Some(volume) if !set(volume, "persistentVolumeClaim") && !set(volume, "ephemeral") => {
                let words =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.invalid(&name_at, &json!(name), words);
            }
            Some(_) => {}
        }
        errors.need(device, "devicePath", &at);
        if paths.contains(path) {
            errors.invalid(&path_at, &json!(path), "must be unique");
        }
        if path.split('/').any(|part| part == "..") {
            errors.invalid(&path_at, &json!(path), "can not contain backsteps ('..')");
        } else {
            paths.insert(path);
        }
    }
}

/// `resourceClaims` of a pod; gives back their names.
pub(super) fn resource_claims<'v>(errors: &mut Errors, spec: &'v Value, at: &Path) -> Vec<&'v str> {
    let mut names = Vec::new();
    for (at, claim) in items(spec, "resourceClaims", at) {
        let name = text(claim, "name");
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        } else if names.contains(&name) {
            errors.duplicate(&at.child("name"), &claim["name"]);
        } else {
            errors.rule(&at.child("name"), &claim["name"], dns_label(name));
            names.push(name);
        }
        match (set(claim, "resourceClaimName"), set(claim, "resourceClaimTemplateName")) {
            (true, true) => errors.invalid(
                &at,
                claim,
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
            (false, false) => errors.invalid(
                &at,
                claim,
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            ),
            _ => {}
        }
    }
    names
}

/// `readinessGates` of a pod.
pub(super) fn readiness_gates(errors: &mut Errors, spec: &Value, at: &Path) {
    for (at, gate) in items(spec, "readinessGates", at) {
        let at = at.child("conditionType");
        errors.rule(&at, &gate["conditionType"], qualified_name(text(gate, "conditionType")));
    }
}
