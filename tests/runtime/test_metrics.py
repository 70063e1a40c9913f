"""The metrics file continues where the checkpoint stands."""

from pathlib import Path

from fllmc.runtime import errors, metrics
from tests.runtime.stored import faults


def test_metrics_resume_where_the_checkpoint_stands(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    with metrics.MetricsWriter(path) as writer:
        for step in range(5):
            writer.write(step, {"loss": 1.0 / (step + 1), "bad": float("nan")})
            assert len(metrics.read_metrics(path)) == step + 1
    with path.open("ab") as file:
        file.write(b'{"step":1,"lo')
    with metrics.MetricsWriter(path, resumed=2) as writer:
        writer.write(3, {"loss": 9})
    records = metrics.read_metrics(path)
    assert [record["step"] for record in records] == [0, 1, 2, 3]
    assert records[3]["loss"] == 9 and records[0]["bad"] is None
    metrics.MetricsWriter(path).close()
    assert metrics.read_metrics(path) == []
    (found,) = faults(lambda: metrics.MetricsWriter(path / "below"))
    assert isinstance(found, errors.MetricsUnusable)
