#!/usr/bin/env bash
# One stage on this machine:  launch/local.sh train_ranker --config=configs/quickstart.py --workdir=runs/quickstart
set -euo pipefail
stage="${1:?usage: launch/local.sh STAGE --config=... --workdir=...; the stages are in idistill_jax/stages}"
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh" retrieval report
exec python -m "idistill_jax.stages.$stage" "${@:2}"
