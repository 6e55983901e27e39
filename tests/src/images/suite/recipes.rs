//! What each image of the suite is made of, after upstream's Dockerfiles in `test/images`.

/// The files below an image's own: packages of Debian with all they depend on, busybox, users. Images that name the same
/// one share the layer.
#[derive(Debug)]
pub struct Base {
    /// Debian packages.
    pub debian: &'static [&'static str],
    /// Users beside root and nobody: name, uid and gid, home.
    pub users: &'static [(&'static str, u32, &'static str)],
    /// Groups beside those of the users: name, gid, members.
    pub groups: &'static [(&'static str, u32, &'static str)],
    /// Which busybox.
    pub busybox: Busybox,
}

/// Where an image's busybox comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busybox {
    /// Debian's package.
    Debian,
    /// The project's own source and defaults, see [`super::busybox`].
    Upstream,
}

/// Where a program comes from.
#[derive(Debug, Clone, Copy)]
pub enum Program {
    /// Built from this Go package of the suite's module.
    Go(&'static str),
    /// Compiled from this C file of upstream's sources.
    C(&'static str),
    /// CoreDNS, if the caller has one.
    CoreDns,
}

/// One layer above the base; images that name the same one share it.
#[derive(Debug)]
pub struct Top {
    /// Programs: origin, path in the image, mode.
    pub programs: &'static [(Program, &'static str, u32)],
    /// Files of upstream's sources: path there, path in the image.
    pub copies: &'static [(&'static str, &'static str)],
    /// Texts: path in the image, mode, content.
    pub texts: &'static [(&'static str, u32, &'static str)],
    /// Symbolic links: path in the image, target.
    pub links: &'static [(&'static str, &'static str)],
    /// Empty folders: path in the image, mode.
    pub folders: &'static [(&'static str, u32)],
    /// Images that agnhost's `fake-registry-server` serves: name of a recipe, tag.
    pub serves: &'static [(&'static str, &'static str)],
}

const NOTHING: Top = Top { programs: &[], copies: &[], texts: &[], links: &[], folders: &[], serves: &[] };

/// One image.
#[derive(Debug)]
pub struct Recipe {
    /// Repository below upstream's registry.
    pub name: &'static str,
    /// The lowest layer; an image without one holds nothing but its own files.
    pub base: Option<&'static Base>,
    /// The layers above it.
    pub tops: &'static [&'static Top],
    /// As in a Dockerfile.
    pub entrypoint: &'static [&'static str],
    /// As in a Dockerfile.
    pub cmd: &'static [&'static str],
    /// As in a Dockerfile; empty for root.
    pub user: &'static str,
    /// TCP ports, as in a Dockerfile's EXPOSE.
    pub ports: &'static [u16],
    /// Signal that ends the container; empty for SIGTERM.
    pub stop_signal: &'static str,
}

const PLAIN: Recipe = Recipe {
    name: "",
    base: Some(&SMALL),
    tops: &[],
    entrypoint: &[],
    cmd: &["sh"],
    user: "",
    ports: &[],
    stop_signal: "",
};

const SMALL: Base = Base { debian: &[], users: &[], groups: &[], busybox: Busybox::Debian };

const BUSYBOX_BASE: Base = Base { busybox: Busybox::Upstream, ..SMALL };

const AGNHOST_BASE: Base = Base {
    debian: &[
        "bash",
        "bind9-dnsutils",
        "bind9-host",
        "curl",
        "iperf",
        "iproute2",
        // getent, which Alpine's C library brings.
        "libc-bin",
        "netcat-openbsd",
        "util-linux",
    ],
    users: &[("user-defined-in-image", 1000, "/home/user-defined-in-image")],
    groups: &[("group-defined-in-image", 50000, "user-defined-in-image")],
    ..SMALL
};

const AGNHOST_TOP: Top = Top {
    programs: &[
        (Program::Go("k8s.io/kubernetes/test/images/agnhost"), "agnhost", 0o755),
        (Program::CoreDns, "coredns", 0o755),
    ],
    copies: &[
        ("test/images/agnhost/porter/localhost.crt", "localhost.crt"),
        ("test/images/agnhost/porter/localhost.key", "localhost.key"),
    ],
    links: &[
        ("agnhost-2", "agnhost"),
        // Debian's busybox prefers its own commands when it is the shell, its `ip` to iproute2's for one.
        ("usr/bin/sh", "bash"),
        ("usr/bin/nc", "nc.openbsd"),
        ("usr/local/bin/iperf", "/usr/bin/iperf"),
    ],
    folders: &[("uploads", 0o755)],
    serves: &[("pause", "testing")],
    ..NOTHING
};

const AGNHOST: Recipe = Recipe {
    name: "e2e-test-images/agnhost",
    base: Some(&AGNHOST_BASE),
    tops: &[&AGNHOST_TOP],
    entrypoint: &["/agnhost"],
    cmd: &["pause"],
    ports: &[80, 8080, 8081, 9376, 5000],
    ..PLAIN
};

const NAUTILUS_TOP: Top = Top {
    copies: &[
        ("test/images/nautilus/html/nautilus.jpg", "nautilus.jpg"),
        ("test/images/nautilus/html/data.json", "data.json"),
    ],
    ..NOTHING
};

const KITTEN_TOP: Top = Top {
    copies: &[
        ("test/images/kitten/html/kitten.jpg", "kitten.jpg"),
        ("test/images/kitten/html/data.json", "data.json"),
    ],
    // The image volume test takes the name of upstream's base in this file for a sign that the volume holds the image.
    texts: &[(
        "etc/os-release",
        0o644,
        "# Stands for an image that upstream builds on Alpine Linux; this one is made of Debian packages.\n\
         PRETTY_NAME=\"Debian\"\nNAME=\"Debian\"\nID=debian\n",
    )],
    ..NOTHING
};

const NGINX_BASE: Base = Base { debian: &["nginx"], users: &[("nginx", 101, "/var/cache/nginx")], ..SMALL };

const NGINX_TOP: Top = Top {
    texts: &[
        (
            "etc/nginx/nginx.conf",
            0o644,
            "user nginx;\nworker_processes 1;\npid /run/nginx.pid;\nerror_log /dev/stderr notice;\n\
             events { worker_connections 1024; }\n\
             http {\n include /etc/nginx/mime.types;\n default_type application/octet-stream;\n access_log /dev/stdout;\n \
             include /etc/nginx/conf.d/*.conf;\n}\n",
        ),
        (
            "etc/nginx/conf.d/default.conf",
            0o644,
            "server {\n listen 80;\n server_name localhost;\n \
             location / { root /usr/share/nginx/html; index index.html index.htm; }\n}\n",
        ),
        ("docker-entrypoint.sh", 0o755, "#!/bin/sh\nexec \"$@\"\n"),
    ],
    folders: &[("run", 0o755)],
    ..NOTHING
};

const DNS_BASE: Base = Base {
    debian: &["bash", "bind9-dnsutils", "bind9-host", "coreutils", "dash", "hostname", "libc-bin"],
    ..SMALL
};

/// The images that are made, by their repository.
pub const RECIPES: &[Recipe] = &[
    AGNHOST,
    Recipe {
        name: "e2e-test-images/apparmor-loader",
        base: Some(&Base { debian: &["apparmor"], ..SMALL }),
        tops: &[&Top {
            programs: &[(
                Program::Go("k8s.io/kubernetes/test/images/apparmor-loader"),
                "usr/bin/loader",
                0o755,
            )],
            ..NOTHING
        }],
        entrypoint: &["/usr/bin/loader", "-logtostderr", "-v=2"],
        cmd: &["/profiles"],
        ..PLAIN
    },
    Recipe { name: "e2e-test-images/busybox", base: Some(&BUSYBOX_BASE), ..PLAIN },
    Recipe {
        name: "build-image/distroless-iptables",
        base: Some(&Base { debian: &["bash", "conntrack", "ebtables", "iptables", "nftables"], ..SMALL }),
        tops: &[&Top {
            links: &[
                ("usr/sbin/ebtables", "ebtables-nft"),
                ("usr/sbin/ip6tables", "ip6tables-nft"),
                ("usr/sbin/ip6tables-restore", "ip6tables-nft-restore"),
                ("usr/sbin/ip6tables-save", "ip6tables-nft-save"),
                ("usr/sbin/iptables", "iptables-nft"),
                ("usr/sbin/iptables-restore", "iptables-nft-restore"),
                ("usr/sbin/iptables-save", "iptables-nft-save"),
            ],
            ..NOTHING
        }],
        cmd: &[],
        ..PLAIN
    },
    Recipe {
        name: "etcd",
        base: Some(&Base { debian: &["etcd-server", "etcd-client"], ..SMALL }),
        tops: &[&Top {
            links: &[
                ("usr/local/bin/etcd", "/usr/bin/etcd"),
                ("usr/local/bin/etcdctl", "/usr/bin/etcdctl"),
                ("usr/local/bin/etcdutl", "/usr/bin/etcdutl"),
            ],
            ..NOTHING
        }],
        cmd: &[],
        ports: &[2379, 2380, 4001, 7001],
        ..PLAIN
    },
    Recipe {
        name: "e2e-test-images/glibc-dns-testing",
        base: Some(&DNS_BASE),
        tops: &[&Top { programs: &[(Program::CoreDns, "coredns", 0o755)], ..NOTHING }],
        cmd: &["bash"],
        ..PLAIN
    },
    Recipe {
        name: "e2e-test-images/ipc-utils",
        base: Some(&Base { debian: &["util-linux"], ..SMALL }),
        ..PLAIN
    },
    Recipe {
        name: "e2e-test-images/kitten",
        tops: &[&AGNHOST_TOP, &KITTEN_TOP],
        cmd: &["test-webserver"],
        ..AGNHOST
    },
    Recipe {
        name: "e2e-test-images/nautilus",
        tops: &[&AGNHOST_TOP, &NAUTILUS_TOP],
        cmd: &["test-webserver"],
        ..AGNHOST
    },
    Recipe {
        name: "e2e-test-images/nginx",
        base: Some(&NGINX_BASE),
        tops: &[&NGINX_TOP],
        entrypoint: &["/docker-entrypoint.sh"],
        cmd: &["nginx", "-g", "daemon off;"],
        ports: &[80],
        stop_signal: "SIGQUIT",
        ..PLAIN
    },
    Recipe {
        name: "e2e-test-images/nonewprivs",
        tops: &[&Top {
            programs: &[(
                Program::Go("k8s.io/kubernetes/test/images/nonewprivs"),
                "usr/local/bin/nnp",
                0o6755,
            )],
            ..NOTHING
        }],
        cmd: &["nnp"],
        ..PLAIN
    },
    Recipe { name: "e2e-test-images/nonroot", user: "1234", ..PLAIN },
    Recipe {
        name: "pause",
        base: None,
        tops: &[&Top { programs: &[(Program::C("build/pause/linux/pause.c"), "pause", 0o755)], ..NOTHING }],
        entrypoint: &["/pause"],
        cmd: &[],
        user: "65535:65535",
        ..PLAIN
    },
    Recipe {
        name: "e2e-test-images/perl",
        base: Some(&Base { debian: &["perl"], ..SMALL }),
        cmd: &["perl", "-de0"],
        ..PLAIN
    },
    Recipe {
        name: "e2e-test-images/regression-issue-74839",
        tops: &[&Top {
            programs: &[(
                Program::Go("k8s.io/kubernetes/test/images/regression-issue-74839"),
                "regression-issue-74839",
                0o755,
            )],
            ..NOTHING
        }],
        entrypoint: &["/regression-issue-74839"],
        cmd: &[],
        ..PLAIN
    },
    Recipe {
        name: "e2e-test-images/resource-consumer",
        base: Some(&Base { debian: &["stress"], ..SMALL }),
        tops: &[&Top {
            programs: &[
                (Program::Go("k8s.io/kubernetes/test/images/resource-consumer"), "consumer", 0o755),
                (
                    Program::Go("k8s.io/kubernetes/test/images/resource-consumer/consume-cpu"),
                    "consume-cpu",
                    0o755,
                ),
            ],
            ..NOTHING
        }],
        entrypoint: &["/consumer"],
        cmd: &[],
        ports: &[8080],
        ..PLAIN
    },
    Recipe {
        name: "e2e-test-images/sample-apiserver",
        tops: &[&Top {
            programs: &[(Program::Go("k8s.io/sample-apiserver"), "sample-apiserver", 0o755)],
            ..NOTHING
        }],
        entrypoint: &["/sample-apiserver"],
        cmd: &[],
        ..PLAIN
    },
];

/// Repositories that are not made, and why; a name that ends in `/` stands for all below it.
pub const NOT_MADE: &[(&str, &str)] = &[
    ("invalid.registry.k8s.io/", "no such image may be found: tests want to see the pull fail"),
    ("gcr.io/k8s-authenticated-test/", "private to upstream: it is there to be refused"),
    (
        "registry.k8s.io/e2e-test-images/node-perf/",
        "benchmarks compiled from sources outside the suite's module",
    ),
    (
        "registry.k8s.io/e2e-test-images/volume/",
        "a server out of the kernel (nfsd, LIO), which test hosts do not have",
    ),
    ("registry.k8s.io/sig-storage/", "a CSI driver or its side container, from a repository of its own"),
    ("registry.k8s.io/cloud-provider-gcp/", "for Google's cloud"),
];
