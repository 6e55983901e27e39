//! What every controller is started with.

use std::sync::Arc;

use futures::future::BoxFuture;
use keelson_client::Recorder;
use tokio_util::sync::CancellationToken;

use crate::config::{ClientFactory, ControllersConfig};
use crate::informers::Informers;

/// A controller at work; it ends at shutdown.
pub type Task = BoxFuture<'static, ()>;

/// Clients, caches, settings.
#[derive(Clone)]
pub struct Context {
    /// Makes clients by user.
    pub clients: ClientFactory,
    /// The shared caches.
    pub informers: Arc<Informers>,
    /// The settings.
    pub config: Arc<ControllersConfig>,
    /// Cancelled when the controllers shall end.
    pub shutdown: CancellationToken,
}

impl Context {
    /// A context with empty caches.
    pub fn new(clients: ClientFactory, config: ControllersConfig, shutdown: CancellationToken) -> Self {
        Context { clients, informers: Arc::new(Informers::new()), config: Arc::new(config), shutdown }
    }

    /// The client of the controller `name`.
    pub fn client(&self, name: &str) -> kube::Client {
        self.clients.for_controller(name)
    }

    /// A recorder of events that names `component` as their source and writes them as `account`.
    pub fn recorder(&self, account: &str, component: &'static str) -> Recorder {
        Recorder::new(self.client(account), component)
    }
}
