"""Faults and attacks on the real command: `make torture` tries them all and prints what came of it.

`faults` break the world around a collection, `attacks` send it hostile bytes, `fuzz` sends it
bytes that nobody thought of. Each row says what it expects; a row that gets something else is NOT.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the servers and the browser of the tests
