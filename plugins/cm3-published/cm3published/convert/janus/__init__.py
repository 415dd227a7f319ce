"""Janus, in DeepSeek's own form or transformers', -> a model of this framework that draws pictures.

`facts.py` holds its sizes, `names.py` its tensors, in both forms; `reading.py` opens a folder, `writing.py`
makes the model. The network by which pictures are read (SigLIP) is left out: there is none here.
"""

from cm3published.convert.janus.reading import LICENCE, JanusFiles, is_janus, open_janus
from cm3published.convert.janus.writing import write_janus

__all__ = ["LICENCE", "JanusFiles", "is_janus", "open_janus", "write_janus"]
