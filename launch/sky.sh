#!/usr/bin/env bash
# On a GPU of whichever cloud is cheapest, through SkyPilot, which brings it back after a preemption:
#
#   launch/sky.sh train_ranker --config=configs/quickstart.py --workdir=s3://bucket/quickstart
#
# GPUS: which, as H100:1.  EXTRAS: what to install beside.  RESTARTS: how often at most on one machine.  SKY_FLAGS: for sky jobs launch, as --infra=gcp.  Then: sky jobs queue, logs, cancel.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/what.sh
source launch/what.sh
module "$@" >/dev/null
read -ra sky_flags <<<"${SKY_FLAGS:-}"
for key in $(keys); do sky_flags+=(--secret="$key"); done
become sky jobs launch --yes --name="idistill-jax-${1//_/-}" --gpus="${GPUS:-H100:1}" --env="WHAT=$(quoted "$@")" \
  --env="EXTRAS=gcs s3${EXTRAS:+ $EXTRAS}" --env="RESTARTS=${RESTARTS:-100}" \
  ${sky_flags[@]+"${sky_flags[@]}"} launch/sky.yaml
