"""`cm3 convert`: Chameleon's weights between Meta's files and Hugging Face's, and Janus into our form.

`facts.py` holds the model's sizes, `names.py` its tensors; `meta.py` and `hugging_face.py` read and
write the two forms, one tensor at a time; `janus.py` is apart from them.
"""
