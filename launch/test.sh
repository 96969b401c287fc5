#!/usr/bin/env bash
# Every check: lint, types, tests.  Arguments go to pytest:  launch/test.sh tests/losses_test.py -k listmle
set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh" retrieval report llm gemini-legacy hf test
ruff check .
mypy
# Two workers for two cores; a file's tests stay together, so that its compiled programs are compiled once.
exec python -m pytest -n 2 --dist loadfile "$@"
