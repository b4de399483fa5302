"""Compile constraints on answers (`compiling`) and try them before the engine runs them (`sandbox`)."""
