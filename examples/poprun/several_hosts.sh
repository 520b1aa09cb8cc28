#!/usr/bin/env bash
# Models on several hosts, an instance each: more cores to make batches and to rank with. (One model needs
# no second host: its process reaches all IPUs of the partition.) It has not run with IPUs.
#
#   HOSTS=host0,host1 INTERFACE=eth0 IPUS=64 IPUOF_VIPU_API_PARTITION_ID=pod64 \
#     bash examples/poprun/several_hosts.sh --dataset /shared/prepared --out /shared/runs/seeds
#
#   HOSTS      that all see the same paths, and that ssh reaches without a password
#   INTERFACE  the network between them
#   INSTANCES  models over all hosts; one a host, unless given
# Other variables: several_instances.sh and common.sh. Arguments: those of `besskge train`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
hosts=${HOSTS:?the names of the hosts, with commas between them}
interface=${INTERFACE:?the network between the hosts, such as eth0}
IFS=, read -ra names <<< "$hosts"
ipus=${IPUS:-4} instances=${INSTANCES:-${#names[@]}}
if ((ipus % instances || instances % ${#names[@]})); then
  echo "IPUS=$ipus, INSTANCES=$instances, ${#names[@]} hosts: each must be a multiple of the next" >&2
  exit 2
fi
forwarded="" # what a process on another host would not know
for name in PATH LD_LIBRARY_PATH OPAL_PREFIX PYTHONPATH CPATH POPLAR_ENGINE_OPTIONS \
  BESSKGE_DATA BESSKGE_IPU; do
  if [[ -n ${!name:-} ]]; then
    forwarded+=" -x $name"
  fi
done
network="--mca btl_tcp_if_include $interface --mca oob_tcp_if_include $interface"
options+=(
  --host="$hosts"
  --num-instances="$instances"        # equally many on each host
  --num-replicas="$ipus"              # shards of all of them
  --mpi-global-args="$network"        # for MPI's own messages
  --mpi-local-args="${forwarded# }"   # environment of the instances
)
exec poprun "${options[@]}" "${program[@]}" --n-shard "$((ipus / instances))" "$@"
