"""`cm3 convert`: Chameleon's weights between Meta's format and Hugging Face's; Chameleon's, Emu3's, Emu3.5's, GLM-Image's,
LlamaGen's and Janus' weights into models of this framework; models with the decoder `cm3leon` to OPT and back.

`facts.py` holds a Chameleon's sizes, `names.py` its tensors; `meta.py` and `hugging_face.py` read and write the two
formats, one tensor at a time, `cm3.py` this framework's own; `model.py` is shared by them.
`emu3.py`, `emu3_5.py`, `glm_image.py`, `llamagen.py`, `lumina2.py` and `janus.py` create models of this framework, and
`back.py` some publishers' files of these; `opt.py` writes and reads OPTs, `opt_text.py` their tokenizer and README.
"""
