#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=dash
# First program of a bench guest: from the initramfs to the root file system.
# Kernel arguments of its own: none. It expects the 9p shares root, repo, packages and results.
bb=/bin/busybox
die() { echo "guest-init: $*"; $bb poweroff -f; }

for dir in proc sys dev mnt lower upper; do $bb mkdir -p "/$dir"; done
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
while read -r module; do
    $bb insmod "/modules/$module" || die "insmod $module failed"
done < /modules/boot-order

share() { # share TAG DIRECTORY OPTIONS
    # Newer kernels have virtiofs built in, and the initramfs brings 9p unless the kernel has none.
    if $bb grep -qw 9p /proc/filesystems; then
        options="trans=virtio,version=9p2000.L,msize=512000,$3"
        $bb mount -t 9p -o "$options" "$1" "$2" || die "the share $1 does not mount"
    else
        $bb mount -t virtiofs -o "${3%%,*}" "$1" "$2" || die "the share $1 does not mount"
    fi
}
share root /lower ro,cache=loose
$bb mount -t tmpfs -o mode=0755 tmpfs /upper
$bb mkdir /upper/data /upper/work
$bb mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /mnt \
    || die "the overlay root does not mount"
$bb mkdir -p /mnt/repo /mnt/packages /mnt/results /mnt/proc /mnt/sys /mnt/dev
# The repository itself stays as it is: what the guest writes there, Python's byte code, is its own.
$bb mkdir /repo /upper/repo /upper/repo-work
share repo /repo ro,cache=loose
$bb mount -t overlay -o lowerdir=/repo,upperdir=/upper/repo,workdir=/upper/repo-work overlay /mnt/repo \
    || die "the overlay of the repository does not mount"
share packages /mnt/packages ro,cache=loose
share results /mnt/results rw,cache=none

# modprobe in the guest shall find what the initramfs brought.
release=$($bb uname -r)
$bb mkdir -p "/mnt/usr/lib/modules/$release"
$bb cp -r /modules/tree/. "/mnt/usr/lib/modules/$release/"
$bb cp /modules/kvm /mnt/run/kvm-modules
$bb cp /guest-start.sh /mnt/run/guest-start.sh
for dir in proc sys dev; do $bb mount --move "/$dir" "/mnt/$dir"; done
exec $bb switch_root /mnt /bin/sh /run/guest-start.sh
