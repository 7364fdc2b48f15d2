"""CSD where people already train; each module needs the optional package it is named after.

Nothing else in ``csd_lib`` imports these modules.
"""

from csd_lib import InputError


def missing(error: ImportError, extra: str) -> InputError:
    """Return what to raise where the package of an optional extra is not installed."""
    return InputError(
        f"csd_lib.integrations needs a package that is not here ({error}): "
        f"pip install 'csd-lib[{extra}]'"
    )
