"""Interventions and measures inside training code that people already have: plain loops, Lightning, transformers.

Nothing here is imported before it is asked for; Lightning and transformers are optional.
"""

from grokscape.integrations.applied import Applied

__all__ = ["Applied"]
