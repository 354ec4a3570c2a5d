#!/usr/bin/env bash
# Trains in several processes of this machine, one for each GPU (or on the CPU, where there is none):
#   tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# Several machines: NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST PORT=29500, and NODE_RANK=1 on the other.
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$2" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$here/train.py" "$1" --launcher pytorch "${@:3}"
