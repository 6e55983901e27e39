#!/bin/busybox sh
# PID 1 until the root disk is mounted; then /guest goes on there.
busybox=/bin/busybox
fail() { echo "initramfs: $*" >/dev/console; exit 1; }

$busybox mount -t devtmpfs dev /dev
for module in /modules/*; do
    $busybox insmod "$module" || fail "$module"
done
tries=0
until [ -b /dev/vdd ]; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || fail "the disks do not appear"
    $busybox sleep 0.1
done
$busybox mount -t ext4 -o noatime,noinit_itable /dev/vda /root || fail "the root disk"
$busybox mount -t tmpfs -o mode=755 run /root/run
$busybox mkdir /root/run/keelson-vm
$busybox cp /guest /settings /job /root/run/keelson-vm/
exec $busybox switch_root /root /run/keelson-vm/guest
