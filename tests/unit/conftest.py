"""The state that the contract tests start from is the unit tests' as well. Owns nothing."""

from contract.conftest import fresh_process_state

__all__ = ["fresh_process_state"]
