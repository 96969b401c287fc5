#!/usr/bin/env bash
# Every check: lint, types, tests.  Arguments go to pytest:  launch/test.sh tests/losses_test.py -k listmle
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/env.sh
source launch/env.sh retrieval report llm gemini-legacy hf tfds datasets serve gcs s3 tensorboard test
# As modules: the programs in .venv/bin name a Python by its path, which is another clone's where .venv is an old copy.
python -m ruff check .
python -m mypy
# Three workers for two cores, as some tests wait for processes that they start.  A file's tests stay together, so that
# its compiled programs are compiled once, and tests/conftest.py says which files come first.
exec python -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
