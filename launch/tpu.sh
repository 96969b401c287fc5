#!/usr/bin/env bash
# On a TPU VM of Google Cloud, all workers of it:
#
#   launch/tpu.sh create --spot  # asks for it as a queued resource, and waits; gcloud takes the flags
#   launch/tpu.sh run train_ranker --config=configs/quickstart.py --workdir=gs://bucket/quickstart
#   launch/tpu.sh logs  # of worker 0, or of WORKER
#   launch/tpu.sh delete
#
# TPU: its name.  ZONE, TYPE, RUNTIME: where, and what.  EXTRAS: what to install beside.  After a preemption the same create and run go on.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/what.sh
source launch/what.sh
: "${TPU:?TPU names the machine}" "${ZONE:?ZONE says where it is}"

# Nothing where there is no such machine; an error, in gcloud's words, where it cannot tell.
state() {
  local said
  if said="$(gcloud compute tpus queued-resources describe "$TPU" --zone="$ZONE" --format="value(state.state)" 2>&1)"; then
    # gcloud says other things beside.
    grep -Ex '[A-Z_]+' <<<"$said" || true
  elif [[ "$said" != *NOT_FOUND* ]]; then
    printf '%s\n' "$said" >&2
    return 1
  fi
}

create() {
  : "${TYPE:?TYPE is for example v5litepod-16}" "${RUNTIME:?RUNTIME is for example v2-alpha-tpuv5-lite}"
  local state="" unknown=0
  # A dry run does without what gcloud cannot tell.
  state="$(state)" || "$dry_run"
  # On its way out: its name is not free yet, and once it is suspended it goes no further by itself.
  until "$dry_run" || [[ "$state" != SUSPENDING && "$state" != DELETING ]]; do
    echo "launch/tpu.sh: $TPU is $state; it is asked for anew once that is over" >&2
    sleep "${POLL_SECONDS:-30}"
    state="$(state)"
  done
  case "$state" in
    # Taken away, or never given: its name is free again only when it is deleted.
    SUSPENDED | SUSPENDING | FAILED)
      delete
      state="" ;;
    DELETING) state="" ;;
  esac
  if [[ -z "$state" ]]; then
    act gcloud compute tpus queued-resources create "$TPU" --node-id="$TPU" --zone="$ZONE" \
      --accelerator-type="$TYPE" --runtime-version="$RUNTIME" "$@"
  fi
  until "$dry_run" || [[ "$state" == ACTIVE ]]; do
    state="$(state)"
    case "$state" in
      ACTIVE) ;;
      FAILED) echo "launch/tpu.sh: $TPU was not given" >&2; return 1 ;;
      SUSPENDING | SUSPENDED | DELETING)
        echo "launch/tpu.sh: $TPU is $state: taken away, or deleted; the same command asks for it anew" >&2; return 1 ;;
      "")
        if ((++unknown == 20)); then
          echo "launch/tpu.sh: $TPU was asked for, and gcloud says no state of it: look at" \
            "gcloud compute tpus queued-resources describe $TPU --zone=$ZONE" >&2
          return 1
        fi
        sleep "${POLL_SECONDS:-30}" ;;
      *) unknown=0; sleep "${POLL_SECONDS:-30}" ;;
    esac
  done
}

run() {
  module "$@" >/dev/null
  # What is committed or added, as it stands.
  local tree
  tree="$(git stash create)"
  act git archive --output=.idistill_jax.tgz "${tree:-HEAD}"
  act gcloud compute tpus tpu-vm scp .idistill_jax.tgz "$TPU:" --zone="$ZONE" --worker=all
  send_keys
  # Out of the archive, as what is unpacked there may belong to a run that is going on.
  act gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="start=\"\$(tar xzOf .idistill_jax.tgz launch/tpu_start.sh)\" && \
${EXTRAS:+EXTRAS=$(quoted "$EXTRAS") }bash -c \"\$start\" launch/tpu_start.sh $(quoted "$@")"
}

# As a file that nobody else can read: a command line would show them, here and there.
send_keys() {
  local key file=.idistill_jax.keys
  [[ -n "$(keys)" ]] || return 0
  if ! "$dry_run"; then
    trap 'rm -f .idistill_jax.keys' EXIT
    rm -f "$file"
    (umask 077 && for key in $(keys); do printf 'export %s=%q\n' "$key" "${!key}"; done >"$file")
  fi
  act gcloud compute tpus tpu-vm scp "$file" "$TPU:" --zone="$ZONE" --worker=all
}

logs() {
  become gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="${WORKER:-0}" \
    --command="tail -n 100 -F idistill_jax/run.log"
}

delete() {
  act gcloud compute tpus queued-resources delete "$TPU" --zone="$ZONE" --force --quiet
}

case "${1:-}" in
  create | run | logs | delete) "$@" ;;
  *) echo "usage: launch/tpu.sh [--dry_run] create | run STAGE --config=... --workdir=... | logs | delete" >&2; exit 2 ;;
esac
