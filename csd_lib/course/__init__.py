"""What only the notebooks need: the session, figures, controls and the exercises' checkers."""

from csd_lib import checks

with checks.needs_extra("course"):
    from csd_lib.course.checkers import *  # noqa: F403 - the notebooks call course.check_...
    from csd_lib.course.session import *  # noqa: F403
