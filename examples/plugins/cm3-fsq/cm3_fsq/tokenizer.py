"""Network, codes, file, training. B pictures, C channels, H W pixels, Y X code grid, D digits."""

import hashlib
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from cm3_fsq import FILE
from cm3core.errors import CheckpointError
from cm3core.files import atomic_path
from cm3core.interfaces import ImageTokenizer

BUNDLED = Path(__file__).parent / "emoji64.safetensors"
BATCH_SIZE, LEARNING_RATE = 16, 2e-3


class Block(nn.Module):
    """x + convolutions. It never sees the whole picture: equal surroundings give equal codes."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x_BCYX):
        return x_BCYX + self.second(nn.functional.silu(self.first(nn.functional.silu(x_BCYX))))


class FSQNetwork(nn.Module):
    """Squares of pixels -> D digits -> squares of pixels. Pixels are in -1..1."""

    def __init__(self, config):
        super().__init__()
        width, side, levels_D = config.channels, config.patch_size, torch.tensor(config.levels)
        encoder, decoder = ([Block(width) for _ in range(config.num_blocks)] for _ in range(2))
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(side),
            nn.Conv2d(3 * side**2, width, 1),
            *encoder,
            nn.Conv2d(width, len(levels_D), 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(len(levels_D), width, 1),
            *decoder,
            nn.Conv2d(width, 3 * side**2, 1),
            nn.PixelShuffle(side),
        )
        self.levels_D11, self.bases_D11 = (
            levels_D[:, None, None],
            (levels_D.cumprod(0) // levels_D)[:, None, None],
        )

    def digits(self, pixels_BCHW):
        """Integers 0..level-1, [B, D, Y, X], with a straight-through gradient."""
        real_BDYX = self.levels_D11 * self.encoder(pixels_BCHW).sigmoid() - 0.5
        whole_BDYX = real_BDYX.round().clamp(min=0).minimum(self.levels_D11 - 1)
        return real_BDYX + (whole_BDYX - real_BDYX).detach()

    def centred(self, digits_BDYX):
        """Digits in -1..1, as the decoder sees them."""
        return 2 * digits_BDYX / (self.levels_D11 - 1) - 1

    def code(self, digits_BDYX):
        """The number [B, Y, X] with these digits in mixed radix, least significant first."""
        return (digits_BDYX.round().long() * self.bases_D11).sum(1)

    def digits_of(self, code_BYX):
        """The digits [B, D, Y, X] of a number."""
        return code_BYX[:, None] // self.bases_D11 % self.levels_D11


class FSQTokenizer(ImageTokenizer):
    """Pixels <-> codes, one picture at a time, so that codes do not depend on the batch."""

    def __init__(self, config, network):
        self.config, self.network = config, network.eval().requires_grad_(False)

    image_size = property(lambda self: self.config.image_size)
    grid = property(lambda self: self.config.grid)
    codebook_size = property(lambda self: self.config.codebook_size)

    @property
    def fingerprint(self):
        sizes = (
            f"{self.config.resolution} {self.config.patch_size} {list(self.config.levels)}".encode()
        )
        return hashlib.sha256(
            sizes + b"".join(each.numpy().tobytes() for each in self.network.state_dict().values())
        ).hexdigest()

    def _encode(self, pixels_NHWC):
        codes = [
            self.network.code(self.network.digits(to_input(part[None]))).flatten()
            for part in pixels_NHWC
        ]
        return np.array(codes, np.int32).reshape(-1, math.prod(self.grid))

    def _decode(self, codes_Nc):
        centred = [
            self.network.centred(self.network.digits_of(torch.tensor(part).view(1, *self.grid)))
            for part in codes_Nc
        ]
        pictures = [
            ((self.network.decoder(part)[0] + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0)
            for part in centred
        ]
        return np.array(pictures, np.uint8).reshape(-1, *self.image_size, 3)

    def codebook(self):
        return self.network.centred(
            self.network.digits_of(torch.arange(self.codebook_size).view(-1, 1, 1))
        )[:, :, 0, 0]

    def save(self, folder):
        with atomic_path(folder / FILE) as temporary:
            save_file(
                {
                    name: each.half().contiguous()
                    for name, each in self.network.state_dict().items()
                },
                temporary,
            )


def to_input(pixels_BHWC):
    """Float32 [B, 3, H, W] in -1..1."""
    return torch.tensor(pixels_BHWC).permute(0, 3, 1, 2).float() / 127.5 - 1


def read(config, path):
    """The tokenizer of a file; raises `CheckpointError` if the file is not of this network."""
    config.check()
    network = FSQNetwork(config)
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            str(path),
            f"holds no weights of this network ({str(error).splitlines()[0]})",
            "give a file of `cm3 tokenizer train-image`, and the sizes that it was trained with",
        ) from error
    return FSQTokenizer(config, network)


def train(config, images_NHWC, out_dir, *, minutes=None, steps=None, show_progress=True, **_):
    """Absolute and squared error; cosine learning rate. An interrupted run starts over."""
    torch.manual_seed(0)
    rng, network, started, step, progress = (
        np.random.default_rng(0),
        FSQNetwork(config),
        time.monotonic(),
        0,
        0.0,
    )
    optimizer = torch.optim.AdamW(
        network.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    while progress < 1:
        pixels_BCHW = to_input(images_NHWC[rng.integers(len(images_NHWC), size=BATCH_SIZE)])
        error_BCHW = network.decoder(network.centred(network.digits(pixels_BCHW))) - pixels_BCHW
        loss = error_BCHW.abs().mean() + 2 * error_BCHW.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(
            (step + 1) / 50, (1 + math.cos(math.pi * progress)) / 2
        )
        optimizer.step()
        step += 1
        progress = step / steps if steps else (time.monotonic() - started) / 60 / minutes
        if show_progress and (step % 50 == 0 or progress >= 1):
            print(f"step {step}, {progress:.0%}, loss {loss.item():.4f}", file=sys.stderr)
    FSQTokenizer(config, network).save(out_dir)
    return out_dir / FILE
