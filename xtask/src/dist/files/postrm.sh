#!/bin/sh
set -e
unit=@UNIT@
if [ "$1" = purge ]; then
    if [ -x /usr/bin/deb-systemd-helper ]; then
        deb-systemd-helper purge "$unit" >/dev/null || true
    fi
    # What is mounted on any of these is not ours.
    rm -rf --one-file-system @FILES@
    rmdir --ignore-fail-on-non-empty @FOLDERS@ 2>/dev/null || true
fi
if [ "$1" = remove ] || [ "$1" = purge ]; then
    if [ -d /run/systemd/system ]; then
        systemctl --system daemon-reload >/dev/null || true
    fi
fi
