#!/usr/bin/env bash
# One stage on this machine:  launch/local.sh train_ranker --config=configs/quickstart.py --workdir=runs/quickstart
set -euo pipefail
cd "$(dirname "$0")/.."
stage="${1:?usage: launch/local.sh STAGE --config=... --workdir=...; the stages are in idistill_jax/stages}"
# shellcheck source=launch/env.sh
source launch/env.sh retrieval report
exec python -m "idistill_jax.stages.$stage" "${@:2}"
