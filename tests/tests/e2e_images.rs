//! Real applications from Debian packages, as multi-layer images, serve clients in other pods.

use anyhow::{Result, ensure};
use keelson_tests::cmd;
use keelson_tests::testbed::fixture::TestCluster;

const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: nginx}
spec:
  selector: {matchLabels: {app: nginx}}
  template:
    metadata: {labels: {app: nginx}}
    spec:
      securityContext: {runAsNonRoot: true, runAsUser: 33}
      containers:
      - name: nginx
        image: keelson.test/nginx:latest
        imagePullPolicy: IfNotPresent
        ports: [{containerPort: 8080}]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
        volumeMounts: [{name: page, mountPath: /var/www/html}]
      volumes:
      - {name: page, configMap: {name: page}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: page}
data: {index.html: "served by nginx\n"}
---
apiVersion: v1
kind: Service
metadata: {name: nginx}
spec:
  selector: {app: nginx}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: redis}
spec:
  selector: {matchLabels: {app: redis}}
  template:
    metadata: {labels: {app: redis}}
    spec:
      containers:
      - name: redis
        image: keelson.test/redis:latest
        imagePullPolicy: IfNotPresent
        ports: [{containerPort: 6379}]
        readinessProbe: {exec: {command: [redis-cli, ping]}, periodSeconds: 1}
        volumeMounts: [{name: data, mountPath: /data}]
      volumes:
      - {name: data, emptyDir: {}}
      securityContext: {fsGroup: 999}
---
apiVersion: v1
kind: Service
metadata: {name: redis}
spec:
  selector: {app: redis}
  ports: [{port: 6379}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  containers:
  - {name: client, image: "keelson.test/busybox:latest", imagePullPolicy: IfNotPresent, command: [sleep, "3600"]}
"#;

#[test]
fn nginx_and_redis_serve_clients_in_other_pods() -> Result<()> {
    let cluster = TestCluster::up("e2e-images", 1, &["nginx", "redis", "busybox"])?;
    cluster.kubectl.apply(MANIFEST)?;
    cluster.rolled_out("deployment/nginx")?;
    cluster.rolled_out("deployment/redis")?;
    cluster.kubectl.run(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"])?;
    let page = cluster.eventually(20, || cluster.sh("client", "timeout 3 wget -q -O - http://nginx/"))?;
    assert_eq!(page, "served by nginx");
    let talk = r#"printf 'SET colour blue\r\nGET colour\r\nQUIT\r\n' | nc -w 3 redis 6379"#;
    let answer = cluster.eventually(20, || {
        let answer = cluster.sh("client", talk)?;
        ensure!(answer.contains("blue"), "{answer}");
        Ok(answer)
    })?;
    assert!(answer.starts_with("+OK"), "{answer}");
    assert_eq!(cluster.kubectl.run(&["exec", "deploy/redis", "--", "redis-cli", "get", "colour"])?, "blue");
    // Each runs as the user that its image or its pod names.
    let node = cluster.node(1)?;
    for (program, user) in [("nginx", "33"), ("redis-server", "999")] {
        let script = format!(
            "for p in /proc/[0-9]*; do grep -qx {program} $p/comm 2>/dev/null && grep ^Uid: $p/status; done; true"
        );
        let users = cmd::text(node.command("client", "sh").args(["-c", &script]))?;
        ensure!(!users.is_empty(), "{program} runs");
        assert!(users.lines().all(|line| line.split_whitespace().nth(1) == Some(user)), "{program}: {users}");
    }
    cluster.down()
}
