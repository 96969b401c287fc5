#!/usr/bin/env bash
# On this machine:  launch/local.sh train_ranker --config=configs/quickstart.py --workdir=runs/quickstart
# EXTRAS: what to install (see pyproject.toml).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/what.sh
source launch/what.sh
module="$(module "$@")"
read -ra extras <<<"${EXTRAS:-retrieval report}"
act source launch/env.sh "${extras[@]}"
become python -m "$module" "${@:2}"
