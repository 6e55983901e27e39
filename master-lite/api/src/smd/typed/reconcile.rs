//! Field sets that were written when the schema was another (`typed/reconcile_schema.go`).

use crate::smd::element::{Path, PathElement};
use crate::smd::set::Set;
use crate::smd::types::{List, MapType, TypeId, Types};

/// The set as it reads by today's types: who owned parts of what is atomic now owns the whole. `None` if nothing
/// changes.
pub fn reconcile(types: &Types, id: TypeId, set: &Set) -> Option<Set> {
    let mut walk = Walk { types, path: Vec::new(), wholes: Set::default() };
    walk.value(id, Some(set), false);
    if walk.wholes.is_empty() {
        return None;
    }
    Some(set.recursive_difference(&walk.wholes).union(walk.wholes))
}

struct Walk<'t> {
    types: &'t Types,
    path: Path,
    /// Atomic values that the set has parts of.
    wholes: Set,
}

impl Walk<'_> {
    /// `set` is what is below, `None` if nothing is; `whole` is true for what is in the set and has nothing below.
    fn value(&mut self, id: TypeId, set: Option<&Set>, whole: bool) {
        let atom = self.types.atom(id);
        // No value is at hand that would say which of several shapes it is: the order is map, scalar, list.
        match (&atom.map, atom.scalar, &atom.list) {
            (Some(map), ..) => self.map(map, set, whole),
            (None, None, Some(list)) => self.list(list, set, whole),
            _ => {}
        }
    }

    fn map(&mut self, map: &MapType, set: Option<&Set>, whole: bool) {
        if self.types.is_free_form(map) {
            return;
        }
        let Some(set) = set else { return };
        if !whole && map.atomic {
            if !set.is_empty() {
                self.wholes.insert(&self.path);
            }
            return;
        }
        self.each(set, |element| match element {
            PathElement::Field(name) => map.type_of(name),
            _ => map.element,
        });
    }

    fn list(&mut self, list: &List, set: Option<&Set>, whole: bool) {
        if !whole && list.keys.is_none() {
            self.wholes.insert(&self.path);
            return;
        }
        if let Some(set) = set {
            self.each(set, |_| Some(list.item));
        }
    }

    fn each(&mut self, set: &Set, type_of: impl Fn(&PathElement) -> Option<TypeId>) {
        for (element, child) in set.children() {
            if let Some(id) = type_of(element) {
                self.step(element, id, Some(child), false);
            }
        }
        for element in set.members().iter().filter(|element| set.child(element).is_none()) {
            if let Some(id) = type_of(element) {
                self.step(element, id, None, true);
            }
        }
    }

    fn step(&mut self, element: &PathElement, id: TypeId, set: Option<&Set>, whole: bool) {
        self.path.push(element.clone());
        self.value(id, set, whole);
        self.path.pop();
    }
}
