#!/usr/bin/env bash
# What runs, in the same words everywhere:  source launch/what.sh, from a script that was given
#
#   [--dry_run] STAGE --config=... --workdir=...
#
# STAGE is `pipeline` or a file in idistill_jax/stages.  With --dry_run, act and become print what they would run.

dry_run=false
what=()
for word in "$@"; do
  if [[ "$word" == --dry_run ]]; then dry_run=true; else what+=("$word"); fi
done
set -- ${what[@]+"${what[@]}"}

# Runs a command, or prints it as a line that a shell reads back.
act() {
  if "$dry_run"; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

# As act, in place of this shell: signals (a machine that is taken away sends one) reach the command itself.
become() {
  if "$dry_run"; then act "$@"; else exec "$@"; fi
}

quoted() {
  local words
  printf -v words '%q ' "$@"
  printf '%s' "${words% }"
}

# Names of the keys that are set here, one a line: places take them by name, as a value would show in process lists.
keys() {
  local key
  for key in GEMINI_API_KEY GOOGLE_API_KEY OPENAI_API_KEY HF_TOKEN; do
    [[ -z "${!key:-}" ]] || echo "$key"
  done
}

# module STAGE: the Python module that it is.
module() {
  local stage="${1:?usage: $0 [--dry_run] STAGE --config=... --workdir=...}"
  if [[ "$stage" == pipeline ]]; then
    echo "idistill_jax.pipeline"
  elif [[ -e "idistill_jax/stages/$stage.py" ]]; then
    echo "idistill_jax.stages.$stage"
  else
    echo "$0: no stage '$stage'; there are pipeline and those in idistill_jax/stages:" idistill_jax/stages/[a-z]*.py >&2
    return 1
  fi
}
