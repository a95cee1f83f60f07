"""The SQLite backend: a durable broker in one file, for many processes of one machine."""

from events_core.backends.sqlite.driver import SQLiteClient, SQLiteOptions

__all__ = ["SQLiteClient", "SQLiteOptions"]
