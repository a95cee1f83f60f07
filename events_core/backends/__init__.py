"""The embedded backends, written on the doors that a third party has."""
