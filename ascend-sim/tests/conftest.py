"""Everything here runs over the emulation, whatever the environment says."""

from __future__ import annotations

import ascend_sim

ascend_sim.activate()
