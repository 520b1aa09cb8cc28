#!/bin/sh
# Environments of the peers: FOLDER/pykeen, FOLDER/dglke and so on, each with the same torch on the CPU.
#
#   sh benchmarks/install_peers.sh FOLDER [PYTHON]     PYTHON: 3.11
#
# TORCH says how pip gets torch; the constraint keeps it from being replaced.
set -eu
folder=$1
python=${2:-python3.11}
torch=${TORCH:-torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu}
mkdir -p "$folder"
echo "torch==2.13.0" > "$folder/constraints.txt"

make() { # NAME PACKAGE...: an environment with torch and packages
  name=$1
  shift
  "$python" -m venv "$folder/$name"
  # shellcheck disable=SC2086
  "$folder/$name/bin/pip" install -q $torch
  "$folder/$name/bin/pip" install -q -c "$folder/constraints.txt" "$@"
}

make pykeen pykeen==1.11.1
make pyg torch_geometric==2.8.1
make biggraph torchbiggraph==1.0.0 "setuptools<81"

# DGL 0.9.1 has no wheel for Python 3.11; that for 3.10 works, since its libraries are plain C.
make dglke "numpy<2" scipy networkx requests tqdm psutil "setuptools<81"
"$folder/dglke/bin/pip" install -q --no-deps --python-version 310 --only-binary=:all: \
  --target "$("$folder/dglke/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
  dgl==0.9.1
"$folder/dglke/bin/pip" install -q --no-deps dglke==0.1.2 ogb==1.3.6

# LibKGE is not on PyPI. What only its hyper-parameter search needs (ax, botorch) is left out.
make libkge "numpy" pyyaml "pandas<2.3" path "sqlalchemy<2" numba igraph torchviz ConfigSpace hpbandster
[ -d "$folder/libkge/src" ] || git clone -q https://github.com/uma-pi1/kge "$folder/libkge/src"
git -C "$folder/libkge/src" checkout -q 9bca31fefbfc41d48fdc03396acd0cf42eee9dc4
"$folder/libkge/bin/pip" install -q --no-deps -e "$folder/libkge/src"
