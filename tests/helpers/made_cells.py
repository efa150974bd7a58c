"""Finished cells without training: every stage is there, evaluations hold answers right at a known rate."""

import hashlib
import json
from pathlib import Path

import numpy as np

from experiments.config import tables
from experiments.config.metric_names import is_exact
from experiments.store.plan import plan_stages
from experiments.store.results import publish_cell
from experiments.store.store import Store

FAMILIES = {"attribute": ["red", "blue"], "presence": ["yes", "no"], "reading": ["fox", "owl", "cat"]}
# accuracy by what a configuration says, added up
RATES = {"identity": 0.9, "avg_pool": 0.55, "sap": 0.62, "random": 0.5, "downsample": 0.55, "none": 0.3}
TOKENS = {"identity": 144, "none": 0}


def questions(pictures: int, each: int = 4) -> list[dict]:
    """Without predictions; answers and families in turn."""
    rows = []
    for i in range(pictures * each):
        family = list(FAMILIES)[i % len(FAMILIES)]
        answers = FAMILIES[family]
        rows.append(
            {
                "id": f"test-{i // each:05d}#{i % each}",
                "family": family,
                "question": "<image>\nwhat ?",
                "answer": answers[i // 7 % len(answers)],
            }
        )
    return rows


def rate(config) -> float:
    """Of right answers, in truth."""
    knobs = config.knobs("embq")
    gain = 0.08 if config.query_module else 0.0
    gain -= 0.2 * (knobs.get("fusion") == "replace")
    return min(0.95, RATES.get(config.compressor_name, 0.58) + gain)


def runner(pictures: int):
    """For a Store: stages that leave next to nothing, and evaluations."""
    asked = questions(pictures)

    def evaluate(config, out: Path) -> None:
        picture = np.arange(len(asked)) // 4
        hard = np.random.default_rng(0).normal(0, 0.15, pictures)[picture]
        name = f"{config.compressor} {sorted(config.parts.items())} {config.seed}"
        own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
        right = np.random.default_rng(own).random(len(asked)) < rate(config) + hard
        lines = [
            json.dumps({**row, "prediction": row["answer"] if yes else "?", "correct": bool(yes)})
            for row, yes in zip(asked, right)
        ]
        noted = {}
        if not is_exact(config.evaluate.metric):  # wrong answers are worth a little
            right = np.where(right, 1.0, 0.1)
            lines = [f'{line[:-1]}, "score": {score}}}' for line, score in zip(lines, right)]
            noted["chance"] = {"overall": 0.5, "families": {}, "counts": {}, "n": len(asked)}
        (out / "predictions.jsonl").write_text("".join(f"{line}\n" for line in lines))
        of = {f: right[[row["family"] == f for row in asked]] for f in FAMILIES}
        queries = config.knobs("embq").get("num_queries", 0) if config.query_module else 0
        efficiency = {
            "visual_tokens": TOKENS.get(config.compressor_name, 16),
            "query_tokens": queries,
            "parameters_added": 0 if config.blind else 1000,
        }
        (out / "metrics.json").write_text(
            json.dumps(
                {
                    "overall": float(right.mean()),
                    "families": {f: float(r.mean()) for f, r in of.items()},
                    "counts": {f: len(r) for f, r in of.items()},
                    "n": len(asked),
                    "efficiency": efficiency,
                    **noted,
                }
            )
        )

    def of_kind(kind: str):
        def run(config, inputs, out, report, roles=()) -> None:  # noqa: ARG001  a runner's arguments
            (out / "done.txt").write_text(kind)
            if kind == "evaluate":
                evaluate(config, out)

        return run

    return of_kind


def fill(root: Path, names: list[str], skip=None, pictures: int = 60, **axes: str) -> Store:
    """Compute and publish the cells of tables below `root`, but those that `skip`(label, seed)."""
    store = Store(root, runner=runner(pictures))
    given = {key: value.split(",") for key, value in axes.items()}
    with store.open_root():
        for table in tables.load_table_files(names, {"out": [str(root)], **given}):
            for row in table.rows:
                for cell in row.cells:
                    if not (skip and skip(row.label, cell.config.seed)):
                        stage = plan_stages(cell.config)
                        store.compute(stage)
                        publish_cell(cell, stage, store)
    return store
