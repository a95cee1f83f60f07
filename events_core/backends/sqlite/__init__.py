"""The SQLite backend: a durable broker in one file, shared by the processes of one machine.

* ``client``, ``options``: the class that the registry finds, and its configuration.
* ``driver``: the client's side. ``source``: the receiver's side.  Both are asynchronous and wait.
* ``connection``: opens the file, opens it again when it is lost, and waits for locks.
* ``subscription``, ``store``: the SQL, synchronous.  Each public method is one transaction.
* ``taking``: which messages a receiver gets. ``codec``: a message in a row. ``sweep``: what is deleted, and when.
* ``opening``: how a file is recognised, created, upgraded or refused. ``schema``: the tables of each version.
* ``errors``: SQLite's errors as the engine's.
* ``place``: whether an open file is still at its path. ``forks``: why a fork waits for SQLite.
* ``watch``: how a receiver learns that the file has changed.

There is no ``limits``: a row takes everything that the portable limits allow.

Queries have named parameters, except those that run once for each message.  Names would make sending, receiving and
acknowledging a message about 5 % slower there, because ``sqlite3`` looks up each name again in each execution.
"""

from events_core.backends.sqlite.client import SQLiteClient
from events_core.backends.sqlite.options import SQLiteOptions

__all__ = ["SQLiteClient", "SQLiteOptions"]
