"""A stand-in for the vendor's torch_xmlir, for tests only: cited facts made executable. It proves nothing of hardware.

Loads only with LF_KUNLUN_EMULATE=1. With LF_KUNLUN_HOOK=fails it is there and takes nothing over, as the vendor's hook
does when it fails: with a line on stderr.
"""

import os
import sys
from collections import OrderedDict

if os.environ.get("LF_KUNLUN_EMULATE") != "1":
    raise ImportError("this torch_xmlir is an emulator for tests; it loads only with LF_KUNLUN_EMULATE=1")

IS_EMULATOR = True
__version__ = OrderedDict(XPYTORCH="emulated", XCCL="emulated", XRE="emulated")

if os.environ.get("LF_KUNLUN_HOOK") == "fails":
    print("SYMBOL_REWRITE torch failed", file=sys.stderr)
else:
    from . import takeover as emulator

    emulator.install()
    print("EMULATED torch_xmlir: SYMBOL_REWRITE torch success", file=sys.stderr)
