"""Let the compiler have every JSON schema that the service has rewritten for it. For vLLM 0.32.0.

vLLM keeps a list of keywords and pairs that xgrammar may not enforce, and refuses a schema without a word which. The
service refuses what is not enforced by keyword and place (`constraints.json_schema`), and writes some of these pairs
itself: `properties` beside `patternProperties` for additional names that are none of the named ones.
"""

from __future__ import annotations

from typing import Any


def accept_rewritten_schemas() -> None:
    """Leave the check of features to the service.

    Upstream: vllm/v1/structured_output/backend_xgrammar.py `has_xgrammar_unsupported_json_features`.
    """
    from vllm.v1.structured_output import backend_xgrammar

    checks = backend_xgrammar.has_xgrammar_unsupported_json_features
    if hasattr(checks, "__wrapped__"):
        return

    def has_none(schema: dict[str, Any]) -> bool:
        """Return False: the schema was rewritten."""
        return False

    has_none.__wrapped__ = checks  # type: ignore[attr-defined]
    backend_xgrammar.has_xgrammar_unsupported_json_features = has_none
