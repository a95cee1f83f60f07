"""The SQLite backend: a durable broker in one file, shared by the processes of one machine.

``driver`` and ``watch`` are its asynchronous side; ``schema``, ``store`` and ``subscription`` are the SQL, synchronous;
``place`` knows whether an open file is still at its path, and ``forks`` lets no process fork while SQLite works.
"""

from events_core.backends.sqlite.client import SQLiteClient
from events_core.backends.sqlite.options import SQLiteOptions

__all__ = ["SQLiteClient", "SQLiteOptions"]
