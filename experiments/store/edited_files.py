"""Data and weights that somebody has edited between the plan of a run and a stage that reads them."""

from compressors.errors import UsageError
from experiments.store import keys
from experiments.store.plan import Planner, Stage

READ_FILES = {  # what a section of `Stage.depends` is read from, for who has edited it
    "data": "a data file, or an image,",
    "calibration": "a file of data.train",
    "llm": "the folder of llm.source",
    "tower": "what tower.source names",
    "init": "the trained model that it starts from",
    "teacher": "the teacher",
}


def refuse_edited_files(stage: Stage) -> None:
    """UsageError for a stage that would read other data or weights than when it was planned: its result would
    be taken for that of the old ones."""
    keys.forget_read_files()
    depends = Planner(stage.config).describe_again(stage)
    for section, planned in stage.depends.items():
        if depends.get(section) != planned:
            raise UsageError(
                f"{stage.title}: {READ_FILES.get(section, section)} changed after this run was planned; "
                "start the run again"
            )
