"""What a service did, for good: an append-only journal, and the figures that come from it."""

from reskit.journal.figures import Deployment, History, history
from reskit.journal.journal import Event, Journal, Kind, read_journal

__all__ = ["Deployment", "Event", "History", "Journal", "Kind", "history", "read_journal"]
