"""A page by Gradio over a running `cm3 serve`, with OpenAI's client.

pip install gradio openai
cm3 serve
python examples/gradio_app.py
"""

import base64
import io
import os

import gradio
import openai
from PIL import Image

URL = os.environ.get("CM3_SERVE_URL", "http://127.0.0.1:8000")
client = openai.OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("CM3_SERVE_TOKEN", "unused"))


def draw(prompt, seed):
    events = client.images.generate(
        prompt=prompt, stream=True, partial_images=3, extra_body={"seed": int(seed)}
    )
    for event in events:  # pictures of the rows that are finished, then the whole
        yield Image.open(io.BytesIO(base64.b64decode(event.b64_json)))


if __name__ == "__main__":
    inputs = [
        gradio.Textbox(label="What should it show?"),
        gradio.Number(1, label="Seed", precision=0),
    ]
    gradio.Interface(draw, inputs, gradio.Image(label="Picture"), title="cm3leon").launch()
