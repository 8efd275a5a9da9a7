#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Becomes a node of a test's cluster: run in network and mount namespaces of its own, which last as
# long as it does. Prints "ready".
#
#   kube_node.sh DIR ADDRESS PODS [FIRST]
#
# DIR is what the node would keep in /var, PODS the network of its pods. FIRST is a process on the
# first node, to which this one is connected; without it, this one is the first.
set -eu

ip link set lo up
if [ $# = 3 ]; then
	# The node's address, and the one that pods reach the API server by, which in a larger cluster is
	# kube-proxy's work.
	ip link add node0 type veth peer name node1
	ip address add "$2/24" dev node0
	ip address add 10.96.0.1/32 dev node0
	ip link set node0 up
	ip link set node1 up
	ip route add default dev node0
else
	# A cable of its own, which goes with this node, and routes that go with the cable.
	on_first() { nsenter --target="$first" --net ip "$@"; }
	first=$4
	ip link add node0 type veth peer name "node-$$" netns "$first"
	ip address add "$2/24" dev node0
	ip link set node0 up
	gateway=${2%.*}.1
	ip route add default via "$gateway"
	on_first link set "node-$$" up
	on_first route add "$2/32" dev "node-$$" src "$gateway"
	on_first route add "$3" via "$2"
fi
echo 1 >/proc/sys/net/ipv4/ip_forward

# What kubelet and containerd keep by fixed names.
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mkdir -p /var/lib/kubelet /run/containerd "$1/log"
mount --bind "$1/log" /var/log

# kubelet wants these as they are below, or would set them for the whole machine.
while read -r name value; do
	file=$1/$(echo "$name" | tr / _)
	echo "$value" >"$file"
	mount --bind "$file" "/proc/sys/$name"
done <<-SETTINGS
	vm/overcommit_memory 1
	vm/panic_on_oom 0
	kernel/panic 10
	kernel/panic_on_oops 1
	kernel/keys/root_maxkeys 1000000
	kernel/keys/root_maxbytes 25000000
SETTINGS

echo ready
exec sleep infinity
