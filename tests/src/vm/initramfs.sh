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
$busybox cp /guest /debian /settings /job /root/run/keelson-vm/
. /settings
if [ "$system" = debian ]; then
    $busybox mount -t ext4 -o ro,noatime /dev/vdb /root/usr/lib/modules || fail "the modules"
    $busybox mount -t ext4 -o noatime,noinit_itable /dev/vdc /root/job || fail "the job's files"
    units=/root/run/systemd/system
    $busybox mkdir -p $units/multi-user.target.wants /root/run/systemd/network
    $busybox cat >$units/keelson-vm.service <<END
[Unit]
After=multi-user.target
[Service]
Type=exec
ExecStart=/bin/sh /run/keelson-vm/debian
TasksMax=infinity
END
    $busybox ln -s ../keelson-vm.service $units/multi-user.target.wants/keelson-vm.service
    $busybox cat >/root/run/systemd/network/10-wire.network <<END
[Match]
Driver=virtio_net
[Network]
Address=10.1.1.1/24
Gateway=10.1.1.254
IPv6AcceptRA=no
LinkLocalAddressing=no
END
    exec $busybox switch_root /root /lib/systemd/systemd
fi
exec $busybox switch_root /root /run/keelson-vm/guest
