"""Typed configuration: dataclasses, read from YAML with inheritance and dotted overrides."""
