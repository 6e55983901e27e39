#!/bin/sh
# What dh_installsystemd --no-enable --no-start writes: the administrator enables the unit, an upgrade restarts it.
set -e
unit=@UNIT@
case "$1" in
    configure|abort-upgrade|abort-deconfigure|abort-remove)
@INSTALL@
        if deb-systemd-helper debian-installed "$unit"; then
            deb-systemd-helper unmask "$unit" >/dev/null || true
            if deb-systemd-helper --quiet was-enabled "$unit"; then
                deb-systemd-helper enable "$unit" >/dev/null || true
            fi
        fi
        deb-systemd-helper update-state "$unit" >/dev/null || true
        if [ -d /run/systemd/system ]; then
            systemctl --system daemon-reload >/dev/null || true
            if [ -n "$2" ]; then
                deb-systemd-invoke try-restart "$unit" >/dev/null || true
            fi
        fi
        ;;
esac
