#!/usr/bin/env bash
# On one worker of a TPU VM; launch/tpu_start.sh starts it.
set -euo pipefail
cd "$(dirname "$0")/.."
# The system's Python of these machines is older than 3.11.
if [[ -z "${PYTHON:-}" ]] && ! command -v python3.11 >/dev/null; then
  apt_get=(sudo apt-get -o DPkg::Lock::Timeout=300)
  # A new machine is busy with its own updates; for the lock of its lists that option does not wait.
  for _ in {1..30}; do
    if "${apt_get[@]}" update -q; then break; fi
    sleep 10
  done
  "${apt_get[@]}" install -qy python3.11-venv
fi
export EXTRAS="retrieval report tpu gcs${EXTRAS:+ $EXTRAS}"
exec launch/local.sh "$@" --coordinator=auto
