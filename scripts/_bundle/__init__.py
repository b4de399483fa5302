"""Carry Penstock to machines without a network: `scripts/bundle make`, `open` and `check`.

`open` and `check` need nothing beside Python's standard library. A bundle holds these modules as `bundle.pyz`.
"""
