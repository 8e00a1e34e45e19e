"""These tests import the emulator, which changes torch: tests/emul/test_inside.py gives them a process of their own."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("LF_KUNLUN_EMULATE") == "1" else ["test_*.py"]
