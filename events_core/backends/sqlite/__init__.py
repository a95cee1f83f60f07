"""The SQLite backend: a durable broker in one file, shared by the processes of one machine.

:mod:`.client` says what it promises, :mod:`.driver` and :mod:`.watch` are its asynchronous side; :mod:`.schema`,
:mod:`.store` and :mod:`.subscription` are the SQL, synchronous, each call one transaction.
"""

from events_core.backends.sqlite.client import SQLiteClient, SQLiteOptions

__all__ = ["SQLiteClient", "SQLiteOptions"]
