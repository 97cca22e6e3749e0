"""KubeRay's published schemas, where they are."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.append(str(Path(__file__).parent))

if TYPE_CHECKING:
    from crd import Crd

ROOT = Path(__file__).parents[2]
CRDS = "KUBERAY_CRDS"  # environment variable: the folder of ray.io_rayclusters.yaml and so on


def _crd_folder() -> Path | None:
    """Where the variable says, else a folder `kuberay-crds` beside the repository."""
    if CRDS in os.environ:
        return Path(os.environ[CRDS])
    return next(iter(sorted(ROOT.parent.glob("*/kuberay-crds"))), None)


@pytest.fixture(scope="session")
def crds() -> dict[str, Crd]:
    """Schemas of `ray.io/v1` by kind."""
    from crd import Crd

    folder = _crd_folder()
    if folder is None:
        pytest.skip(
            "KubeRay's published schemas are its own text and not kept here: name a folder of them "
            f"(helm-chart/kuberay-operator/crds in its sources) in {CRDS}"
        )
    return {
        kind: Crd.read(folder / f"ray.io_{kind.lower()}s.yaml")
        for kind in ("RayCluster", "RayJob", "RayService")
    }
