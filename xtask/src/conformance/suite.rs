//! Upstream's end-to-end suite as an ordinary Go package: a module of our own that requires `k8s.io/kubernetes` and
//! replaces each staging module by its published version, since the module on the proxy leaves its staging folders out.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use keelson_tests::{cmd, paths};

/// The release of Kubernetes whose suite is run.
pub const VERSION: &str = "v1.36.4";

/// Oldest Go that builds it (the `go` line of its go.mod).
const GO_MINOR: u32 = 26;

/// The suite's module, and the programs built from it.
#[derive(Debug, Clone)]
pub struct Suite {
    /// Folder of our module.
    module: PathBuf,
    /// Folder of the programs.
    bin: PathBuf,
    go: PathBuf,
}

/// The programs that every run needs: name, package, and whether the package is a test.
const PROGRAMS: &[(&str, &str, bool)] = &[
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl", false),
    ("agnhost", "k8s.io/kubernetes/test/images/agnhost", false),
    ("e2e.test", "k8s.io/kubernetes/test/e2e", true),
];

impl Suite {
    /// Writes the module. Nothing is fetched or built yet but what `go` needs to read the upstream module.
    pub fn prepare() -> Result<Self> {
        let base = paths::cache().join("conformance").join(VERSION);
        let suite = Self { module: base.join("module"), bin: base.join("bin"), go: go()? };
        fs::create_dir_all(&suite.module)?;
        fs::create_dir_all(&suite.bin)?;
        if !suite.module.join("go.mod").exists() {
            suite.write_module()?;
        }
        Ok(suite)
    }

    fn write_module(&self) -> Result<()> {
        // `go mod download -json` runs outside any module and tells where the source was put.
        let mut download =
            self.go_command(&["mod", "download", "-json", &format!("k8s.io/kubernetes@{VERSION}")]);
        let told = cmd::fetch(download.current_dir(&self.bin)).context("fetch the Kubernetes module")?;
        let told: serde_json::Value = serde_json::from_slice(&told.stdout)?;
        let source = PathBuf::from(told["Dir"].as_str().context("go mod download names no folder")?);
        let upstream = fs::read_to_string(source.join("go.mod"))?;
        let sums = fs::read(source.join("go.sum"))?;
        fs::write(self.module.join("go.sum"), sums)?;
        fs::write(
            self.module.join("suite.go"),
            "// Package conformance only pins versions.\npackage conformance\n",
        )?;
        // Last, since it says that the folder is whole.
        fs::write(self.module.join("go.mod"), module_text(&upstream, VERSION)?)?;
        Ok(())
    }

    /// The go command, for a module other than the suite's.
    pub fn go_anywhere(&self) -> Command {
        let mut command = Command::new(&self.go);
        command.env("GOTOOLCHAIN", "local");
        command
    }

    fn go_command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(&self.go);
        // The toolchain at hand, and static programs: they run in images that hold nothing else.
        command
            .args(args)
            .env("GOTOOLCHAIN", "local")
            .env("GOFLAGS", "-mod=mod -buildvcs=false")
            .env("CGO_ENABLED", "0");
        command.current_dir(&self.module);
        command
    }

    /// Folder of a module's source, as the suite's module selects it.
    pub fn source_of(&self, module: &str) -> Result<PathBuf> {
        let args = ["list", "-m", "-f", "{{.Dir}}", module];
        Ok(PathBuf::from(cmd::trimmed(&cmd::fetch(&mut self.go_command(&args))?)))
    }

    /// Builds a Go package of the suite's module graph, unless it is built already; gives the program.
    pub fn program(&self, name: &str, package: &str, is_test: bool) -> Result<PathBuf> {
        let program = self.bin.join(name);
        if program.exists() {
            return Ok(program);
        }
        let partial = self.bin.join(format!("{name}.partial"));
        let mut args: Vec<&OsStr> = match is_test {
            true => ["test", "-c", "-vet=off"].map(OsStr::new).to_vec(),
            false => vec!["build".as_ref()],
        };
        let flags = linker_flags(VERSION);
        args.extend(["-trimpath", "-ldflags", &flags, "-o"].map(OsStr::new));
        args.push(partial.as_os_str());
        args.push(package.as_ref());
        cmd::fetch(&mut self.go_command(&args)).with_context(|| format!("build {name} from {package}"))?;
        fs::rename(&partial, &program)?;
        Ok(program)
    }

    /// Builds what every run needs.
    pub fn build(
        &self,
        mut step: impl FnMut(&str, &mut dyn FnMut() -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        for (name, package, is_test) in PROGRAMS {
            if !self.bin.join(name).exists() {
                step(&format!("go build {name}"), &mut || self.program(name, package, *is_test).map(drop))?;
            }
        }
        Ok(())
    }

    /// Path of one of the programs; it is there after [`Suite::build`].
    pub fn path(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    fn ask(&self, flag: &str) -> Result<String> {
        let home = tempfile::tempdir()?;
        cmd::text(Command::new(self.path("e2e.test")).arg(flag).current_dir(home.path()))
    }

    /// Full names of all tests of the suite, as upstream writes them, sorted.
    pub fn tests(&self) -> Result<Vec<String>> {
        let cache = self.bin.join("tests.txt");
        if !cache.exists() {
            fs::write(&cache, self.ask("--list-tests")?)?;
        }
        let mut names = parse_list(&fs::read_to_string(&cache)?);
        names.sort();
        names.dedup();
        if names.is_empty() {
            bail!("{} --list-tests lists no test", self.path("e2e.test").display());
        }
        Ok(names)
    }

    /// The images that the suite may ask for, as it names them by itself.
    pub fn images(&self) -> Result<Vec<String>> {
        let mut images: Vec<String> = self
            .ask("--list-images")?
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect();
        images.sort();
        images.dedup();
        Ok(images)
    }
}

/// The lines of `--list-tests` that name a test: `    test/e2e/…go:NN: NAME`.
fn parse_list(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            let (place, name) = line.trim().split_once(": ")?;
            place.contains(".go:").then(|| name.trim().to_owned())
        })
        .collect()
}

/// The text of go.mod: upstream's `godebug` lines and each of its staging modules at the version published with it.
fn module_text(upstream: &str, version: &str) -> Result<String> {
    let staging = version.strip_prefix("v1.").with_context(|| format!("{version} is not v1.x"))?;
    let mut text = String::from("module keelson.test/conformance\n\n");
    for line in upstream.lines().filter(|line| line.starts_with("go ") || line.starts_with("godebug ")) {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str(&format!("\nrequire k8s.io/kubernetes {version}\n\nreplace (\n"));
    let mut found = false;
    for line in upstream.lines() {
        if let Some((module, to)) = line.trim().split_once(" => ")
            && to.starts_with("./staging/")
        {
            found = true;
            text.push_str(&format!("\t{module} => {module} v0.{staging}\n"));
        }
    }
    if !found {
        bail!("the go.mod of {version} names no staging module");
    }
    text.push_str(")\n");
    Ok(text)
}

/// The version that the programs report, as a release build of upstream sets it.
fn linker_flags(version: &str) -> String {
    let numbers: Vec<&str> = version.trim_start_matches('v').split('.').collect();
    let (major, minor) = (numbers.first().copied().unwrap_or("1"), numbers.get(1).copied().unwrap_or("0"));
    let mut flags = String::from("-s -w");
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in
            [("gitVersion", version), ("gitMajor", major), ("gitMinor", minor), ("gitTreeState", "clean")]
        {
            flags.push_str(&format!(" -X {package}.{name}={value}"));
        }
    }
    flags
}

/// A Go that is new enough: the machine's own, else Debian's, unpacked and not installed.
fn go() -> Result<PathBuf> {
    if let Ok(text) = cmd::text(Command::new("go").arg("version"))
        && go_minor(&text).is_some_and(|minor| minor >= GO_MINOR)
    {
        return Ok(PathBuf::from("go"));
    }
    let dir = paths::cache().join("go");
    let program = dir.join(format!("usr/lib/go-1.{GO_MINOR}/bin/go"));
    if !program.exists() {
        let apt = keelson_tests::debian::Apt::suite("trixie-backports")?;
        for package in [format!("golang-1.{GO_MINOR}-src"), format!("golang-1.{GO_MINOR}-go")] {
            let deb = apt.package(&package).with_context(|| format!("fetch Debian's {package}"))?;
            keelson_tests::debian::unpack(&deb, &dir)?;
        }
        // The package splits the tree between /usr/lib and /usr/share; Go wants it in one place.
        join_tree(&dir)?;
    }
    Ok(program)
}

/// Replaces the links to `/usr/share/go-1.N/…` in the unpacked tree by links to where that was unpacked.
fn join_tree(dir: &Path) -> Result<()> {
    let lib = dir.join(format!("usr/lib/go-1.{GO_MINOR}"));
    let share = dir.join(format!("usr/share/go-1.{GO_MINOR}"));
    for entry in fs::read_dir(&share)? {
        let entry = entry?;
        let at = lib.join(entry.file_name());
        if fs::symlink_metadata(&at).is_ok_and(|meta| meta.is_symlink()) {
            fs::remove_file(&at)?;
        }
        if fs::symlink_metadata(&at).is_err() {
            std::os::unix::fs::symlink(entry.path(), &at)?;
        }
    }
    Ok(())
}

fn go_minor(text: &str) -> Option<u32> {
    let version = text.split_whitespace().find_map(|word| word.strip_prefix("go1."))?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_modules_are_pinned_to_the_release() {
        let upstream = "module k8s.io/kubernetes\n\ngo 1.26.0\n\ngodebug default=go1.26\n\nrequire (\n\tk8s.io/api v0.0.0\n)\n\
                        replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n";
        let text = module_text(upstream, "v1.36.4").unwrap();
        assert!(text.contains("\tk8s.io/api => k8s.io/api v0.36.4\n"), "{text}");
        assert!(text.contains("require k8s.io/kubernetes v1.36.4"), "{text}");
        assert!(text.contains("godebug default=go1.26"), "{text}");
        assert!(module_text("module x\n", "v1.36.4").is_err());
    }

    #[test]
    fn names_of_tests_are_read_from_the_list() {
        let text = "The following spec names can be used with 'ginkgo run --focus/skip':\n    \
                    test/e2e/a.go:12: [sig-node] Pods: run: it [Conformance]\n\n";
        assert_eq!(parse_list(text), ["[sig-node] Pods: run: it [Conformance]"]);
    }

    #[test]
    fn the_minor_version_of_go_is_read() {
        assert_eq!(go_minor("go version go1.26.8 linux/amd64"), Some(26));
        assert_eq!(go_minor("go version go1.27rc1 linux/amd64"), Some(27));
        assert_eq!(go_minor("no"), None);
    }
}
