#!/bin/sh
# Two hosts rehearsed on one machine: two network namespaces joined by a pair of virtual interfaces, and
# in each a torchrun agent with two ranks. Needs root and iproute2, and touches no other network.
#
#   PYTHON=.venv/bin/python sh examples/cluster/rehearse_two_hosts.sh --dataset family --n-shard 4 --out runs/two
set -eu
python=${PYTHON:-python}
cleanup() { ip netns del besskge-a; ip netns del besskge-b; }
ip netns add besskge-a
ip netns add besskge-b
trap cleanup EXIT
ip link add veth-a netns besskge-a type veth peer name veth-b netns besskge-b
for host in a b; do
  case $host in a) address=10.99.0.1 ;; *) address=10.99.0.2 ;; esac
  ip -n "besskge-$host" address add "$address/24" dev "veth-$host"
  ip -n "besskge-$host" link set "veth-$host" up
  ip -n "besskge-$host" link set lo up
done

ip netns exec besskge-b env GLOO_SOCKET_IFNAME=veth-b "$python" -m torch.distributed.run \
  --nnodes 2 --node-rank 1 --nproc-per-node 2 --master-addr 10.99.0.1 --master-port 29500 \
  -m besskge_core train "$@" &
other=$!
ip netns exec besskge-a env GLOO_SOCKET_IFNAME=veth-a "$python" -m torch.distributed.run \
  --nnodes 2 --node-rank 0 --nproc-per-node 2 --master-addr 10.99.0.1 --master-port 29500 \
  -m besskge_core train "$@"
wait "$other"
for host in a b; do
  echo "bytes that host $host sent: $(ip netns exec "besskge-$host" \
    cat "/sys/class/net/veth-$host/statistics/tx_bytes" 2>/dev/null || echo unknown)"
done
