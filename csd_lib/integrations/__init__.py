"""CSD where people already train; each module needs an optional package.

Of the rest of ``csd_lib`` only ``csd train --log`` imports one of these modules.
"""

from csd_lib import InputError


def missing(error: ImportError, extra: str) -> InputError:
    """Return what to raise where the package of an optional extra is not installed."""
    return InputError(
        f"csd_lib.integrations needs a package that is not here ({error}): "
        f"pip install 'csd-lib[{extra}]'"
    )
