#!/bin/busybox sh
# PID 1 of a guest: mounts what a machine has, runs the job, writes its result to the fourth disk, powers off.
# Disks: vda root, vdb modules, vdc the job's files, vdd the result (a tar of `status` and `output/`).
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root TERM=linux LC_ALL=C.UTF-8

mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t ext4 -o ro,noatime /dev/vdb /usr/lib/modules
mount -t ext4 -o noatime,noinit_itable /dev/vdc /job
mkdir -p /result/output
ln -s result/output /output

# As systemd leaves them.
ulimit -Hn 524288
ulimit -Sn 1024
mount --make-rshared /
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
echo guest >/proc/sys/kernel/hostname
ip link set lo up

. /run/keelson-vm/settings
if [ -n "$network" ]; then modprobe virtio_net; fi
cd /job
if [ -n "$interactive" ]; then
    setsid -c sh /run/keelson-vm/job </dev/hvc0 >/dev/hvc0 2>&1 &
else
    setsid sh /run/keelson-vm/job </dev/null >"$(echo /dev/vport*p1)" 2>&1 &
fi
job=$!
# Before the machine outside ends the whole guest, so that what the job wrote is not lost.
(
    sleep "$limit"
    touch /run/keelson-vm/late
    kill -KILL "-$job"
) &
wait "$job"
status=$?
if [ -e /run/keelson-vm/late ]; then status=124; fi
echo "$status" >/result/status
tar -cf /dev/vdd -C /result .
sync
poweroff -f
