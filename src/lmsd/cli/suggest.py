"""Did you mean: the nearest names to a mistyped one."""

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str:
    """A clause such as "; did you mean optim.generator.lr, optim.discriminator.lr?", or nothing."""
    names = list(names)
    leaf = name.rsplit(".", 1)[-1]
    found = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    found += [other for other in names if other.rsplit(".", 1)[-1] == leaf and other not in found]
    if not found:
        leaves = {other.rsplit(".", 1)[-1]: other for other in names}
        found = [leaves[key] for key in difflib.get_close_matches(leaf, leaves, n=2, cutoff=0.6)]
    return f"; did you mean {', '.join(found[:3])}?" if found else ""
