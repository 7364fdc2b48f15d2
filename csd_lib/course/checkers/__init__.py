"""The checkers of the exercises, one function each, for the learner's own function.

``course`` passes them on to the notebooks. Each returns a ``Verdict`` within a few seconds on a
CPU, never raises for a wrong answer, and says which mistake was made. The sentences of the known
mistakes are also the instructor's list of common wrong answers.
"""

from collections.abc import Callable

from csd_lib.course.checkers.distilling import (
    check_csd_loss,
    check_csd_test,
    check_distillation_term,
    check_freeze,
    check_kd_loss,
)
from csd_lib.course.checkers.drifting import (
    check_best_rotation,
    check_cosine_drift,
    check_neighborhood_overlap,
)
from csd_lib.course.checkers.first_task import check_cross_entropy, check_head, check_triplet_loss
from csd_lib.course.checkers.forgetting import (
    check_forgetting,
    check_paired_difference,
    check_recall_at_k,
    check_recall_in_gallery,
    check_term_effect,
)
from csd_lib.course.checkers.judge import VERDICTS, Verdict
from csd_lib.course.checkers.measuring import (
    check_class_orders,
    check_recipes,
    check_teacher_statistics,
    check_undone_rotation,
)
from csd_lib.course.checkers.splits import (
    check_count_copies,
    check_random_crop,
    check_relabel,
    check_split_classes,
)

# In the order of the exercises.
CHECKERS: dict[str, Callable[..., Verdict]] = {
    "1.1": check_relabel,
    "1.2": check_split_classes,
    "1.3": check_count_copies,
    "1.4": check_random_crop,
    "2.1": check_cross_entropy,
    "2.2": check_triplet_loss,
    "2.3": check_head,
    "2.4": check_recipes,
    "3.1": check_kd_loss,
    "3.2": check_csd_loss,
    "3.3": check_csd_test,
    "3.4": check_freeze,
    "3.4b": check_teacher_statistics,
    "3.5": check_distillation_term,
    "4.1": check_recall_at_k,
    "4.2": check_forgetting,
    "4.3": check_recall_in_gallery,
    "4.4": check_paired_difference,
    "4.5": check_class_orders,
    "4.6": check_term_effect,
    "5.1": check_cosine_drift,
    "5.2": check_neighborhood_overlap,
    "5.3": check_best_rotation,
    "5.4": check_undone_rotation,
}

__all__ = ["CHECKERS", "VERDICTS", "Verdict", *(check.__name__ for check in CHECKERS.values())]
