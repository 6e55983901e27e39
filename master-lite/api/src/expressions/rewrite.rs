//! Parsed expressions, put into words that the interpreter has.
//!
//! - A field of something is looked up by index: the interpreter's own selection says `false` where there are no fields,
//!   and an optional one fails where it should give nothing.
//! - `variables.x` is one variable, so that it need not be there unless something speaks of it.
//! - An object is made by a function, for the interpreter makes none.

use kube_cel::cel::common::ast::operators::{INDEX, OPT_INDEX, OPT_SELECT};
use kube_cel::cel::common::ast::{
    CallExpr, EntryExpr, Expr, IdedEntryExpr, IdedExpr, LiteralValue, MapEntryExpr, MapExpr, SelectExpr,
    StructExpr,
};

use super::VARIABLES;
use super::functions::MAKE;

pub(super) fn rewrite(tree: &mut IdedExpr) {
    Rewrite { bound: Vec::new() }.walk(tree);
}

struct Rewrite {
    /// Variables of the comprehensions around.
    bound: Vec<String>,
}

fn text(value: &str) -> IdedExpr {
    IdedExpr { id: 0, expr: Expr::Literal(LiteralValue::String(value.into())) }
}

fn call(func_name: &str, args: Vec<IdedExpr>) -> Expr {
    Expr::Call(CallExpr { func_name: func_name.to_owned(), target: None, args })
}

impl Rewrite {
    fn walk(&mut self, tree: &mut IdedExpr) {
        match &mut tree.expr {
            Expr::Select(select) if !select.test => {
                let select = std::mem::take(select);
                tree.expr = self.selected(select);
            }
            Expr::Select(select) => self.walk(&mut select.operand),
            Expr::Call(call) => {
                call.target.iter_mut().for_each(|target| self.walk(target));
                call.args.iter_mut().for_each(|arg| self.walk(arg));
                if call.func_name == OPT_SELECT {
                    call.func_name = OPT_INDEX.to_owned();
                }
            }
            Expr::Comprehension(inner) => {
                self.walk(&mut inner.iter_range);
                self.walk(&mut inner.accu_init);
                let before = self.bound.len();
                self.bound.push(inner.iter_var.clone());
                self.bound.extend(inner.iter_var2.clone());
                self.bound.push(inner.accu_var.clone());
                for part in [&mut inner.loop_cond, &mut inner.loop_step, &mut inner.result] {
                    self.walk(part);
                }
                self.bound.truncate(before);
            }
            Expr::List(list) => list.elements.iter_mut().for_each(|element| self.walk(element)),
            Expr::Map(map) => map.entries.iter_mut().for_each(|entry| self.walk_entry(entry)),
            Expr::Struct(made) => {
                made.entries.iter_mut().for_each(|entry| self.walk_entry(entry));
                let made = std::mem::take(made);
                tree.expr = making(made);
            }
            Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
        }
    }

    fn walk_entry(&mut self, entry: &mut IdedEntryExpr) {
        match &mut entry.expr {
            EntryExpr::StructField(field) => self.walk(&mut field.value),
            EntryExpr::MapEntry(entry) => {
                self.walk(&mut entry.key);
                self.walk(&mut entry.value);
            }
        }
    }

    fn selected(&mut self, mut select: SelectExpr) -> Expr {
        if let Expr::Ident(name) = &select.operand.expr
            && name == VARIABLES
            && !self.bound.contains(name)
        {
            return Expr::Ident(format!("{VARIABLES}.{}", select.field));
        }
        self.walk(&mut select.operand);
        call(INDEX, vec![*select.operand, text(&select.field)])
    }
}

fn making(made: StructExpr) -> Expr {
    let entry = |entry: IdedEntryExpr| {
        let expr = match entry.expr {
            EntryExpr::StructField(field) => EntryExpr::MapEntry(MapEntryExpr {
                key: text(&field.field),
                value: field.value,
                optional: field.optional,
            }),
            other => other,
        };
        IdedEntryExpr { id: entry.id, expr }
    };
    let fields = Expr::Map(MapExpr { entries: made.entries.into_iter().map(entry).collect() });
    call(MAKE, vec![text(&made.type_name), IdedExpr { id: 0, expr: fields }])
}
