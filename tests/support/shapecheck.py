"""The checker behind every annotation of the package in the tests: beartype, with PEP 484's numeric tower.

Without the tower an int is no float, and `orbit(elevation=5)` would be an error that no type checker reports.
"""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
