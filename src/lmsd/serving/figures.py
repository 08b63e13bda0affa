"""What /metrics says, in Prometheus' text format."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64)


@dataclass
class Histogram:
    """Counts of values at most as large as each edge."""

    edges: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0
    number: int = 0

    def __post_init__(self) -> None:
        self.counts = [0] * len(self.edges)

    def add(self, value: float) -> None:
        """Count a value."""
        for place, edge in enumerate(self.edges):
            self.counts[place] += value <= edge
        self.total += value
        self.number += 1

    def lines(self, name: str, labels: str = "") -> Iterator[str]:
        """The rows of a histogram."""
        comma = "," if labels else ""
        for edge, count in zip(self.edges, self.counts, strict=True):
            yield f'{name}_bucket{{{labels}{comma}le="{edge:g}"}} {count}'
        yield f'{name}_bucket{{{labels}{comma}le="+Inf"}} {self.number}'
        braces = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{braces} {self.total:.6f}"
        yield f"{name}_count{braces} {self.number}"


class Figures:
    """Counters of the service; the routes are a fixed set, so their number never grows."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.events: Counter[str] = Counter()
        self.latency: dict[str, Histogram] = {}
        self.batches, self.drawing = Histogram(IMAGES), Histogram(SECONDS)
        self.begun = time.time()

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests[route, status] += 1
        self.latency.setdefault(route, Histogram(SECONDS)).add(seconds)

    def drawn(self, images: int, seconds: float) -> None:
        """Count a batch."""
        self.batches.add(images)
        self.drawing.add(seconds)

    def text(self, now: Mapping[str, float], model: str) -> str:
        """All of it; now: gauges by name."""
        return "\n".join(self._lines(now, model)) + "\n"

    def _lines(self, now: Mapping[str, float], model: str) -> Iterator[str]:
        yield from _head("lmsd_requests_total", "counter", "Answered requests.")
        for (route, status), count in sorted(self.requests.items()):
            yield f'lmsd_requests_total{{route="{route}",status="{status}"}} {count}'
        yield from _head("lmsd_request_seconds", "histogram", "From a request to the end of its answer.")
        for route, histogram in sorted(self.latency.items()):
            yield from histogram.lines("lmsd_request_seconds", f'route="{route}"')
        yield from _head("lmsd_batch_images", "histogram", "Images drawn at once.")
        yield from self.batches.lines("lmsd_batch_images")
        yield from _head("lmsd_batch_seconds", "histogram", "Time of a batch.")
        yield from self.drawing.lines("lmsd_batch_seconds")
        for name in ("votes", "pairs", "model_changes", "model_change_failures", "refused_full"):
            yield from _head(f"lmsd_{name}_total", "counter", f"{name.replace('_', ' ').capitalize()}.")
            yield f"lmsd_{name}_total {self.events[name]}"
        for name, value in now.items():
            yield from _head(f"lmsd_{name}", "gauge", f"{name.replace('_', ' ').capitalize()}, now.")
            yield f"lmsd_{name} {float(value)!r}"
        yield from _head("lmsd_model_info", "gauge", "The model that draws.")
        shown = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        yield f'lmsd_model_info{{model="{shown}"}} 1'


def _head(name: str, kind: str, said: str) -> tuple[str, str]:
    return f"# HELP {name} {said}", f"# TYPE {name} {kind}"
