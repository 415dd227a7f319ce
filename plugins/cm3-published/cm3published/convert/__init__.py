"""`cm3 convert`: Chameleon's weights between Meta's files and Hugging Face's; these, Emu3's,
LlamaGen's and Janus' into models of this framework.

`facts.py` holds a Chameleon's sizes, `names.py` its tensors; `meta.py` and `hugging_face.py` read and
write the two forms, one tensor at a time, `cm3.py` this framework's own; `model.py` is what they have in common.
`emu3.py`, `llamagen.py` and `janus.py` make models of this framework.
"""
