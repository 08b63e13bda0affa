"""The benchmarks of reliability in their short form: what they promise holds for a small n, too."""

import os
from collections.abc import Iterator

import hostile
import kills
import order
import payloads
import pytest
import saves
from harness import workplace


@pytest.fixture(autouse=True)
def _place(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("LMSD_CACHE", "TRAP"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    with workplace():
        yield


def test_a_killed_run_is_the_run_that_was_not() -> None:
    """Three kills: at a random time, in a save, in an evaluation."""
    assert kills.sweep(3)[:2] == (3, [])


def test_no_kill_or_resize_changes_the_order() -> None:
    assert order.elastic(40) == (40, [])
    assert order.epochs() == (3, [])


def test_no_kill_or_damage_makes_checkpoints_unusable() -> None:
    assert saves.kills(8) == (8, [])
    assert saves.damages(10) == (30, [])
    assert saves.full(1) == (1, [])


def test_no_kind_of_shard_gets_through() -> None:
    done, failures = hostile.shards()
    assert failures == []
    assert done >= 25
    assert hostile.flips(40) == (40, [])


def test_no_payload_runs() -> None:
    done, failures = payloads.sweep()
    assert failures == []
    assert done >= 30
