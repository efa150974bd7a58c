"""The project's tables, one YAML file each.

`FOLDER` is what the entry-point group `slothkit.tables` offers to the sweep, which imports this module to
list them: nothing else is imported here.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
