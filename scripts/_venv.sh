# Sourced by quickstart.sh, test.sh and test_pythons.sh: the virtual environment `.venv` in the repo, made once and kept up to date.

REPO="$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="$REPO/.venv"

stop() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

# Prints the Python that the variable PYTHON names, or else the first that is new enough.
find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    is_new_enough "$PYTHON" || stop "PYTHON=$PYTHON is no Python of version 3.10 or newer that runs here"
    command -v "$PYTHON"
    return
  fi
  for candidate in python3 python3.12 python3.11 python3.10 python3.13 python; do
    is_new_enough "$candidate" && command -v "$candidate" && return
  done
  stop "loongforge needs Python 3.10 or newer and found none (looked for python3, and python3.10 to python3.13).
Install one (for example 'sudo apt install python3 python3-venv'), or say where it is: PYTHON=/path/to/python3 bash $0"
}

# Changes whenever an installation made earlier no longer fits.
fingerprint() {
  "$VENV/bin/python" - "$REPO" <<'PY'
import hashlib, pathlib, sys
repo = pathlib.Path(sys.argv[1])
files = [repo / "pyproject.toml", repo / "constraints.txt"]
print(hashlib.sha256(b"\0".join([str(repo).encode(), sys.version.encode(), *(f.read_bytes() for f in files)])).hexdigest())
PY
}

make_venv() {
  "$VENV/bin/python" -m pip --version >/dev/null 2>&1 && return
  local python
  python="$(find_python)" || exit 2
  echo "Making the virtual environment $VENV with $python"
  "$python" -m venv --clear "$VENV" ||
    stop "'$python -m venv' failed (see above). On Debian and Ubuntu: sudo apt install python3-venv"
}

# ensure_venv [dev]: makes .venv and installs the package, with the tools for development when asked.
ensure_venv() {
  local extra="${1:-}" wanted target
  make_venv
  wanted="$(fingerprint)"
  # An environment with the development tools has all that is needed without them.
  grep -qsx "$wanted" "$VENV/.loongforge-dev" && return
  [ -z "$extra" ] && grep -qsx "$wanted" "$VENV/.loongforge-base" && return
  target="$REPO${extra:+[$extra]}"
  echo "Installing loongforge and what it needs into $VENV (a few minutes the first time; torch is the large part)"
  rm -f "$VENV/.loongforge-dev" "$VENV/.loongforge-base"
  PIP_USER=0 "$VENV/bin/python" -m pip install -qq --no-input --disable-pip-version-check \
    -c "$REPO/constraints.txt" -e "$target" </dev/null ||
    stop "the installation failed (pip's message is above). Nothing is half-done: run the same command again."
  echo "$wanted" >"$VENV/.loongforge-${extra:-base}"
}

# How workers share tests: a file each; the order is tests/conftest.py's; a worker that dies is replaced once.
SHARED=(--dist loadfile --no-loadscope-reorder --max-worker-restart 1)

# workers PYTHON: how many processes tests share, no more than the cores that this one may use, four at most.
workers() {
  "$1" -c 'import os
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
print(max(1, min(4, cores)))'
}
