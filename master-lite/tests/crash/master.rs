//! A master with a folder and a port of its own.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// An address that stands for the nodes' way to the master; nobody goes it.
const ADVERTISED: &str = "192.0.2.1";

pub struct Master {
    dir: tempfile::TempDir,
    access: Access,
    child: Option<Child>,
}

/// How clients get in.
#[derive(Clone)]
pub struct Access {
    kubeconfig: PathBuf,
    port: u16,
}

impl Access {
    /// A client with connections of its own.
    pub async fn client(&self) -> Result<kube::Client, Box<dyn std::error::Error + Send + Sync>> {
        // Fails only if it is set already, which is as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = Kubeconfig::read_from(&self.kubeconfig)?;
        let mut config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        config.cluster_url = format!("https://127.0.0.1:{}", self.port).parse()?;
        Ok(kube::Client::try_from(config)?)
    }
}

impl Master {
    pub fn new() -> Self {
        // Free now, and asked for again at once: a port of its own over all restarts, as masters have.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let access = Access { kubeconfig: dir.path().join("admin.conf"), port };
        Self { dir, access, child: None }
    }

    pub fn access(&self) -> &Access {
        &self.access
    }

    /// A client with connections of its own.
    pub async fn client(&self) -> kube::Client {
        self.access.client().await.unwrap()
    }

    /// Starts it and waits until it is ready. Returns how long that took.
    pub async fn start(&mut self, patience: Duration) -> Duration {
        let program =
            std::env::var_os("KEELSON_MASTER").unwrap_or_else(|| env!("CARGO_BIN_EXE_keelson-master").into());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let started = Instant::now();
        let child = Command::new(program)
            .args(["--secure-port", &self.access.port.to_string()])
            .args(["--bind-address", "127.0.0.1", "--advertise-address", ADVERTISED])
            .args(["--tls-san", "127.0.0.1"])
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .arg("--cert-dir")
            .arg(self.dir.path().join("pki"))
            .arg("--write-kubeconfig")
            .arg(&self.access.kubeconfig)
            // By default it would be written for the machine's own agent.
            .arg("--write-bootstrap-kubeconfig")
            .arg(self.dir.path().join("bootstrap-kubelet.conf"))
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        loop {
            if let Ok(client) = self.access.client().await
                && let Ok(text) = client.request_text(Request::get("/readyz").body(Vec::new()).unwrap()).await
                && text == "ok"
            {
                return started.elapsed();
            }
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && started.elapsed() < patience, "{ended:?}\n{}", self.output());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself:\n{}", self.output());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn output(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() {
            eprintln!("the master's log:\n{}", self.output());
        }
    }
}
