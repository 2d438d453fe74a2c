"""Hand-written nets, one for each thing a model may do beside calling layers."""

from ..case import Case
from . import control, custom, layers, outputs, random, recurrent, shapes, state

CASES: list[Case] = [
    case for part in (layers, recurrent, state, control, random, outputs, custom, shapes) for case in part.CASES
]
