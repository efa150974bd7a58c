"""Stage functions that compute nothing but leave what real ones do; a configuration that needs no asset."""
import json
import sys
import time
from pathlib import Path

from experiments.cells import Cell, make_cells
from experiments.config import Config
from experiments.overrides import parse
from experiments.plan import Stage, plan

SOURCES = {"tower.source": ["hub/tower"], "llm.source": ["hub/llm"]}


def cells(*overrides: str) -> list[Cell]:
    """Cells of the tiny preset with sources that are only names."""
    return make_cells(SOURCES | parse(list(overrides)))


def config(*overrides: str) -> Config:
    (cell,) = cells(*overrides)
    return cell.config


def stages(*overrides: str) -> dict[str, Stage]:
    """The stages of one cell by kind; features by "features test" and so on."""
    found = plan(config(*overrides)).ancestors().values()
    return {" ".join([stage.kind, *stage.roles[:1]]): stage for stage in found}


QUESTIONS = [("Is there a fox?", "yes", "presence"), ("Is there an owl?", "no", "presence"),
             ("Is there a cat?", "yes", "presence"), ("What is it?", "a fox", "recognition")]


def write_llava(path: Path, images: bool = False, samples: int = 2) -> Path:
    """A small LLaVA file; with `images`, red squares beside it."""
    records = []
    for i in range(samples):
        turns = [{"from": who, "value": text} for question, answer, _ in QUESTIONS
                 for who, text in (("human", question), ("gpt", answer))]
        records.append({"id": str(i), "conversations": turns, "families": [f for *_, f in QUESTIONS]})
        if images:
            from PIL import Image

            Image.new("RGB", (48, 48), "red").save(path.parent / f"{i}.png")
            records[-1]["image"] = f"{i}.png"
    path.write_text(json.dumps(records))
    return path


def fake_runner(log: Path, slow: float = 0.0):
    """A runner whose stages append their kind to `log`; one takes `slow` seconds in ten steps resuming."""

    def run(stage_config: Config, inputs: dict, out: Path, report, roles=(), kind: str = "") -> None:
        with open(log, "a") as file:
            file.write(f"{' '.join([kind, *roles[:1]])}\n")
        progress = out / "progress.txt"
        done = int(progress.read_text()) if progress.exists() else 0
        report.steps(10, done=done)
        for step in range(done, 10):
            time.sleep(slow / 10)
            progress.write_text(str(step + 1))
            report.advance(loss=1.0)
        (out / "started_at.txt").write_text(str(done))
        if kind == "data":
            folder = out / stage_config.data.dataset
            folder.mkdir(exist_ok=True)
            write_llava(folder / "test.json")
        if kind == "evaluate":
            share = 0.5 + 0.125 * (stage_config.seed % 4)
            (out / "metrics.json").write_text(json.dumps({
                "overall": share, "families": {"presence": share, "recognition": 1.0}, "n": 8,
                "counts": {"presence": 6, "recognition": 2},
                "efficiency": {"visual_tokens": 16, "query_tokens": 9, "parameters_added": 1}}))
            (out / "predictions.jsonl").write_text("{}\n")
        (out / "inputs.json").write_text(json.dumps(sorted(inputs)))

    def runner(kind: str):
        return lambda c, i, o, r, roles=(): run(c, i, o, r, roles, kind)

    return runner


def read_log(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


if __name__ == "__main__":  # fakes.py ROOT LOG SLOW OVERRIDES...: a process that a test can kill
    from experiments.stages import Store

    root, log_path, seconds, *given = sys.argv[1:]
    for each in cells(*given):
        Store(Path(root), runner=fake_runner(Path(log_path), float(seconds))).compute(plan(each.config))
