"""Bindings of zomopi to other people's objects: one module a library, imported by name."""
