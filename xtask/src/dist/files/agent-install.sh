        mkdir -p /opt/cni/bin
        ln -sfn /usr/libexec/keelson/keelson-cni /opt/cni/bin/keelson-cni
