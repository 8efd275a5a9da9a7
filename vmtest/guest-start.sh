#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Process 1 of a bench guest, in its root file system: mounts what the project looks at, loads KVM,
# runs the results share's command.sh in the repository and leaves its exit status in exit-code.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C.UTF-8 TERM=dumb
say() { echo "guest-start: $*"; }

mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
ln -sf /proc/self/fd /dev/fd
# The project's Python packages go before the distribution's. A path file and not PYTHONPATH:
# tests give that to their processes themselves.
for library in /usr/lib/python3.*; do
    site=/usr/local/lib/${library##*/}/dist-packages
    mkdir -p "$site" && echo /packages > "$site/guest.pth"
done
hostname guest
ip link set lo up

depmod
while read -r module; do modprobe "$module" || say "modprobe $module failed"; done \
    < /run/kvm-modules
# An init system makes /dev/fuse before its module is loaded. Tests that need it look for it.
modprobe --quiet fuse
test -c /dev/kvm || say "/dev/kvm is missing"
say "kernel $(uname -r), $(nproc) CPUs, up for $(cut -d' ' -f1 /proc/uptime) s, command begins"

# Signs of life: where they end, it is the machine that hangs and not a test.
while :; do cut -d' ' -f1 /proc/uptime > /results/alive; sleep 2; done &

cd /repo || say "no repository"
setsid -w sh /results/command.sh < /dev/null
code=$?
echo "$code" > /results/exit-code.new && mv /results/exit-code.new /results/exit-code
say "command ended with $code after $(cut -d' ' -f1 /proc/uptime) s of uptime"
sync
busybox poweroff -f
