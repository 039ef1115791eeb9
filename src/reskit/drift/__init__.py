"""Whether what a network is given, and what it answers, is still what it was made on.

`making.add_profile` gives a bundle a profile of its data; `DriftProfile` says how far a window is from it.
"""

from reskit.drift.profile import WINDOWS, DriftProfile, Scores, features_and_classes

__all__ = ["WINDOWS", "DriftProfile", "Scores", "features_and_classes"]
