//! The plug-ins whose work is configured through the API: webhooks and policies.

use std::sync::Arc;

use super::policy::ValidatingPolicies;
use super::webhook::Webhooks;
use crate::extension::{Attributes, MutatingAdmission as _, Result, ValidatingAdmission as _};

/// Webhooks and policies.
pub struct Dynamic {
    /// Webhooks of both kinds.
    pub webhooks: Arc<Webhooks>,
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
        self.webhooks.admit(attributes).await?;
        if attributes.hooks.begin_again() {
            self.webhooks.admit(attributes).await?;
        }
        self.validating.validate(attributes).await?;
        self.webhooks.validate(attributes).await
    }
}
