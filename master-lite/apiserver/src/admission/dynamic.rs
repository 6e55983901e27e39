//! The plug-ins whose work is configured through the API: webhooks and policies.

use std::sync::Arc;

use super::policy::{MutatingPolicies, ValidatingPolicies};
use super::webhook::Webhooks;
use crate::extension::{Attributes, MutatingAdmission as _, Result, ValidatingAdmission as _};

/// Webhooks and policies.
pub struct Dynamic {
    /// Webhooks of both kinds.
    pub webhooks: Arc<Webhooks>,
    /// MutatingAdmissionPolicies.
    pub mutating: Arc<MutatingPolicies>,
    /// ValidatingAdmissionPolicies.
    pub validating: Arc<ValidatingPolicies>,
}

impl Dynamic {
    /// Asks all of them about a request that no write stands behind: a connect, or an object that is not stored, which
    /// they may change.
    ///
    /// # Errors
    /// When one refuses, or can't be asked and must be.
    pub async fn admit_all(&self, attributes: &mut Attributes) -> Result<()> {
        self.change(attributes).await?;
        if attributes.hooks.begin_again() {
            self.change(attributes).await?;
        }
        self.validating.validate(attributes).await?;
        self.webhooks.validate(attributes).await
    }

    async fn change(&self, attributes: &mut Attributes) -> Result<()> {
        self.mutating.admit(attributes).await?;
        self.webhooks.admit(attributes).await
    }
}
