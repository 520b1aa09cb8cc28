# What the scripts of this folder share; they source it. It has not run with IPUs.
#
#   PYTHON       interpreter, with PopTorch
#   EXECUTABLES  folder for compiled programs, shared by instances and hosts
#   IPUOF_VIPU_API_PARTITION_ID, IPUOF_VIPU_API_HOST
#                partition of IPUs to use, and the server that knows it; poprun makes and removes one of
#                its own where no partition is named
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
program=("${PYTHON:-python}" "$here/train.py" --executable-cache "${EXECUTABLES:-$PWD/executables}")
options=(
  --ipus-per-replica=1 # a shard of the entity table lies on one IPU
  --numa-aware=yes     # the cores of an instance are those next to its memory
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
