#!/usr/bin/env bash
# A selection of tests under other Pythons than that of scripts/test.sh. Not in the default run: each torch is gigabytes.
#   MAKE=1 bash scripts/test_pythons.sh [pytest arguments]    # installs what is missing; else only what is there is used
# Ends with 0 when every stage passed, 1 when one failed, 3 when none failed but one was skipped.
set -uo pipefail
REPO="$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
ENVS="${ENVS:-$REPO/.venvs}"
STAGES=("3.10 2.9.0" "3.12 2.13.0") # Python, torch; 3.11 is what scripts/test.sh runs
SELECTION=(tests/config tests/cli/test_main.py tests/cli/test_backends.py tests/data/test_formats.py tests/components/test_attention.py
  tests/components/test_projectors.py tests/kernels tests/backends tests/parallel/test_layout.py tests/parallel/test_grid.py)
passed=() failed=() skipped=()

# find_python 3.10: a program of exactly that version, on the path or of pyenv.
find_python() {
  local candidate
  for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
    "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null &&
      command -v "$candidate" && return
  done
  return 1
}

has_versions() {
  "$1/bin/python" -c "import sys, torch, pytest, megatron.core, transformers
sys.exit('%d.%d' % sys.version_info[:2] != '$2' or torch.__version__.split('+')[0] != '$3')" 2>/dev/null
}

# make_environment FOLDER PYTHON TORCH
make_environment() {
  "$2" -m venv "$1" &&
    "$1/bin/python" -m pip install -qq --no-input --disable-pip-version-check "torch==$3" -e "$REPO[dev]" </dev/null
}

run_stage() {
  local name="Python $1, torch $2" folder="$ENVS/py$1" python
  echo "== $name"
  python="$(find_python "$1")" || { skipped+=("$name: no interpreter of that version"); return; }
  if ! has_versions "$folder" "$1" "$2"; then
    [ -n "${MAKE:-}" ] || { skipped+=("$name: no such environment in $folder (MAKE=1 installs it)"); return; }
    make_environment "$folder" "$python" "$2" || { skipped+=("$name: the installation failed, see above"); return; }
    has_versions "$folder" "$1" "$2" || { failed+=("$name: the new environment does not import"); return; }
  fi
  (cd "$REPO" && PYTHONPATH="$REPO" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false \
    "$folder/bin/python" -m pytest -q "${tests[@]}" </dev/null) && passed+=("$name") || failed+=("$name: tests")
}

tests=("${SELECTION[@]}")
[ $# -gt 0 ] && tests=("$@")
for stage in "${STAGES[@]}"; do
  read -r version torch <<<"$stage"
  run_stage "$version" "$torch"
done
for line in ${passed[@]+"${passed[@]}"}; do echo "passed:  $line"; done
for line in ${failed[@]+"${failed[@]}"}; do echo "FAILED:  $line"; done
for line in ${skipped[@]+"${skipped[@]}"}; do echo "SKIPPED, not tested: $line"; done
[ ${#failed[@]} -eq 0 ] || exit 1
[ ${#skipped[@]} -eq 0 ] || exit 3
