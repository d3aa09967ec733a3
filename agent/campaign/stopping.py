"""What the reason of a run begins with that the campaign itself stopped: whoever reads a journal knows it by that."""

PAUSED = "paused for a screening"
"""Reason of a run that the campaign ended after the first part of its budget; it can go on from there."""
HOPELESS = "hopeless"
"""How the reason of a run begins that the campaign ended because it could not win any more; it is finished so."""
