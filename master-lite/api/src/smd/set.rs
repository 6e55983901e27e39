//! Sets of fields of an object (`fieldpath/set.go`).

use std::cmp::Ordering;
use std::fmt;

use super::element::{Path, PathElement, print_path};
use super::types::{TypeId, Types};

/// A set of paths, kept as a tree: members end at this level, children lead on. An element may be both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set {
    /// Sorted, each once.
    members: Vec<PathElement>,
    /// Sorted by element, each once.
    children: Vec<(PathElement, Set)>,
}

/// Walks two sorted slices side by side.
fn zip_sorted<'a, A, B>(
    left: &'a [A],
    right: &'a [B],
    key: impl Fn(&A) -> &PathElement,
    other_key: impl Fn(&B) -> &PathElement,
    mut visit: impl FnMut(Option<&'a A>, Option<&'a B>),
) {
    let (mut i, mut j) = (0, 0);
    loop {
        let order = match (left.get(i), right.get(j)) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => key(a).cmp(other_key(b)),
        };
        match order {
            Ordering::Less => visit(left.get(i), None),
            Ordering::Equal => visit(left.get(i), right.get(j)),
            Ordering::Greater => visit(None, right.get(j)),
        }
        i += usize::from(order.is_le());
        j += usize::from(order.is_ge());
    }
}

/// Merges two sorted lists; `both` joins what has the same element.
fn merge_sorted<T>(
    left: Vec<T>,
    right: Vec<T>,
    key: impl Fn(&T) -> &PathElement,
    both: impl Fn(T, T) -> T,
) -> Vec<T> {
    if left.is_empty() {
        return right;
    }
    let mut out = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return out,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => key(a).cmp(key(b)),
        };
        out.extend(match order {
            Ordering::Less => left.next(),
            Ordering::Greater => right.next(),
            Ordering::Equal => left.next().zip(right.next()).map(|(a, b)| both(a, b)),
        });
    }
}

impl Set {
    /// A set of paths.
    pub fn new(paths: impl IntoIterator<Item = Path>) -> Self {
        let mut set = Self::default();
        for path in paths {
            set.insert(&path);
        }
        set
    }

    /// Elements that end here, sorted.
    pub fn members(&self) -> &[PathElement] {
        &self.members
    }

    /// Elements that lead on, sorted.
    pub fn children(&self) -> &[(PathElement, Self)] {
        &self.children
    }

    /// Adds a path. The empty path is the whole object, whose ownership nobody tracks.
    pub fn insert(&mut self, path: &[PathElement]) {
        match path {
            [] => {}
            [last] => self.insert_member(last.clone()),
            [first, rest @ ..] => self.child_mut(first).insert(rest),
        }
    }

    /// Adds an element that ends here.
    pub(super) fn insert_member(&mut self, element: PathElement) {
        // Mostly elements come in order.
        if self.members.last().is_none_or(|last| *last < element) {
            self.members.push(element);
        } else if let Err(at) = self.members.binary_search(&element) {
            self.members.insert(at, element);
        }
    }

    /// Puts a subset under an element, in the place of what is there.
    pub(super) fn put_child(&mut self, element: PathElement, set: Self) {
        if self.children.last().is_none_or(|(last, _)| *last < element) {
            self.children.push((element, set));
            return;
        }
        match self.children.binary_search_by(|(own, _)| own.cmp(&element)) {
            Ok(at) => self.children[at].1 = set,
            Err(at) => self.children.insert(at, (element, set)),
        }
    }

    /// The subset under an element, made if absent.
    pub(super) fn child_mut(&mut self, element: &PathElement) -> &mut Self {
        let at = match self.children.binary_search_by(|(own, _)| own.cmp(element)) {
            Ok(at) => at,
            Err(at) => {
                self.children.insert(at, (element.clone(), Self::default()));
                at
            }
        };
        &mut self.children[at].1
    }

    /// The subset under an element.
    pub fn child(&self, element: &PathElement) -> Option<&Self> {
        let at = self.children.binary_search_by(|(own, _)| own.cmp(element)).ok()?;
        Some(&self.children[at].1)
    }

    /// True if the element ends here.
    pub fn has_member(&self, element: &PathElement) -> bool {
        self.members.binary_search(element).is_ok()
    }

    /// True if the path is in the set.
    pub fn has(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.has_member(last),
            [first, rest @ ..] => self.child(first).is_some_and(|child| child.has(rest)),
        }
    }

    /// True if there is no path in the set.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.iter().all(|(_, child)| child.is_empty())
    }

    /// Number of paths.
    pub fn len(&self) -> usize {
        self.members.len() + self.children.iter().map(|(_, child)| child.len()).sum::<usize>()
    }

    /// Paths of both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self {
            members: merge_sorted(self.members, other.members, |e| e, |own, _| own),
            children: merge_sorted(
                self.children,
                other.children,
                |(element, _)| element,
                |(element, own), (_, other)| (element, own.union(other)),
            ),
        }
    }

    /// Paths that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut out = Self::default();
        zip_sorted(
            &self.members,
            &other.members,
            |e| e,
            |e| e,
            |own, other| {
                if let (Some(own), Some(_)) = (own, other) {
                    out.members.push(own.clone());
                }
            },
        );
        zip_sorted(
            &self.children,
            &other.children,
            |c| &c.0,
            |c| &c.0,
            |own, other| {
                if let (Some((element, own)), Some((_, other))) = (own, other) {
                    let both = own.intersection(other);
                    if !both.is_empty() {
                        out.children.push((element.clone(), both));
                    }
                }
            },
        );
        out
    }

    /// Paths that are not in the other set. A member of the other set doesn't take its children away.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.without(other, false)
    }

    /// Paths that are not in the other set and not below one of its members.
    #[must_use]
    pub fn recursive_difference(&self, other: &Self) -> Self {
        self.without(other, true)
    }

    fn without(&self, other: &Self, recursive: bool) -> Self {
        let mut out = Self::default();
        zip_sorted(
            &self.members,
            &other.members,
            |e| e,
            |e| e,
            |own, other| {
                if let (Some(own), None) = (own, other) {
                    out.members.push(own.clone());
                }
            },
        );
        zip_sorted(
            &self.children,
            &other.children,
            |c| &c.0,
            |c| &c.0,
            |own, inner| {
                let Some((element, own)) = own else { return };
                if recursive && other.has_member(element) {
                    return;
                }
                match inner {
                    None => out.children.push((element.clone(), own.clone())),
                    Some((_, inner)) => {
                        let left = own.without(inner, recursive);
                        if !left.is_empty() {
                            out.children.push((element.clone(), left));
                        }
                    }
                }
            },
        );
        out
    }

    /// Adds, at every level, the fields that the schema names and that have children here. Maps of free keys and
    /// list items stay as they are: their presence is a fact of its own.
    #[must_use]
    pub fn with_named_fields(&self, types: &Types, id: TypeId) -> Self {
        let atom = types.atom(id);
        let mut out =
            Self { members: self.members.clone(), children: Vec::with_capacity(self.children.len()) };
        for (element, child) in &self.children {
            let mut inner = None;
            match (element, &atom.map, &atom.list) {
                (PathElement::Field(name), Some(map), _) => match map.field(name) {
                    Some(field) => {
                        out.insert_member(element.clone());
                        inner = Some(field.id);
                    }
                    None => inner = map.element,
                },
                (PathElement::Key(_), _, Some(list)) => inner = Some(list.item),
                _ => {}
            }
            let child = match inner {
                Some(inner) => child.with_named_fields(types, inner),
                None => child.clone(),
            };
            out.children.push((element.clone(), child));
        }
        out
    }

    /// The paths that the pattern matches.
    #[must_use]
    pub fn matching(&self, pattern: &Pattern) -> Self {
        let Pattern::Elements(patterns) = pattern else { return self.clone() };
        let find = |element: &PathElement| {
            patterns.iter().find(|(wanted, _)| wanted.as_ref().is_none_or(|wanted| wanted == element))
        };
        Self {
            members: self.members.iter().filter(|element| find(element).is_some()).cloned().collect(),
            children: self
                .children
                .iter()
                .filter_map(|(element, child)| Some((element.clone(), child.matching(&find(element)?.1))))
                .filter(|(_, child)| !child.is_empty())
                .collect(),
        }
    }

    /// Calls `visit` with every path: at each level the members, then what is below the children.
    pub fn for_each(&self, visit: &mut impl FnMut(&[PathElement])) {
        self.walk(&mut Vec::new(), visit);
    }

    fn walk(&self, prefix: &mut Path, visit: &mut impl FnMut(&[PathElement])) {
        for element in &self.members {
            prefix.push(element.clone());
            visit(prefix);
            prefix.pop();
        }
        for (element, child) in &self.children {
            prefix.push(element.clone());
            child.walk(prefix, visit);
            prefix.pop();
        }
    }

    /// All paths, in the order of [`Set::for_each`].
    pub fn paths(&self) -> Vec<Path> {
        let mut out = Vec::new();
        self.for_each(&mut |path| out.push(path.to_vec()));
        out
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.paths().iter().map(|path| print_path(path)).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Chooses paths (`fieldpath.SetMatcher`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// Every path.
    Any,
    /// Paths that begin with one of these elements (`None`: with any), and go on as its pattern says. The first
    /// that fits decides.
    Elements(Vec<(Option<PathElement>, Pattern)>),
}

impl Pattern {
    /// Everything below a path; `None` stands for any element.
    pub fn prefix(path: &[Option<&str>]) -> Self {
        path.iter()
            .rev()
            .fold(Self::Any, |inner, name| Self::Elements(vec![(name.map(PathElement::field), inner)]))
    }

    /// What either of the two chooses.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let (Self::Elements(mut own), Self::Elements(other)) = (self, other) else { return Self::Any };
        for (element, pattern) in other {
            match own.iter_mut().find(|(have, _)| *have == element) {
                Some((_, have)) => *have = std::mem::replace(have, Self::Any).merge(pattern),
                None => own.push((element, pattern)),
            }
        }
        // Any element goes first, as upstream sorts them.
        own.sort_by(|(a, _), (b, _)| a.cmp(b));
        Self::Elements(own)
    }
}

/// Which fields count in a request; the rest is reset by the server whatever the client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// All but these and what is below them.
    Exclude(Set),
    /// Only these.
    Include(Pattern),
}

impl Filter {
    /// The paths that count.
    #[must_use]
    pub fn apply(&self, set: &Set) -> Set {
        match self {
            Self::Exclude(exclude) => set.recursive_difference(exclude),
            Self::Include(pattern) => set.matching(pattern),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smd::element::field_path;

    fn set(paths: &[&str]) -> Set {
        Set::new(paths.iter().map(|path| field_path(&path.split('.').collect::<Vec<_>>())))
    }

    #[test]
    fn differences() {
        let all = set(&["a", "a.b", "a.b.c", "d.e", "f"]);
        assert_eq!(all.difference(&set(&["a", "d.e"])), set(&["a.b", "a.b.c", "f"]));
        assert_eq!(all.recursive_difference(&set(&["a", "d"])), set(&["f"]));
        assert_eq!(all.recursive_difference(&set(&["a.b"])), set(&["a", "d.e", "f"]));
        assert_eq!(all.intersection(&set(&["a.b.c", "d", "f"])), set(&["a.b.c", "f"]));
        assert_eq!(set(&["a.b"]).union(set(&["a", "c"])), set(&["a", "a.b", "c"]));
        assert!(all.has(&field_path(&["a", "b"])) && !all.has(&field_path(&["d"])) && !all.has(&[]));
        assert_eq!(all.len(), 5);
    }

    #[test]
    fn patterns() {
        let all = set(&["spec.a.x", "spec.a.y.z", "spec.b", "status.a.x", "meta"]);
        let pattern = Pattern::prefix(&[None, Some("a"), Some("x")]);
        // A path that ends before the pattern does is in, as upstream has it.
        assert_eq!(all.matching(&pattern), set(&["spec.a.x", "status.a.x", "meta"]));
        let merged =
            Pattern::prefix(&[Some("spec"), Some("b")]).merge(Pattern::prefix(&[Some("spec"), Some("a")]));
        assert_eq!(Filter::Include(merged).apply(&all), set(&["spec.a.x", "spec.a.y.z", "spec.b"]));
        assert_eq!(Filter::Exclude(set(&["spec"])).apply(&all), set(&["status.a.x", "meta"]));
    }
}
