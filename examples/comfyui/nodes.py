"""The nodes. ComfyUI's pictures are float tensors [batch, height, width, 3] from 0 to 1, its masks
[batch, height, width], 1 where something is marked."""

from __future__ import annotations

import base64
import io
import json
import os
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import torch
from PIL import Image

SERVER = "http://127.0.0.1:8000"
#: ComfyUI's widgets hold seeds of 64 bits, the server's have 63.
MAX_SEED = 2**63 - 1


def ask(server: str, path: str, body: dict[str, Any]) -> torch.Tensor:
    """The pictures of an answer, as ComfyUI has them; raises RuntimeError with the server's message."""
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("CM3_SERVE_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(
        server.rstrip("/") + path, json.dumps(body).encode(), headers, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            data = json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(json.load(error)["error"]["message"]) from None
    except urllib.error.URLError as error:
        raise RuntimeError(
            f"no server answers at {server} ({error.reason}); start cm3 serve"
        ) from None
    pictures = [Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))) for one in data]
    stacked = np.stack([np.asarray(one.convert("RGB"), np.float32) / 255 for one in pictures])
    return torch.from_numpy(stacked)


def data_url(pixels: np.ndarray[Any, Any]) -> dict[str, str]:
    """A picture as requests hold it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"image_url": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()}


class Draw:
    """Draws pictures for a prompt."""

    CATEGORY, FUNCTION, RETURN_TYPES = "cm3leon", "draw", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "prompt": ("STRING", {"multiline": True}),
                "number": ("INT", {"default": 1, "min": 1, "max": 10}),
                "seed": ("INT", {"default": 0, "min": 0, "max": MAX_SEED}),
            },
            "optional": {
                "guidance_scale": (
                    "FLOAT",
                    {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.1},
                ),
                "candidates": ("INT", {"default": 0, "min": 0, "max": 16}),
                "server": ("STRING", {"default": SERVER}),
            },
        }

    def draw(
        self,
        prompt: str,
        number: int,
        seed: int,
        guidance_scale: float = 0.0,
        candidates: int = 0,
        server: str = SERVER,
    ) -> tuple[torch.Tensor]:
        """0 leaves guidance and candidates to the model's recipe."""
        body: dict[str, Any] = {"prompt": prompt, "n": number, "seed": seed}
        if guidance_scale:
            body["guidance_scale"] = guidance_scale
        if candidates:
            body["candidates"] = candidates
        return (ask(server, "/v1/images/generations", body),)


class Fill:
    """Fills the masked part of pictures."""

    CATEGORY, FUNCTION, RETURN_TYPES = "cm3leon", "fill", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "mask": ("MASK",),
                "prompt": ("STRING", {"multiline": True}),
                "seed": ("INT", {"default": 0, "min": 0, "max": MAX_SEED}),
            },
            "optional": {"server": ("STRING", {"default": SERVER})},
        }

    def fill(
        self, image: torch.Tensor, mask: torch.Tensor, prompt: str, seed: int, server: str = SERVER
    ) -> tuple[torch.Tensor]:
        """Each picture of the batch, with its own mask or the only one. Without a prompt the model
        describes the picture itself."""
        filled = []
        for place, one in enumerate(image):
            pixels = (one.clamp(0, 1) * 255).round().byte().cpu().numpy()
            marked = mask[place if len(mask) > 1 else 0].cpu().numpy() > 0.5
            alpha = np.where(marked, 0, 255).astype(np.uint8)
            layers = np.dstack([pixels[:, :, :3], alpha])
            body: dict[str, Any] = {
                "images": [data_url(pixels)],
                "mask": data_url(layers),
                "seed": seed,
            }
            if prompt.strip():
                body["prompt"] = prompt
            filled.append(ask(server, "/v1/images/edits", body))
        return (torch.cat(filled),)


NODE_CLASS_MAPPINGS = {"Cm3Draw": Draw, "Cm3Fill": Fill}
NODE_DISPLAY_NAME_MAPPINGS = {"Cm3Draw": "cm3 Draw", "Cm3Fill": "cm3 Fill"}
