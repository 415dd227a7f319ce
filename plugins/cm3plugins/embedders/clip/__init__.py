"""`clip`: CLIP's two towers, from the files of OpenAI, open_clip and Hugging Face."""
