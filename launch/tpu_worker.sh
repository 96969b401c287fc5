#!/usr/bin/env bash
# On one worker of a TPU VM; launch/tpu.sh starts it on all of them.
set -euo pipefail
cd "$(dirname "$0")/.."
# The system's Python of these machines is older than 3.11.
if [[ -z "${PYTHON:-}" ]] && ! command -v python3.11 >/dev/null; then
  sudo apt-get update -q && sudo apt-get install -qy python3.11-venv
fi
export EXTRAS="retrieval report tpu gcs" JAX_PLATFORMS=tpu,cpu
exec launch/local.sh "$@" --coordinator=auto
