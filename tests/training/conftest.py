"""What a rank runs lies beside the tests and is imported by them too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
