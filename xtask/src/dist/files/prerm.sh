#!/bin/sh
set -e
unit=@UNIT@
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    deb-systemd-invoke stop "$unit" >/dev/null || true
fi
@REMOVE@
