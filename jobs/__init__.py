"""What `ray job submit` runs. A shipped folder has the root on the path, not the library's root."""

import sys
from pathlib import Path

_LIBRARY = str(Path(__file__).resolve().parents[1] / "platform")
if _LIBRARY not in sys.path:
    sys.path.insert(0, _LIBRARY)
