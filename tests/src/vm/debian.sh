#!/bin/sh
# The job of a guest that systemd runs. It may reboot the machine, and is then run again.
# Disks: vda root, vdb modules, vdc the job's files, vdd the result (a tar of `status` and `output/`).
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root TERM=linux LC_ALL=C.UTF-8

. /run/keelson-vm/settings
mkdir -p /result/output
ln -sfn result/output /output
KEELSON_BOOT=$(($(cat /result/boot 2>/dev/null || echo 0) + 1))
echo "$KEELSON_BOOT" >/result/boot
export KEELSON_BOOT
cd /job
timeout -k 5 "$limit" sh /run/keelson-vm/job </dev/null >"$(echo /dev/vport*p1)" 2>&1
status=$?
if [ "$status" = 0 ] && [ -e /run/keelson-vm/reboot ]; then
    exec systemctl --no-block reboot
fi
echo "$status" >/result/status
journalctl --no-pager >/output/journal.txt 2>&1
tar -cf /dev/vdd -C /result .
sync
systemctl --force --force poweroff
