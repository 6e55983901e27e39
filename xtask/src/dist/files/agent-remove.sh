if [ "$1" = remove ]; then
    # Pods would go on without anybody to end them. Images, credentials and logs stay until the package is purged.
    KEELSON_AGENT_ARGS=
    if [ -r /etc/default/keelson-agent ]; then
        . /etc/default/keelson-agent
    fi
    /usr/sbin/keelson-agent $KEELSON_AGENT_ARGS reset --keep-files
    rm -f /opt/cni/bin/keelson-cni
    rmdir --ignore-fail-on-non-empty /opt/cni/bin /opt/cni || true
fi
