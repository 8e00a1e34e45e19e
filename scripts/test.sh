#!/usr/bin/env bash
# All checks and tests. Arguments go to pytest: bash scripts/test.sh tests/config -k override
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_venv.sh"

ensure_venv dev
cd "$REPO"
export PATH="$VENV/bin:$PATH" VIRTUAL_ENV="$VENV" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
failed=()

check() {
  echo "== $*"
  "$@" </dev/null || failed+=("$1")
}

check ruff check .
check ruff format --check .
check mypy
check lint-imports
check codespell
check pytest -n "$(workers python)" "${SHARED[@]}" "$@"

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
