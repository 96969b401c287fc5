#!/usr/bin/env bash
# On one worker of a TPU VM, in its home; launch/tpu.sh runs it on all of them, out of the archive that it has sent.
# Unpacks that, reads the keys, and starts launch/tpu_worker.sh, which outlives this connection.
set -euo pipefail
sent="$PWD/.idistill_jax.tgz" keys="$PWD/.idistill_jax.keys"
# Whether they were used or not.
trap 'rm -f "$sent" "$keys"' EXIT
mkdir -p idistill_jax
cd idistill_jax
# Held as long as the stage runs: asked for twice, it runs once, with the code and keys that it began with.
exec 8>>run.lock
if ! flock --nonblock 8; then
  echo "launch/tpu.sh: on $HOSTNAME a run is going on, which keeps its code; what was sent now is deleted, keys too" >&2
  exit
fi
# Not simply over what is there: a module that is no longer sent would still be imported.
if [[ -e .sent ]]; then xargs -d '\n' rm -f <.sent; fi
tar tzf "$sent" | sed '/\/$/d' >.sent
tar xzf "$sent"
if [[ -e "$keys" ]]; then
  # shellcheck source=/dev/null
  source "$keys"
fi
nohup launch/tpu_worker.sh "$@" </dev/null >>run.log 2>&1 &
