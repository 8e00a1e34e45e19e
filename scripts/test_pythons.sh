#!/usr/bin/env bash
# Tests under other Pythons than that of scripts/test.sh. A stage runs where its environment, $ENVS/py3.10 say, is there and fits.
#   MAKE=1 bash scripts/test_pythons.sh [pytest arguments]    # makes what is missing; each torch is gigabytes
# Arguments replace the selection: `tests` is the whole suite. STAGES="3.12:2.13.0" takes some of the stages, or other versions.
# Ends with 1 when a stage failed, else with 3 when one was skipped, and with 0 only when all of them passed.
set -uo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_venv.sh"
ENVS="${ENVS:-$REPO/.venvs}"
STAGES="${STAGES:-3.10:2.9.0 3.12:2.13.0}" # Python:torch; 3.11 is what CI gives scripts/test.sh
SELECTION=(tests/config tests/cli/test_main.py tests/cli/test_backends.py tests/data/test_formats.py tests/data/test_sources.py
  tests/data/test_images.py tests/components/test_attention.py tests/components/test_projectors.py tests/kernels tests/backends
  tests/parallel/test_layout.py tests/parallel/test_grid.py tests/training/test_trainer.py tests/repo/test_packaging.py)
passed=() failed=() skipped=()

# interpreter 3.10: a program of exactly that version, on the path or of pyenv.
interpreter() {
  local candidate
  for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
    "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" >/dev/null 2>&1 &&
      command -v "$candidate" && return
  done
  return 1
}

# fits FOLDER PYTHON TORCH: says what is wrong with an environment, nothing when all is well.
fits() {
  [ -x "$1/bin/python" ] || { echo "no environment in $1"; return 1; }
  (cd "$REPO" && PYTHONPATH="$REPO" "$1/bin/python" - "$REPO" "$2" "$3" 2>&1 <<'PY') | tail -n 1
import importlib, pathlib, sys
repo, python, torch = sys.argv[1:]
def check(name, found, wanted):
    if found != wanted:
        sys.exit(f"its {name} is {found}")
check("Python", "%d.%d" % sys.version_info[:2], python)
check("torch", importlib.import_module("torch").__version__.split("+")[0], torch)
for name in ("megatron.core", "transformers", "pytest", "xdist", "hypothesis", "peft", "loongforge_backends"):
    importlib.import_module(name)
folder = pathlib.Path(sys.modules["loongforge_backends"].__path__[0]).resolve()
if folder != pathlib.Path(repo, "backends").resolve():
    sys.exit(f"made for another checkout: loongforge_backends is {folder}")
PY
  return "${PIPESTATUS[0]}"
}

# make_environment FOLDER PYTHON TORCH
make_environment() {
  echo "Installing torch $3 and the rest into $1"
  "$2" -m venv "$1" &&
    PIP_USER=0 "$1/bin/python" -m pip install -qq --no-input --disable-pip-version-check "torch==$3" -e "$REPO[dev]" </dev/null
}

# run_tests NAME FOLDER
run_tests() {
  local log counts
  log="$(mktemp)" || { failed+=("$1: no room for its log"); return; }
  (cd "$REPO" && PATH="$2/bin:$PATH" VIRTUAL_ENV="$2" PYTHONPATH="$REPO" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 \
    TOKENIZERS_PARALLELISM=false "$2/bin/python" -m pytest -q -n "$(workers "$2/bin/python")" "${SHARED[@]}" "${tests[@]}" </dev/null) | tee "$log"
  local status=${PIPESTATUS[0]}
  counts="$(tail -n 1 "$log")"
  rm -f "$log"
  if [ "$status" -ne 0 ]; then
    failed+=("$1: $counts")
  elif [[ " $counts" == *" passed"* ]]; then
    passed+=("$1: $counts")
  else # pytest ends well where it has skipped everything
    skipped+=("$1: $counts")
  fi
}

run_stage() {
  local name="Python $1, torch $2" folder="$ENVS/py$1" python problem
  echo "== $name"
  if ! problem="$(fits "$folder" "$1" "$2")"; then
    python="$(interpreter "$1")" || { skipped+=("$name: no interpreter of that version here"); return; }
    [ -n "${MAKE:-}" ] || { skipped+=("$name: $problem (MAKE=1 installs it)"); return; }
    make_environment "$folder" "$python" "$2" || { failed+=("$name: the installation failed, see above"); return; }
    problem="$(fits "$folder" "$1" "$2")" || { failed+=("$name: $problem"); return; }
  fi
  run_tests "$name" "$folder"
}

tests=("${SELECTION[@]}")
[ $# -gt 0 ] && tests=("$@")
for stage in $STAGES; do
  run_stage "${stage%:*}" "${stage#*:}"
done
echo "== Other Pythons: ${#passed[@]} passed, ${#failed[@]} failed, ${#skipped[@]} skipped"
for line in ${passed[@]+"${passed[@]}"}; do echo "passed:  $line"; done
for line in ${failed[@]+"${failed[@]}"}; do echo "FAILED:  $line"; done
for line in ${skipped[@]+"${skipped[@]}"}; do echo "SKIPPED, not tested: $line"; done
[ ${#failed[@]} -eq 0 ] || exit 1
[ ${#skipped[@]} -eq 0 ] && [ ${#passed[@]} -gt 0 ] || exit 3
