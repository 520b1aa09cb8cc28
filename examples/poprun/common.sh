# What the scripts of this folder share; they source it. It has not run with IPUs.
#
#   PYTHON       interpreter, with PopTorch
#   EXECUTABLES  folder for compiled programs, shared by instances and hosts
#   IPUOF_VIPU_API_PARTITION_ID, IPUOF_VIPU_API_HOST, IPUOF_VIPU_API_TIMEOUT
#                partition of IPUs to use, the server that knows it, and seconds to wait for that; poprun
#                makes and removes a partition of its own where none is named
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
program=("${PYTHON:-python}" "$here/train.py" --executable-cache "${EXECUTABLES:-$PWD/executables}")
options=(
  --ipus-per-replica=1 # a shard of the entity table lies on one IPU
  --numa-aware=yes     # instances are bound to NUMA nodes in turn, cores next to their memory
)
if [[ -n ${IPUOF_VIPU_API_PARTITION_ID:-} ]]; then
  options+=(
    --vipu-partition="$IPUOF_VIPU_API_PARTITION_ID"
    --reset-partition=no  # others may be using it
    --remove-partition=no # it was there before
  )
fi
if [[ -n ${IPUOF_VIPU_API_HOST:-} ]]; then
  options+=(--vipu-server-host="$IPUOF_VIPU_API_HOST")
fi
if [[ -n ${IPUOF_VIPU_API_TIMEOUT:-} ]]; then
  options+=(--vipu-server-timeout="$IPUOF_VIPU_API_TIMEOUT")
fi
