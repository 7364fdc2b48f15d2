"""A small kit to learn, teach and check Contrastive Supervised Distillation (CSD).

The science is in eight flat modules, to be read in this order::

    data -> losses -> model -> retrieval -> methods -> config -> train -> drift

What is around them is drawn in docs/design.md. What a researcher needs in a program of one's own
is in ``api``.

Source of the method: Barletti, Biondi, Pernici, Bruni and Del Bimbo, "Contrastive Supervised
Distillation for Continual Representation Learning", ICIAP 2021 (arXiv 2205.05476).
"""

__version__ = "0.3.0"
# Where releases are published. Whoever publishes the kit puts the real account here and runs
# "make heads"; this one can belong to nobody, since GitHub's account names have no underscore.
REPOSITORY = "YOUR_ACCOUNT/csd-kit"
TAG = f"v{__version__}"


class InputError(ValueError):
    """A mistake in what the user gave. The message names the value and the remedy.

    Every function may raise it for arguments of a wrong kind; docstrings name other reasons.
    """

    def _render_traceback_(self) -> list[str]:
        """Return what IPython and Jupyter show: one line, since the mistake is not in our code."""
        return [f"{type(self).__name__}: {self}"]


class TrainingError(RuntimeError):
    """Training cannot go on usefully: it has diverged, or the features have collapsed."""

    _render_traceback_ = InputError._render_traceback_
