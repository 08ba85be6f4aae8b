"""benchmarks: each runs tiny here, so that none rots; nothing is timed."""

import json

import pytest

from benchmarks import registry
from sandbox.plan import Ports
from tests.ports import free_ports

TINY = 0.02


@pytest.mark.parametrize("name", registry.names())
async def test_each_benchmark_prints_its_line(name, monkeypatch):
    # Those with a stack begin it seconds after they have looked for ports.
    monkeypatch.setattr(Ports, "free", free_ports)

    result = await registry.load(name)(TINY)

    line = json.loads(result.line())
    assert list(line) == ["name", "value", "unit", "baseline", "ratio", "machine", "commit"]
    assert line["name"] == name
    assert line["value"] > 0
    assert line["ratio"] > 0
