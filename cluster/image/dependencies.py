"""The project's dependencies, one a line: `python dependencies.py pyproject.toml [EXTRA ...]`.

So that an image has them in a layer of their own, which a change of the sources leaves as it is.
"""

import sys
import tomllib
from pathlib import Path


def dependencies(project_file: Path, *extras: str) -> list[str]:
    """Requirements of the project and of these extras, pinned as they are there."""
    project = tomllib.loads(project_file.read_text(encoding="utf-8"))["project"]
    found = list(project["dependencies"])
    for extra in extras:
        found += project["optional-dependencies"][extra]
    return found


if __name__ == "__main__":
    print(*dependencies(Path(sys.argv[1]), *sys.argv[2:]), sep="\n")
