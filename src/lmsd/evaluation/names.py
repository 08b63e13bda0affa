"""What a score is called: kind[extractor@hash], or bare where the published protocol was kept."""

from lmsd.evaluation.catalog import PROTOCOL
from lmsd.evaluation.scores import Scalar
from lmsd.features.base import FeatureExtractor


def published(extractor: FeatureExtractor, split: Scalar, n: int) -> frozenset[str]:
    """Which bare names may be used: the reference weights on as many images as published figures stand on."""
    if not extractor.reference or n < PROTOCOL:
        return frozenset()
    return frozenset({"fid", "is"} if split == "train" else {"is"})


def full_name(kind: str, extractor: str, bare: frozenset[str]) -> str:
    """fd[inception-v3@6726], or `fid` where the protocol is the published one."""
    known = {"fd": "fid", "class_score": "is"}.get(kind)
    return known if known in bare else f"{kind}[{extractor}]"
