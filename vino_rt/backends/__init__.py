"""Backends: ways to run an engine kind, all behind the protocol in `base`."""
