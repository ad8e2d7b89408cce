import json

import pytest

from seodang.data.prepared import store


@pytest.fixture
def small_shards(monkeypatch):
    """Three records a shard."""
    monkeypatch.setattr(store, "shard_records", lambda number: 3)


@pytest.fixture
def write(tmp_path):
    """`write(records, name)`: a file of JSON Lines."""

    def lines(records, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
        return str(path)

    return lines
