"""Sphinx's configuration: python -m sphinx -W ablations/site build/site."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the checkout that the pages belong to, whatever is installed
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # of the notebooks

import slothkit  # noqa: E402  behind the path

project = "SlothKit"
release = version = slothkit.__version__
copyright = "the SlothKit authors; Apache-2.0"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "ablations.site.weaving", "ablations.site.docstrings"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb", ".rst": "restructuredtext"}
exclude_patterns = ["**/.ipynb_checkpoints", "drawings"]

myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 300  # seconds a cell
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars and advice of libraries

autodoc_inherit_docstrings = False  # PyTorch's and transformers' own are not written for Sphinx
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
add_module_names = False
python_maximum_signature_line_length = 100
toc_object_entries = False

html_theme = "furo"
html_title = "SlothKit"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
