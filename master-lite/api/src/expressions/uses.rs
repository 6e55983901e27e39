//! What a (rewritten) expression takes from outside, and what is known of its result.

use std::collections::BTreeSet;

use kube_cel::cel::common::ast::{EntryExpr, Expr, IdedEntryExpr, IdedExpr, LiteralValue, operators};

use super::functions::{MAKE, NAMESPACES};

/// Names that an expression uses.
#[derive(Debug, Default)]
pub(super) struct Uses<'e> {
    /// Variables; namespaces of functions look like them.
    pub(super) variables: BTreeSet<&'e str>,
    /// Functions, with their namespaces.
    pub(super) functions: BTreeSet<String>,
    /// Types of objects that are made.
    pub(super) types: BTreeSet<&'e str>,
}

impl<'e> Uses<'e> {
    pub(super) fn of(tree: &'e IdedExpr) -> Self {
        let mut uses = Self::default();
        uses.collect(tree, &mut Vec::new());
        uses
    }

    fn collect(&mut self, tree: &'e IdedExpr, bound: &mut Vec<&'e str>) {
        match &tree.expr {
            Expr::Ident(name) => {
                if !name.starts_with('@') && !bound.contains(&name.as_str()) {
                    self.variables.insert(name);
                }
            }
            Expr::Call(call) => {
                match (call.func_name.as_str(), call.args.as_slice()) {
                    (MAKE, [made, ..]) => self.types.extend(text(made)),
                    // Operators have other names.
                    (name, _) if name.starts_with(|c: char| c.is_ascii_alphabetic()) => {
                        let target = call.target.as_deref().map(|target| &target.expr);
                        self.functions.insert(match target {
                            Some(Expr::Ident(of))
                                if NAMESPACES.contains(&of.as_str()) && !bound.contains(&of.as_str()) =>
                            {
                                format!("{of}.{name}")
                            }
                            _ => name.to_owned(),
                        });
                    }
                    _ => {}
                }
                call.target.iter().for_each(|target| self.collect(target, bound));
                call.args.iter().for_each(|arg| self.collect(arg, bound));
            }
            Expr::Comprehension(inner) => {
                self.collect(&inner.iter_range, bound);
                self.collect(&inner.accu_init, bound);
                let before = bound.len();
                bound.push(&inner.iter_var);
                bound.extend(inner.iter_var2.as_deref());
                bound.push(&inner.accu_var);
                for part in [&inner.loop_cond, &inner.loop_step, &inner.result] {
                    self.collect(part, bound);
                }
                bound.truncate(before);
            }
            Expr::List(list) => list.elements.iter().for_each(|element| self.collect(element, bound)),
            Expr::Select(select) => self.collect(&select.operand, bound),
            Expr::Map(map) => map.entries.iter().for_each(|entry| self.collect_entry(entry, bound)),
            Expr::Struct(made) => made.entries.iter().for_each(|entry| self.collect_entry(entry, bound)),
            Expr::Literal(_) | Expr::Unspecified => {}
        }
    }

    fn collect_entry(&mut self, entry: &'e IdedEntryExpr, bound: &mut Vec<&'e str>) {
        match &entry.expr {
            EntryExpr::StructField(field) => self.collect(&field.value, bound),
            EntryExpr::MapEntry(entry) => {
                self.collect(&entry.key, bound);
                self.collect(&entry.value, bound);
            }
        }
    }
}

fn text(tree: &IdedExpr) -> Option<&str> {
    match &tree.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

/// The type of what comes out, where the expression alone says so.
pub(crate) fn result_type(tree: &IdedExpr) -> Option<&str> {
    match &tree.expr {
        Expr::Literal(literal) => Some(match literal {
            LiteralValue::Boolean(_) => "bool",
            LiteralValue::Bytes(_) => "bytes",
            LiteralValue::Double(_) => "double",
            LiteralValue::Int(_) => "int",
            LiteralValue::Null => "null_type",
            LiteralValue::String(_) => "string",
            LiteralValue::UInt(_) => "uint",
        }),
        Expr::List(_) => Some("list"),
        Expr::Map(_) => Some("map"),
        Expr::Select(select) if select.test => Some("bool"),
        Expr::Call(call) => match (call.func_name.as_str(), call.args.as_slice()) {
            (MAKE, [made, ..]) => text(made),
            (operators::CONDITIONAL, [_, yes, no]) => {
                result_type(yes).filter(|found| result_type(no) == Some(*found))
            }
            (operators::ADD, [left, right]) => {
                result_type(left).or_else(|| result_type(right)).filter(|found| *found == "string")
            }
            (
                operators::LOGICAL_AND
                | operators::LOGICAL_OR
                | operators::LOGICAL_NOT
                | operators::EQUALS
                | operators::NOT_EQUALS
                | operators::GREATER
                | operators::GREATER_EQUALS
                | operators::LESS
                | operators::LESS_EQUALS
                | operators::IN,
                _,
            ) => Some("bool"),
            _ => None,
        },
        _ => None,
    }
}
