"""GRPO on pictures: a group of candidates of each prompt, a reward for each, and a step towards the
better ones.

    python examples/grpo/grpo.py --out runs/grpo                    `bundled:emoji64`, reward `likeness`
    python examples/grpo/grpo.py --reward my_module:my_reward       your own, see `Reward`

Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300): the advantage of a candidate
is its reward less the mean of its group, over their standard deviation; PPO's clipped ratio of
probabilities, token by token, under the policy that sampled them; a penalty for leaving the model
that was started from. Legend: B candidates, P tokens of each.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import cm3core
from cm3apps.evaluation.icons.ranking import blurred
from cm3core.document import Codes, Document, Image, ImageHole, PixelArray, Text
from cm3core.errors import CM3Error, RecipeError
from cm3core.files import make_folder, write_text
from cm3core.images import fit, save_png
from cm3core.plugins import load_registry
from cm3run.checkpoint import export_model, find_model
from cm3run.generation import Rollout, recorded
from cm3run.sheets import grid

Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Asked:
    """A document of the model's data set: its text, and its picture, uint8 [height, width, 3]."""

    prompt: str
    picture: PixelArray


#: Pictures, uint8 [height, width, 3], and what was asked for -> a reward each, the more the better.
Reward: TypeAlias = Callable[[Sequence[PixelArray], Sequence[Asked]], "Sequence[float] | Floats"]


def likeness(pictures: Sequence[PixelArray], asked: Sequence[Asked]) -> Floats:
    """Minus the distance to the real picture, both blurred and 32 x 32: the distance by which the
    experiments' judge ranks."""
    real_BD = blurred(np.stack([one.picture for one in asked]))
    return -np.sqrt(((blurred(np.stack(pictures)) - real_BD) ** 2).sum(1))


def redness(pictures: Sequence[PixelArray], asked: Sequence[Asked]) -> Floats:
    """How much more red than green and blue there is, -1 to 1: whatever was asked for."""
    pixels_BHWC = np.stack(pictures).astype(np.float32) / 255
    return (pixels_BHWC[..., 0] - pixels_BHWC[..., 1:].mean(-1)).mean((1, 2))


REWARDS: dict[str, Reward] = {"likeness": likeness, "redness": redness}


def find_reward(name: str) -> Reward:
    """A reward of `REWARDS`, or MODULE:FUNCTION."""
    if name in REWARDS:
        return REWARDS[name]
    module, _, function = name.partition(":")
    try:
        found: Reward = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(REWARDS)
        raise RecipeError(
            f"--reward {name}", f"can't be imported ({error})", f"use {known}, or MODULE:FUNCTION"
        ) from error
    return found


def documents_of(model: cm3core.Model) -> list[Asked]:
    """The documents of the model's data set that have a text and a picture."""
    found, source = [], model.components.source
    for index in range(len(source)):
        segments = source.document(index)
        text = next((one.text for one in segments if isinstance(one, Text)), None)
        picture = next((one for one in segments if isinstance(one, Image)), None)
        if text is not None and picture is not None:
            found.append(Asked(text, fit(picture.load(), model.image_size)))
    return found


class GRPO:
    """The model, whose decoder is trained in place, and the policy that it is kept near."""

    def __init__(self, model: cm3core.Model, reward: Reward, options: argparse.Namespace) -> None:
        self.model, self.reward, self.options = model, reward, options
        self.policy = model.policy()
        self.start = copy.copy(self.policy)
        self.start.decoder = copy.deepcopy(self.policy.decoder)
        weights = model.components.decoder.module.parameters()
        self.optimizer = torch.optim.AdamW(weights, lr=options.learning_rate, weight_decay=0.0)

    def sample(self, asked: Sequence[Asked], num: int, seed: int) -> tuple[list[Rollout], Floats]:
        """`num` pictures of each, and their rewards."""
        scale = self.options.guidance_scale
        keys: dict[str, Any] = {} if scale is None else {"guidance_scale": scale}
        documents: list[Document] = [(Text(one.prompt), ImageHole()) for one in asked]
        requests = self.model.requests(
            documents,
            seed=seed,
            sampler=self.options.sampler,
            truncate=True,
            temperature=self.options.temperature,
            **keys,
        )
        rollouts = self.policy.sample(requests, num)
        rewards = self.reward(self.pictures(rollouts), [one for one in asked for _ in range(num)])
        return rollouts, np.asarray(rewards, np.float32)

    def pictures(self, rollouts: Sequence[Rollout]) -> list[PixelArray]:
        """The pictures of rollouts."""
        codes = [segment for one in rollouts for segment in one.document]
        return self.model.decode([one for one in codes if isinstance(one, Codes)])

    def step(self, asked: Sequence[Asked], seed: int) -> dict[str, float]:
        """Sample groups, and update the weights towards what was better than its group."""
        rollouts, rewards = self.sample(asked, self.options.group, seed)
        groups = torch.from_numpy(rewards).view(len(asked), self.options.group)
        above = groups - groups.mean(1, keepdim=True)
        advantage_B1 = (above / (groups.std(1, keepdim=True) + 1e-4)).view(-1, 1)
        size = self.options.part
        parts = [slice(place, place + size) for place in range(0, len(rollouts), size)]
        with torch.no_grad():
            start = [self.start.score(rollouts[part]).raw_BP for part in parts]
        for _ in range(self.options.updates):
            self.optimizer.zero_grad()
            totals = {"kl": 0.0, "clipped": 0.0}
            for part, start_BP in zip(parts, start, strict=True):
                loss, found = self.loss(rollouts[part], advantage_B1[part], start_BP)
                share = len(rollouts[part]) / len(rollouts)
                (share * loss).backward()
                for name in totals:
                    totals[name] += share * float(found[name])
            torch.nn.utils.clip_grad_norm_(self.policy.decoder.module.parameters(), 1.0)
            self.optimizer.step()
        return {"reward": float(groups.mean()), "group_std": float(groups.std(1).mean()), **totals}

    def loss(
        self, rollouts: Sequence[Rollout], advantage_B1: Tensor, start_BP: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's clipped loss of some rollouts, with the penalty, and what to report."""
        old, new = recorded(rollouts, start_BP.device), self.policy.score(rollouts)
        ratio_BP, clip = (new.policy_BP - old.policy_BP).exp(), self.options.clip
        advantage_B1 = advantage_B1.to(ratio_BP)
        gain_BP = torch.minimum(
            ratio_BP * advantage_B1, ratio_BP.clamp(1 - clip, 1 + clip) * advantage_B1
        )
        # an estimate that is never negative: Schulman 2020, "Approximating KL divergence", k3
        change_BP = start_BP - new.raw_BP
        kl_BP = change_BP.exp() - change_BP - 1
        per_token_BP = torch.where(new.mask_BP, self.options.kl * kl_BP - gain_BP, 0.0)
        loss = (per_token_BP.sum(1) / new.num_tokens_B).mean()
        clipped_BP = ((ratio_BP - 1).abs() > clip).float()
        means = (value_BP[new.mask_BP].mean().detach() for value_BP in (kl_BP, clipped_BP))
        return loss, dict(zip(("kl", "clipped"), means, strict=True))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", default="bundled:emoji64", help="a run's folder, or PLUGIN:NAME")
    add("--out", default="runs/grpo", help="folder of the curve, pictures and the tuned model")
    add("--reward", default="likeness", help=f"{', '.join(REWARDS)} or MODULE:FUNCTION")
    add("--steps", type=int, default=20, help="batches of prompts")
    add("--prompts", type=int, default=4, help="prompts in a batch")
    add("--group", type=int, default=8, help="candidates of each prompt, 2 or more")
    add("--updates", type=int, default=2, help="optimiser steps on each batch")
    add("--part", type=int, default=8, help="candidates of one forward: bounds memory")
    add("--learning-rate", type=float, default=5e-5)
    add("--clip", type=float, default=0.2, help="largest change of a token's probability ratio")
    add("--kl", type=float, default=0.02, help="weight of the distance from the start")
    add("--sampler", default="top_p", help="one without state")
    add("--temperature", type=float, default=1.0, help="of sampling, which is what is trained")
    add("--guidance-scale", type=float, default=None, help="of samplers that guide (cfg)")
    add("--only", action="append", help="a prompt to train and validate on, instead of all; again")
    add("--validation-prompts", type=int, default=24, help="measured before and after")
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.group < 2 or min(options.steps, options.prompts, options.updates, options.part) < 1:
        parser.error("--group takes 2 or more; --steps, --prompts, --updates and --part 1 or more")
    return options


def run(options: argparse.Namespace) -> list[dict[str, float]]:
    """Train, and write `curve.jsonl`, pictures of the same seeds before and after, and the model."""
    model, reward = cm3core.load(options.model), find_reward(options.reward)
    grpo = GRPO(model, reward, options)
    out, random = Path(options.out), np.random.default_rng(options.seed)
    make_folder(out)
    asked, curve = documents_of(model), list[dict[str, float]]()
    if options.only:
        training = validation = [one for one in asked if one.prompt in options.only]
        if not training:
            raise RecipeError("--only", "names no prompt of the data set", "see `cm3 data show`")
    else:
        order = random.permutation(len(asked))
        num = min(options.validation_prompts, len(asked) - 1)
        validation = [asked[index] for index in order[:num]]  # no step trains on these prompts
        training = [asked[index] for index in order[num:]]
    started = time.process_time()

    def report(step: int, measured: dict[str, float]) -> None:
        curve.append({"step": step, "cpu_seconds": time.process_time() - started, **measured})
        line = {name: round(value, 4) for name, value in curve[-1].items()}
        print(json.dumps(line), file=sys.stderr, flush=True)
        write_text(out / "curve.jsonl", "".join(json.dumps(one) + "\n" for one in curve))

    def validate(step: int, name: str) -> None:
        rollouts, rewards = grpo.sample(validation, 8 if options.only else 2, options.seed + 1)
        drawn = [grpo.pictures(rollouts[place : place + 8]) for place in range(0, len(rollouts), 8)]
        save_png(out / f"{name}.png", grid(drawn))
        report(step, {"validation_reward": float(rewards.mean())})

    validate(0, "before")
    for step in range(options.steps):
        batch = random.permutation(len(training))[: options.prompts]
        report(step + 1, grpo.step([training[i] for i in batch], options.seed + 1000 + step))
    validate(options.steps, "after")
    source = find_model(options.model, load_registry())
    export_model(source, out / "model", "fp32", decoder=model.components.decoder.module)
    return curve


if __name__ == "__main__":
    try:
        run(parse())
    except CM3Error as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
