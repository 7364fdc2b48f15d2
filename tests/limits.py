"""What a setting takes by its declaration, so that its limits are written in one place."""

import math

from hypothesis import strategies as st

from csd_lib import checks

FIXED = {  # checks that bring their own limits
    checks.seed: {"minimum": 0, "maximum": checks.MAX_SEED},
    checks.epochs: {"minimum": 1, "maximum": checks.MAX_EPOCHS},
}
WHOLE = (checks.whole, *FIXED)


def is_plain(part):
    """Whether a field's declaration says all: it is a number, a flag, or one of some names."""
    return part.metadata["kind"] in (*WHOLE, checks.number, checks.flag, checks.one_of)


def limits_of(part):
    kind = part.metadata["kind"]
    return FIXED.get(kind, part.metadata["limits"])


def may_be_none(part):
    return part.metadata["optional"] or part.default is None


def takes(part, value):
    """Whether a plain setting takes a value, by its declaration."""
    kind, limits = part.metadata["kind"], limits_of(part)
    if value is None:
        return may_be_none(part)
    if kind is checks.flag:
        return isinstance(value, bool)
    if kind is checks.one_of:
        return isinstance(value, str) and value in limits["choices"]
    if isinstance(value, bool) or not isinstance(value, int if kind in WHOLE else int | float):
        return False
    if kind in WHOLE:
        return limits.get("minimum", 0) <= value <= limits.get("maximum", math.inf)
    return (
        math.isfinite(value)
        and limits.get("above", -math.inf) < value
        and limits.get("at_least", -math.inf) <= value <= limits.get("at_most", math.inf)
    )


def takes_text(part, text):
    """Whether a plain setting takes what is typed on the command line."""
    kind, *or_none = part.type.split(" | ")
    if text == "None" and or_none:
        return takes(part, None)
    try:
        read = {"int": int, "float": float, "str": str, "bool": {"True": True}.__getitem__}
        return takes(part, read[kind](text))
    except (KeyError, ValueError):
        return False


def drawn(part):
    """Return a strategy for all that a plain setting takes."""
    kind, limits = part.metadata["kind"], limits_of(part)
    if kind is checks.flag:
        found = st.booleans()
    elif kind is checks.one_of:
        found = st.sampled_from(limits["choices"])
    elif kind in WHOLE:
        found = st.integers(limits.get("minimum", 0), limits["maximum"])
    else:
        low, high = limits.get("above", limits.get("at_least")), limits["at_most"]
        found = st.floats(low, high, exclude_min="above" in limits)
        least = math.floor(low) + 1 if "above" in limits else math.ceil(low)
        if least <= high:
            found |= st.integers(least, math.floor(high))
    return st.none() | found if may_be_none(part) else found
