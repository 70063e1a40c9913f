"""Pipeline schedules against the published zero-bubble ones (arXiv 2401.10241, Tables 5 and 9).

    python bench/pipeline_schedules.py [--effort 600000]
    python bench/pipeline_schedules.py --exact [--ranks 8] [--micros 24]

For each model and number of micro-batches: the bubble of 1F1B and of the automatic order within
1, 1.5 and 2 times the activations that 1F1B keeps, beside the published rates, to
`bench/results/pipeline_schedules.json`. With `--exact`, what the exact search makes of the
automatic order within 1, 1.25, 1.5 and 2 times, and the bubble that it proves no order to be below,
to `bench/results/exact_schedules.json`. Counted, not timed: the same on any machine.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from fllmc.passes.schedule.costs import Costs, uniform
from fllmc.passes.schedule.exact import exact
from fllmc.passes.schedule.families import FAMILIES
from fllmc.passes.schedule.greedy import automatic
from fllmc.passes.schedule.simulate import simulate

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data" / "zero_bubble_schedules.csv"
RESULTS = ROOT / "bench" / "results"
LIMITS = {1.0: "bubble_zb_1p", 1.5: "", 2.0: "bubble_zb_2p"}
EXACT_LIMITS = (1.0, 1.25, 1.5, 2.0)


def costs_of(row: dict[str, str]) -> Costs:
    """The costs of one row: times in ms; a micro-batch keeps 1."""
    names = ("forward", "backward_input", "backward_weight", "comm")
    forward, first, second, transfer = (float(row[f"t_{name}_ms"]) for name in names)
    hidden, heads, seq = (int(row[name]) for name in ("hidden", "heads", "seq"))
    late = 32 * hidden / (34 * hidden + 5 * heads * seq)
    return uniform(int(row["stages"]), forward, first, second, transfer, late)


def proofs(row: dict[str, str], effort: int) -> dict[str, object]:
    """What is proven of one row."""
    stages, micros, costs = int(row["stages"]), int(row["microbatches"]), costs_of(row)
    found: dict[str, object] = {"model": row["model"], "ranks": stages, "microbatches": micros}
    for limit in EXACT_LIMITS:
        limits = [limit * stages] * stages
        start = automatic(tuple(range(stages)), micros, costs, limits, effort)
        assert start is not None
        best = exact(start, costs, limits)
        told = {"auto": start.bubble, "exact": best.bubble, "bound": best.bound}
        found[f"at {limit:g}"] = {name: round(value, 4) for name, value in told.items()}
    return found


def rates(row: dict[str, str], effort: int) -> dict[str, object]:
    """The bubbles of one row."""
    stages, micros, costs = int(row["stages"]), int(row["microbatches"]), costs_of(row)
    plain = simulate(FAMILIES["1f1b"](stages, micros, 1), costs).bubble
    found: dict[str, object] = {
        "model": row["model"],
        "ranks": stages,
        "microbatches": micros,
        "1f1b": [round(plain, 4), float(row["bubble_1f1b"])],
    }
    for limit, column in LIMITS.items():
        limits = [limit * stages] * stages
        made = automatic(tuple(range(stages)), micros, costs, limits, effort)
        assert made is not None
        published = float(row[column]) if column else None
        found[f"auto at {limit:g}"] = [round(made.bubble, 4), published]
    return found


def main() -> None:
    """Compute, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--effort", type=int, default=600_000)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--ranks", type=int, default=0, help="rows with so many ranks alone")
    parser.add_argument("--micros", type=int, default=0, help="rows with so many micro-batches")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with DATA.open(newline="") as file:
        rows = list(csv.DictReader(file))
    results: list[dict[str, object]] = []
    for row in rows:
        fits = args.ranks in (0, int(row["stages"]))
        if fits and args.micros in (0, int(row["microbatches"])):
            results.append((proofs if args.exact else rates)(row, args.effort))
            print(json.dumps(results[-1]), flush=True)
    name = "exact_schedules.json" if args.exact else "pipeline_schedules.json"
    (args.output or RESULTS / name).write_text(
        json.dumps({"effort": args.effort, "rates": results}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
