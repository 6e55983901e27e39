//! The environment of a container.

/// PATH when neither image nor pod has one, as containerd sets it.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Merges the image's variables and the pod's; later entries win and keep the place of the first.
pub fn container_env(image: &[String], pod: &[(String, String)], hostname: &str, tty: bool) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut set = |entry: String| {
        let name_len = entry.find('=').map_or(entry.len(), |i| i + 1);
        match out.iter_mut().find(|have| have.get(..name_len) == entry.get(..name_len)) {
            Some(have) => *have = entry,
            None => out.push(entry),
        }
    };
    set(DEFAULT_PATH.to_string());
    if !hostname.is_empty() {
        set(format!("HOSTNAME={hostname}"));
    }
    if tty {
        set("TERM=xterm".to_string());
    }
    for entry in image {
        set(entry.clone());
    }
    for (name, value) in pod {
        set(format!("{name}={value}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_wins() {
        let image = ["PATH=/bin".to_string(), "A=1".to_string(), "AB=x".to_string()];
        let pod = [("A".to_string(), "2".to_string()), ("TERM".to_string(), "dumb".to_string())];
        assert_eq!(
            container_env(&image, &pod, "web-0", true),
            ["PATH=/bin", "HOSTNAME=web-0", "TERM=dumb", "A=2", "AB=x"]
        );
        assert_eq!(container_env(&[], &[], "", false), [DEFAULT_PATH]);
    }
}
