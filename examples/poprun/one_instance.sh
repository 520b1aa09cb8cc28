#!/usr/bin/env bash
# One model over the IPUs of a POD: one process, a shard an IPU. It has not run with IPUs.
#
#   IPUS=16 bash examples/poprun/one_instance.sh --dataset ogbl-biokg --out runs/pod16
#
#   IPUS  4 (POD4), 16 (POD16) or 64 (POD64): a power of two
# Other variables: common.sh. Arguments: those of `besskge train`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ipus=${IPUS:-4}
options+=(
  --num-instances=1      # shards that exchange rows are replicas of one process
  --num-replicas="$ipus" # a replica for each shard
)
exec poprun "${options[@]}" "${program[@]}" --n-shard "$ipus" "$@"
