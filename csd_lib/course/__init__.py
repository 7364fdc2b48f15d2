"""What only the notebooks need: the session, figures, controls and the exercises' checkers."""

from csd_lib import InputError

try:
    from csd_lib.course.checkers import *  # noqa: F403 - the notebooks call course.check_...
    from csd_lib.course.session import *  # noqa: F403
except ModuleNotFoundError as missing:
    if str(missing.name).startswith("csd_lib"):
        raise
    raise InputError(f"{missing.name} is missing: install csd-lib[course]") from missing
