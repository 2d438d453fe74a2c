"""Tests that fail because src does not keep their promise yet, by name, each with its reason. To be emptied."""

NOT_KEPT_YET: dict[str, str] = {}
