//! A reader for the Go type declarations of the Kubernetes API packages.
//!
//! The API packages follow one style (gofmt, one field a line, tags in backquotes), which is what makes a
//! line-based reader enough. Anything outside that style surfaces as an unknown type when facts are written.

use super::proto::Messages;
use anyhow::{Context, Result};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Every loaded package by import path.
pub struct Packages(pub BTreeMap<String, Package>);

/// One Go package of API types.
pub struct Package {
    /// API group as registered in the scheme; `None` when the package registers none.
    pub group: Option<String>,
    /// Kinds registered in the scheme.
    pub kinds: Vec<String>,
    /// Declared types.
    pub types: BTreeMap<String, Decl>,
    /// Its generated.proto.
    pub messages: Messages,
}

/// One type declaration, with the imports of the file it stands in.
pub struct Decl {
    /// Alias to import path.
    pub imports: BTreeMap<String, String>,
    /// `+marker` comments above it.
    pub markers: Vec<String>,
    /// What it is.
    pub body: Body,
    /// Constants of this type, for enums.
    pub constants: Vec<String>,
}

/// What a declaration is.
pub enum Body {
    /// A struct.
    Struct(Vec<Field>),
    /// Another type under a new name, or an alias.
    Named(String),
}

/// A struct field with a JSON tag.
pub struct Field {
    /// JSON name; empty for an inlined struct.
    pub json: String,
    /// `omitempty`.
    pub omitempty: bool,
    /// `omitzero`.
    pub omitzero: bool,
    /// Inlined into the enclosing object in JSON.
    pub inline: bool,
    /// Go type expression.
    pub expr: String,
    /// Protobuf field number, 0 where there is none.
    pub number: u32,
    /// Protobuf field name.
    pub proto_name: String,
    /// `patchStrategy` tag.
    pub patch_strategy: Option<String>,
    /// `patchMergeKey` tag.
    pub patch_merge_key: Option<String>,
    /// `+marker` comments above it.
    pub markers: Vec<String>,
}

impl Packages {
    /// Loads packages from (import path, folder) pairs.
    pub fn load(folders: &[(String, PathBuf)]) -> Result<Self> {
        let mut packages = BTreeMap::new();
        for (path, folder) in folders {
            let package = Package::load(folder).with_context(|| format!("cannot read Go package {path}"))?;
            packages.insert(path.clone(), package);
        }
        Ok(Self(packages))
    }
}

impl Package {
    fn load(folder: &Path) -> Result<Self> {
        let mut package = Self {
            group: None,
            kinds: Vec::new(),
            types: BTreeMap::new(),
            messages: Messages::load(folder)?,
        };
        let mut constants: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut files: Vec<_> = std::fs::read_dir(folder)?.collect::<Result<_, _>>()?;
        files.sort_by_key(std::fs::DirEntry::file_name);
        for file in files {
            let name = file.file_name().to_string_lossy().into_owned();
            let generated = name.starts_with("zz_generated")
                || name.ends_with(".pb.go")
                || name.ends_with("_generated.go")
                || name == "fieldsv1_string.go";
            if !name.ends_with(".go") || name.ends_with("_test.go") || generated {
                continue;
            }
            let text = std::fs::read_to_string(file.path())?;
            if name == "register.go" {
                package.registration(&text);
            } else {
                package.file(&text, &mut constants);
            }
        }
        for (name, values) in constants {
            if let Some(decl) = package.types.get_mut(&name) {
                decl.constants = values;
                decl.constants.sort();
            }
        }
        package.kinds.sort();
        package.kinds.dedup();
        Ok(package)
    }

    fn registration(&mut self, text: &str) {
        for line in text.lines().map(str::trim) {
            if let Some(value) = line.strip_prefix("const GroupName = ").or(line.strip_prefix("GroupName = "))
            {
                self.group = Some(value.trim_matches('"').to_owned());
            }
            for part in line.split('&').skip(1) {
                if let Some(kind) = part.split_once("{}").map(|(kind, _)| kind)
                    && kind.chars().all(char::is_alphanumeric)
                {
                    self.kinds.push(kind.to_owned());
                }
            }
        }
    }

    fn file(&mut self, text: &str, constants: &mut BTreeMap<String, Vec<String>>) {
        let imports = imports(text);
        let mut markers = Vec::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let trimmed = line.trim();
            if let Some(comment) = trimmed.strip_prefix("//") {
                markers.extend(marker(comment));
                continue;
            }
            if let Some((kind, value)) = constant(trimmed) {
                constants.entry(kind).or_default().push(value);
            }
            let Some(declaration) = line.strip_prefix("type ") else {
                if !trimmed.is_empty() {
                    markers.clear();
                }
                continue;
            };
            let Some((name, rest)) = declaration.split_once(' ') else { continue };
            let body = if rest == "struct {" {
                Body::Struct(struct_fields(&mut lines))
            } else if rest == "struct{}" {
                Body::Struct(Vec::new())
            } else if rest.starts_with("interface") || rest.starts_with("func") {
                markers.clear();
                continue;
            } else {
                let target = rest.trim_start_matches("= ").split(" //").next().unwrap_or(rest).trim();
                Body::Named(target.to_owned())
            };
            let decl = Decl {
                imports: imports.clone(),
                markers: std::mem::take(&mut markers),
                body,
                constants: Vec::new(),
            };
            self.types.insert(name.to_owned(), decl);
        }
    }
}

fn marker(comment: &str) -> Option<String> {
    comment.trim().strip_prefix('+').map(str::to_owned)
}

/// `Name Type = "value"` of a const block.
fn constant(line: &str) -> Option<(String, String)> {
    let line = line.strip_prefix("const ").unwrap_or(line);
    let (left, right) = line.split_once(" = \"")?;
    let mut words = left.split_whitespace();
    let (_, kind) = (words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    let (value, _) = right.split_once('"')?;
    Some((kind.to_owned(), value.to_owned()))
}

fn imports(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        let spec = match line {
            "import (" => {
                inside = true;
                continue;
            }
            ")" if inside => {
                inside = false;
                continue;
            }
            _ if inside => line,
            _ => match line.strip_prefix("import ") {
                Some(spec) => spec,
                None => continue,
            },
        };
        let Some((alias, rest)) = spec.split_once('"') else { continue };
        let path = rest.split('"').next().unwrap_or(rest);
        let alias = match alias.trim() {
            "" => path.rsplit('/').next().unwrap_or(path),
            alias => alias,
        };
        found.insert(alias.to_owned(), path.to_owned());
    }
    found
}

fn struct_fields(lines: &mut std::str::Lines<'_>) -> Vec<Field> {
    let mut fields = Vec::new();
    let mut markers = Vec::new();
    for line in lines.by_ref() {
        if line == "}" {
            break;
        }
        let line = line.trim();
        if let Some(comment) = line.strip_prefix("//") {
            markers.extend(marker(comment));
            continue;
        }
        if let Some(field) = field(line, &mut markers) {
            fields.push(field);
        }
        if !line.is_empty() {
            markers.clear();
        }
    }
    fields
}

fn field(line: &str, markers: &mut Vec<String>) -> Option<Field> {
    let (left, rest) = line.split_once('`')?;
    let (tags, _) = rest.split_once('`')?;
    let expr = left.split_whitespace().last()?.to_owned();
    let json = tag(tags, "json")?;
    let mut parts = json.split(',');
    let name = parts.next().unwrap_or_default().to_owned();
    let options: Vec<_> = parts.collect();
    let inline = options.contains(&"inline");
    if name == "-" || (name.is_empty() && !inline) {
        return None;
    }
    let proto = tag(tags, "protobuf").unwrap_or_default();
    let mut number = 0;
    let mut proto_name = String::new();
    for part in proto.split(',') {
        if let Ok(parsed) = part.parse() {
            number = parsed;
        } else if let Some(named) = part.strip_prefix("name=") {
            proto_name = named.to_owned();
        }
    }
    if proto_name.is_empty() {
        // An embedded struct without a `name=`: the generator takes the type's name, first letter in lower case.
        let bare = expr.rsplit(['.', '*']).next().unwrap_or(&expr);
        let mut letters = bare.chars();
        proto_name = letters.next().map(|c| c.to_ascii_lowercase()).into_iter().chain(letters).collect();
    }
    Some(Field {
        json: name,
        omitempty: options.contains(&"omitempty"),
        omitzero: options.contains(&"omitzero"),
        inline,
        expr,
        number,
        proto_name,
        patch_strategy: tag(tags, "patchStrategy").map(str::to_owned),
        patch_merge_key: tag(tags, "patchMergeKey").map(str::to_owned),
        markers: std::mem::take(markers),
    })
}

fn tag<'a>(tags: &'a str, name: &str) -> Option<&'a str> {
    tags.split(' ').find_map(|part| part.strip_prefix(name)?.strip_prefix(":\"")?.strip_suffix('"'))
}
