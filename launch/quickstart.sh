#!/usr/bin/env bash
# From a fresh clone to a better search model: sets up .venv, then runs every stage of configs/quickstart.py into
# runs/quickstart.  Run again, it skips what is finished and continues what was killed.  Flags are passed on:
#   launch/quickstart.sh --config.labels.provider=gemini
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/env.sh
source launch/env.sh retrieval report
exec python -m idistill_jax.pipeline --config=configs/quickstart.py --workdir=runs/quickstart "$@"
