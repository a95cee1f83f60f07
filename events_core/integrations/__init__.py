"""Integrations with web servers and frameworks.  Import the module that you need; this package imports none of them."""
