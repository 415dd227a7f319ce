"""`cm3 convert`: Chameleon's weights between Meta's files and Hugging Face's; these, Emu3's,
LlamaGen's and Janus' into models of this framework.

`facts.py` holds the model's sizes, `names.py` its tensors; `meta.py` and `hugging_face.py` read and
write the two forms, one tensor at a time; `cm3.py`, `emu3.py` and `llamagen.py` make models of this
framework, `from_cm3.py` reads one; `janus.py` is apart from them.
"""
