//! What webhooks and policies and the rest of a write tell each other: how they see it, who has been called, what they
//! warn of. Policies that change objects are called, and called again, as webhooks are.

use std::collections::BTreeSet;
use std::sync::Arc;

use keelson_api::resources::ScalePaths;
use parking_lot::Mutex;
use serde_json::Value;

/// What webhooks get to see of a write.
#[derive(Debug, Clone, Default)]
pub enum HookView {
    /// The object, in the version that each wants.
    #[default]
    Row,
    /// The object's scale.
    Scale(ScalePaths),
    /// What was sent, which has a kind of its own.
    Plain,
    /// Nothing: they have seen the request that this is a part of.
    Hidden,
}

/// The webhooks' part of [`Attributes`](crate::extension::Attributes).
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    /// What they see.
    pub view: HookView,
    /// What they warn of. Shared, for those that only refuse are asked at the same time.
    pub warnings: Arc<Mutex<Vec<String>>>,
    /// Mutating admission runs for the second time.
    again: bool,
    /// It has to.
    wanted: bool,
    /// One has changed the object.
    changed: bool,
    /// Called since the last change, and willing to be called again.
    called: BTreeSet<String>,
    /// To be called again.
    pending: BTreeSet<String>,
    /// The object as the last round left it.
    left: Option<Value>,
}

impl Hooks {
    /// As webhooks see it.
    pub fn new(view: HookView) -> Self {
        Self { view, ..Self::default() }
    }

    /// The subresource as webhooks see it: a scale is written as a part of its object.
    pub fn subresource<'a>(&self, own: &'a str) -> &'a str {
        if matches!(self.view, HookView::Scale(_)) { "scale" } else { own }
    }

    /// Takes the warnings out.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock())
    }

    /// Whether a webhook has changed the object.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// True if mutating admission has to run once more, which it never does a third time.
    pub(crate) fn begin_again(&mut self) -> bool {
        let begins = self.wanted && !self.again;
        self.again |= begins;
        begins
    }

    /// Before the webhooks' turn. If others have changed the object since the last one, all are called again that want to.
    pub(crate) fn begin_round(&mut self, object: Option<&Value>) {
        if self.again && self.left.as_ref() != object {
            self.call_again();
        }
    }

    /// After the webhooks' turn. What it left is of interest only where there may be another.
    pub(crate) fn end_round(&mut self, object: Option<&Value>) {
        if self.wanted {
            self.left = object.cloned();
        }
    }

    /// Whether this webhook has its turn. In the second round, those that have been called before something changed.
    pub(crate) fn may_call(&self, uid: &str) -> bool {
        !self.again || self.pending.contains(uid)
    }

    /// A webhook that may be called again has been called.
    pub(crate) fn called(&mut self, uid: &str) {
        self.called.insert(uid.to_owned());
    }

    /// A webhook has changed the object.
    pub(crate) fn changed(&mut self) {
        self.call_again();
        (self.changed, self.wanted) = (true, true);
    }

    fn call_again(&mut self) {
        self.pending.append(&mut self.called);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn those_before_a_change_are_called_again() {
        let mut hooks = Hooks::default();
        let object = json!(1);
        hooks.begin_round(Some(&object));
        // `a` and `c` may be called again, `b` may not; `b` changes the object.
        assert!(hooks.may_call("a"));
        hooks.called("a");
        hooks.changed();
        hooks.called("c");
        hooks.end_round(Some(&object));
        assert!(hooks.is_changed() && hooks.begin_again() && !hooks.begin_again());
        let mut alone = hooks.clone();
        alone.begin_round(Some(&object));
        assert_eq!(["a", "b", "c"].map(|uid| alone.may_call(uid)), [true, false, false]);
        // Something else has changed it meanwhile.
        hooks.begin_round(Some(&json!(2)));
        assert_eq!(["a", "b", "c"].map(|uid| hooks.may_call(uid)), [true, false, true]);
    }

    #[test]
    fn nothing_is_called_twice_without_a_change() {
        let mut hooks = Hooks::default();
        hooks.begin_round(None);
        hooks.called("a");
        hooks.end_round(None);
        assert!(!hooks.begin_again());
    }
}
