"""The checkers of the exercises, one function each, for the learner's own function.

``course`` passes them on to the notebooks. Each returns a ``Verdict`` within a few seconds on a
CPU, never raises for a wrong answer, and says which mistake was made. The sentences of the known
mistakes are also the instructor's list of common wrong answers.
"""

from csd_lib.course.checkers import judge
from csd_lib.course.checkers.distilling import *  # noqa: F403 - for ``course``
from csd_lib.course.checkers.drifting import *  # noqa: F403
from csd_lib.course.checkers.first_task import *  # noqa: F403
from csd_lib.course.checkers.forgetting import *  # noqa: F403
from csd_lib.course.checkers.judge import VERDICTS, Verdict
from csd_lib.course.checkers.measuring import *  # noqa: F403
from csd_lib.course.checkers.splits import *  # noqa: F403

CHECKERS = dict(sorted(judge.CHECKERS.items()))  # in the order of the exercises

__all__ = ["CHECKERS", "VERDICTS", "Verdict", *(check.__name__ for check in CHECKERS.values())]
