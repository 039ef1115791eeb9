"""The kinds of place images come from; a new kind is one new file and its line here."""

from reskit.data.kinds import arrow, digits, folder, hub, parquet, table, webdataset
from reskit.data.kinds.base import SOURCES, Found, SourceKind

__all__ = [
    "SOURCES",
    "Found",
    "SourceKind",
    "arrow",
    "digits",
    "folder",
    "hub",
    "parquet",
    "table",
    "webdataset",
]
