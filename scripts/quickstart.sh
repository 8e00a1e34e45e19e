#!/usr/bin/env bash
# From a clean machine to a trained vision-language model: makes .venv, installs, trains the recipe llava_sft.
# Arguments are overrides of the recipe: bash scripts/quickstart.sh trainer.seed=7 llm=qwen3_tiny
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_venv.sh"

ensure_venv
exec "$VENV/bin/loongforge" train +recipe=llava_sft "$@"
