#!/usr/bin/env bash
# Several models at once on the IPUs of a POD: an instance each, of another seed, and of another file of
# settings if several are given. It has not run with IPUs.
#
#   IPUS=16 INSTANCES=4 bash examples/poprun/several_instances.sh --dataset wn18rr --out runs/seeds
#   IPUS=16 INSTANCES=2 bash examples/poprun/several_instances.sh --config a.toml --config b.toml --out runs/two
#
#   IPUS       of all instances together
#   INSTANCES  models; each has IPUS / INSTANCES shards
# Other variables: common.sh. Arguments: those of `besskge train`; runs are OUT/instance-0, ...
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ipus=${IPUS:-4} instances=${INSTANCES:-2}
if ((ipus % instances)); then
  echo "IPUS is $ipus, which $instances instances cannot share evenly; give a multiple" >&2
  exit 2
fi
options+=(
  --num-instances="$instances" # processes, a model each
  --num-replicas="$ipus"       # shards of all of them
)
exec poprun "${options[@]}" "${program[@]}" --n-shard "$((ipus / instances))" "$@"
