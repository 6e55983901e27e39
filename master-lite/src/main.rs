//! keelson-master: API server, scheduler and controllers in one process.
//!
//! Wiring only: flags, the order in which things start, and how they stop.

mod flags;
mod memory;
mod sockets;

use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser as _;
use keelson_apiserver::auth::AuthConfig;
use keelson_apiserver::bootstrap;
use keelson_apiserver::extension::UserInfo;
use keelson_apiserver::pki::{Pki, PkiConfig, write_secret_file};
use keelson_apiserver::{Config, Server, StoreConfig};
use keelson_controllers::{ClientFactory, ControllersConfig, SigningConfig};
use keelson_scheduler::SchedulerConfig;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use flags::Flags;

/// Longest validity of a certificate that the signing controller issues (upstream: one year).
const CERTIFICATE_VALIDITY: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

fn main() -> anyhow::Result<()> {
    memory::give_back_what_is_free();
    let flags = Flags::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_unset| "info".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    // Fails only if a provider is set already, and none is.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listeners = sockets::inherited().context("taking over the sockets in LISTEN_FDS")?;
    // Threads for work that blocks end soon after it: each has a stack that was used.
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .build()?
        .block_on(run(flags, listeners))
}

async fn run(flags: Flags, listeners: Vec<std::net::TcpListener>) -> anyhow::Result<()> {
    let advertised = flags.advertise_address()?;
    std::fs::create_dir_all(&flags.data_dir)
        .with_context(|| format!("making {}", flags.data_dir.display()))?;
    let pki = Arc::new(
        Pki::load_or_create(&PkiConfig {
            directory: flags.cert_dir.clone(),
            advertise_address: advertised,
            service_address: flags.service_address(1).into(),
            cluster_domain: flags.cluster_domain.clone(),
            extra_sans: flags.tls_sans.clone(),
        })
        .context("loading keys and certificates")?,
    );
    let (server, serving) = Server::build(Config {
        store: StoreConfig::Embedded(flags.data_dir.join("store.redb")),
        service_cidr: flags.service_cluster_ip_range,
        advertise_address: advertised,
        advertise_port: flags.secure_port,
        listen: vec![(flags.bind_address, flags.secure_port).into()],
        listeners,
        auth: AuthConfig {
            pki: pki.clone(),
            issuer: flags.issuer(),
            api_audiences: Vec::new(),
            external_url: flags.url(advertised),
        },
    })
    .await?;

    let shutdown = CancellationToken::new();
    write_kubeconfigs(&flags, &flags.url(advertised), &pki, &server).await?;
    let clients = {
        let server = server.clone();
        ClientFactory::new(move |user| server.client_for(user_info(user), "kube-controller-manager"))
    };
    let controllers = tokio::spawn(keelson_controllers::run(
        clients,
        ControllersConfig {
            root_ca: pki.ca_certificate_pem().to_owned(),
            signing: Some(SigningConfig {
                ca_certificate: pki.ca().certificate.clone(),
                ca_key: pki.ca().key.clone(),
                max_validity: CERTIFICATE_VALIDITY,
            }),
            cluster_cidr: Some(flags.cluster_cidr),
            node_monitor_grace_period: flags.node_monitor_grace_period,
            ..ControllersConfig::default()
        },
        shutdown.clone(),
    ));
    let scheduler = tokio::spawn(keelson_scheduler::run(
        server.client_for(user_info("system:kube-scheduler"), "kube-scheduler"),
        SchedulerConfig::default(),
        shutdown.clone(),
    ));

    let serve = server.serve(serving, shutdown.clone());
    let stop = {
        let shutdown = shutdown.clone();
        async move {
            let result = wait_for_signal().await;
            shutdown.cancel();
            result
        }
    };
    let (served, signalled) = tokio::join!(
        async {
            let result = serve.await;
            // A server that can't listen takes the process down with it.
            shutdown.cancel();
            result
        },
        async {
            tokio::select! {
                result = stop => result,
                () = shutdown.cancelled() => Ok(()),
            }
        }
    );
    signalled?;
    controllers.await?;
    scheduler.await?;
    served.map_err(Into::into)
}

/// Kubeconfigs of the administrator and of joining nodes.
async fn write_kubeconfigs(flags: &Flags, url: &str, pki: &Pki, server: &Server) -> anyhow::Result<()> {
    write_secret_file(&flags.write_kubeconfig, &pki.admin_kubeconfig(url))?;
    let Some(path) = &flags.write_bootstrap_kubeconfig else { return Ok(()) };
    let token = bootstrap::join_token(&server.admin_client(), flags.bootstrap_token.as_deref())
        .await
        .map_err(anyhow::Error::from_boxed)
        .context("--bootstrap-token: storing the token of joining nodes")?;
    write_secret_file(path, &pki.bootstrap_kubeconfig(url, &token))?;
    Ok(())
}

/// A component's identity in this process, with the groups that its credentials would give it.
fn user_info(user: &str) -> UserInfo {
    match user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        Some((namespace, _)) => UserInfo::new(
            user,
            &[
                "system:serviceaccounts",
                &format!("system:serviceaccounts:{namespace}"),
                "system:authenticated",
            ],
        ),
        None => UserInfo::new(user, &["system:authenticated"]),
    }
}

async fn wait_for_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("shutting down");
    Ok(())
}
