"""GRPO on pictures: a group of candidates of each prompt, a reward for each, and a step towards the
better ones.

    python examples/grpo/grpo.py --out runs/grpo                    `bundled:emoji64`, reward `likeness`
    python examples/grpo/grpo.py --reward my_module:my_reward       your own, see `Reward`
    python examples/grpo/grpo.py --model examples/icons_svg/model --retrieve 2 --reward icon_reward:usable

The same command resumes.

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
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import cm3core
from cm3core.document import Codes, Document, Image, ImageHole, PixelArray, Text, text_of
from cm3core.errors import CM3Error, DataError, RecipeError
from cm3core.files import atomic_path, make_folder, write_text
from cm3core.images import fit, save_png
from cm3core.plugins import load_registry
from cm3icons.evaluation.ranking import blurred
from cm3run.checkpoint import export_model, find_model
from cm3run.generation import Rollout, recorded
from cm3run.sheets import grid

Floats: TypeAlias = NDArray[np.float32]
#: The weights and the optimizer after the last step.
STATE = "state.safetensors"


@dataclass(frozen=True, eq=False)
class Asked:
    """A document of the model's data set.

    Args:
        prompt: its text.
        picture: its picture, uint8 [height, width, 3].
        id: its name.
        documents: what is prepended to the prompt, coded.
        shown: their pictures.
    """

    prompt: str
    picture: PixelArray
    id: str = ""
    documents: Sequence[Document] = ()
    shown: Sequence[PixelArray] = ()


#: Pictures, uint8 [height, width, 3], and what was asked for -> a reward each, the more the better; or several values
#: by name, of which `reward` is the reward and the others are only reported.
Reward: TypeAlias = Callable[
    [Sequence[PixelArray], Sequence[Asked]], "Sequence[float] | Floats | Mapping[str, Floats]"
]


def likeness(pictures: Sequence[PixelArray], asked: Sequence[Asked]) -> Floats:
    """Minus the distance to the real picture, both blurred and 32 x 32: the distance by which the
    metric `judge` ranks."""
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


class Prompts:
    """The documents of the model's data set that have a text and a picture, by their positions.

    Args:
        model: retrieves from the split that it was trained on.
        num_retrieved: documents to prepend: no other version of the asked document from the same collection, because
            with that in front a model learns to repeat it.
    """

    def __init__(self, model: cm3core.Model, num_retrieved: int) -> None:
        source = model.components.source
        self._model, self._source, self._num_retrieved = model, source, num_retrieved
        self._versions: dict[tuple[str, str], list[str]] = {}
        if num_retrieved:
            for index in range(len(source)):
                self._versions.setdefault(self._version(index), []).append(source.id(index))

    def __len__(self) -> int:
        return len(self._source)

    def id(self, index: int) -> str:
        """A document's name."""
        return self._source.id(index)

    def places(self, is_wanted: Callable[[str], object]) -> list[int]:
        """Positions of documents with a wanted text."""
        source = self._source
        return [at for at in range(len(self)) if is_wanted(text_of(source.document(at)))]

    def asked(self, index: int) -> Asked | None:
        """What a document asks for; None if it has no text or no picture, or can't be written in codes."""
        segments = self._source.document(index)
        texts = tuple(one for one in segments if isinstance(one, Text))
        picture = next((one for one in segments if isinstance(one, Image)), None)
        if not texts or picture is None:
            return None
        try:
            documents = self._retrieved(index, texts) if self._num_retrieved else []
        except DataError:
            return None
        codes = [one for own in documents for one in own if isinstance(one, Codes)]
        return Asked(
            text_of(texts),
            fit(picture.load(), self._model.image_size),
            self._source.id(index),
            documents,
            self._model.decode(codes) if codes else (),
        )

    def some(self, order: Iterator[int], number: int) -> list[Asked]:
        """The next ones of an order of positions."""
        found = (one for index in order if (one := self.asked(index)) is not None)
        return list(islice(found, number))

    def _version(self, index: int) -> tuple[str, str]:
        group = self._source.group(index) or self._source.id(index)
        return self._source.provenance(index).collection, group

    def _retrieved(self, index: int, query: Document) -> list[Document]:
        parts = self._model.components
        without = {*self._versions[self._version(index)], *self._source.content_keys(index)}
        [found] = parts.retriever.retrieve([query], self._num_retrieved, [without])
        return [self._model.coded(parts.memory.document(one.index)) for one in found]


class GRPO:
    """The model, whose decoder is trained in place, and the policy that it is kept near."""

    def __init__(self, model: cm3core.Model, reward: Reward, options: argparse.Namespace) -> None:
        self.model, self.reward, self.options = model, reward, options
        self.policy = model.policy()
        self.start = copy.copy(self.policy)
        self.start.decoder = copy.deepcopy(self.policy.decoder)
        weights = model.components.decoder.module.parameters()
        self.optimizer = torch.optim.AdamW(weights, lr=options.learning_rate, weight_decay=0.0)

    def sample(
        self, asked: Sequence[Asked], num: int, seed: int
    ) -> tuple[list[Rollout], dict[str, Floats]]:
        """`num` pictures of each, their `reward` each, and what else the reward tells."""
        scale = self.options.guidance_scale
        keys: dict[str, Any] = {} if scale is None else {"guidance_scale": scale}
        documents: list[Document] = [(Text(one.prompt), ImageHole()) for one in asked]
        requests = self.model.requests(
            documents,
            retrieved=[one.documents for one in asked],
            seed=seed,
            sampler=self.options.sampler,
            truncate=True,
            temperature=self.options.temperature,
            **keys,
        )
        rollouts = self.policy.sample(requests, num)
        found = self.reward(self.pictures(rollouts), [one for one in asked for _ in range(num)])
        values = found if isinstance(found, Mapping) else {"reward": found}
        return rollouts, {name: np.asarray(own, np.float32) for name, own in values.items()}

    def pictures(self, rollouts: Sequence[Rollout]) -> list[PixelArray]:
        """The pictures of rollouts."""
        codes = [segment for one in rollouts for segment in one.document]
        return self.model.decode([one for one in codes if isinstance(one, Codes)])

    def step(self, asked: Sequence[Asked], seed: int) -> dict[str, float]:
        """Sample groups, and update the weights towards what was better than its group."""
        rollouts, found = self.sample(asked, self.options.group, seed)
        groups = torch.from_numpy(found["reward"]).view(len(asked), self.options.group)
        above = groups - groups.mean(1, keepdim=True)
        advantage_B1 = (above / (groups.std(1, keepdim=True) + 1e-4)).view(-1, 1)
        size = self.options.part
        parts = [slice(place, place + size) for place in range(0, len(rollouts), size)]
        start: list[Tensor | None] = [None] * len(parts)
        if self.options.kl:
            with torch.no_grad():
                start = [self.start.score(rollouts[part]).raw_BP for part in parts]
        for _ in range(self.options.updates):
            self.optimizer.zero_grad()
            totals = {"kl": 0.0, "clipped": 0.0}
            for part, start_BP in zip(parts, start, strict=True):
                loss, measured = self.loss(rollouts[part], advantage_B1[part], start_BP)
                share = len(rollouts[part]) / len(rollouts)
                (share * loss).backward()
                for name in totals:
                    totals[name] += share * float(measured[name])
            torch.nn.utils.clip_grad_norm_(self.policy.decoder.module.parameters(), 1.0)
            self.optimizer.step()
        means = {name: float(own.mean()) for name, own in found.items()}
        return {**means, "group_std": float(groups.std(1).mean()), **totals}

    def loss(
        self, rollouts: Sequence[Rollout], advantage_B1: Tensor, start_BP: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's clipped loss of some rollouts, with the penalty, and what to report."""
        new = self.policy.score(rollouts)
        old = recorded(rollouts, new.policy_BP.device)
        ratio_BP, clip = (new.policy_BP - old.policy_BP).exp(), self.options.clip
        advantage_B1 = advantage_B1.to(ratio_BP)
        gain_BP = torch.minimum(
            ratio_BP * advantage_B1, ratio_BP.clamp(1 - clip, 1 + clip) * advantage_B1
        )
        # an estimate that is never negative: Schulman 2020, "Approximating KL divergence", k3
        change_BP = torch.zeros_like(new.raw_BP) if start_BP is None else start_BP - new.raw_BP
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
    add("--retrieve", type=int, default=0, help="documents to retrieve before each prompt")
    add("--only", action="append", help="a prompt to train and validate on, instead of all; again")
    add(
        "--matching", help="train and validate on prompts in which this regular expression is found"
    )
    add("--few", type=int, help="train and validate on this number of prompts, instead of all")
    add("--validation-prompts", type=int, default=24, help="measured before and after")
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.group < 2 or min(options.steps, options.prompts, options.updates, options.part) < 1:
        parser.error("--group takes 2 or more; --steps, --prompts, --updates and --part 1 or more")
    return options


class Run:
    """A training in its folder: `curve.jsonl`, pictures of the same seeds before and after, the weights so far in
    `state.safetensors`, and at the end the model.

    Args:
        options: see `parse`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, Path(options.out)
        reward, model = find_reward(options.reward), cm3core.load(options.model)
        if options.retrieve:  # no document of a split that is held out
            model = model.with_memory(split=model.recipe.dataset.split)
        self.grpo, self.curve = GRPO(model, reward, options), list[dict[str, float]]()
        self.prompts = Prompts(model, options.retrieve)
        self._spent, self._started = 0.0, time.process_time()
        make_folder(self.out)

    def run(self) -> list[dict[str, float]]:
        """Train; return the curve."""
        options, random = self.options, np.random.default_rng(self.options.seed)
        if options.only:
            order = self._order("--only", lambda text: text in options.only)
            validation = self.prompts.some(iter(order.tolist()), len(order))
        else:
            order = np.arange(len(self.prompts))
            if options.matching:
                order = self._order("--matching", re.compile(options.matching).search)
            # the same prompts whatever the seed
            order = np.random.default_rng(0).permutation(order)
            number = options.few or min(options.validation_prompts, len(order) - 1)
            validation = self.prompts.some(iter(order.tolist()), number)
            seen = {
                one.id for one in validation
            }  # the prompts to train on, or those never to train on
            order = np.array(
                [at for at in order if (self.prompts.id(at) in seen) == bool(options.few)]
            )
        first = self._resumed()
        if not first:
            self._validate(validation, 0, "before")
        for step in range(options.steps):
            places = iter(random.permutation(order).tolist())  # the same in a resumed run
            if step >= first:
                batch = self.prompts.some(places, options.prompts)
                self._report(step + 1, self.grpo.step(batch, options.seed + 1000 + step))
                self._save(step + 1)
        self._validate(validation, options.steps, "after")
        decoder = self.grpo.policy.decoder.module
        source = find_model(options.model, load_registry())
        export_model(source, self.out / "model", "fp32", decoder=decoder)
        return self.curve

    def _order(self, option: str, is_wanted: Callable[[str], object]) -> NDArray[np.int64]:
        order = np.array(self.prompts.places(is_wanted), np.int64)
        if not len(order):
            raise RecipeError(option, "names no prompt of the data set", "see `cm3 data show`")
        return order

    def _report(self, step: int, measured: dict[str, float]) -> None:
        spent = self._spent + time.process_time() - self._started
        self.curve.append({"step": step, "cpu_seconds": spent, **measured})
        line = {name: round(value, 4) for name, value in self.curve[-1].items()}
        print(json.dumps(line), file=sys.stderr, flush=True)
        lines = "".join(json.dumps(one) + "\n" for one in self.curve)
        write_text(self.out / "curve.jsonl", lines)

    def _validate(self, asked: Sequence[Asked], step: int, name: str) -> None:
        num = 8 if self.options.only or self.options.few else 2
        rollouts, found = self.grpo.sample(asked, num, self.options.seed + 1)
        drawn = [
            self.grpo.pictures(rollouts[place : place + 8]) for place in range(0, len(rollouts), 8)
        ]
        save_png(self.out / f"{name}.png", grid(drawn))
        means = {f"validation_{name}": float(own.mean()) for name, own in found.items()}
        self._report(step, means)

    # ---- resuming

    def _state(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The weights, and their parameters in order."""
        module = self.grpo.policy.decoder.module
        return dict(module.state_dict()), list(module.parameters())

    def _save(self, step: int) -> None:
        weights, parameters = self._state()
        tensors = {f"weights.{name}": own.contiguous() for name, own in weights.items()}
        for place, one in enumerate(parameters):
            for name, own in self.grpo.optimizer.state[one].items():
                tensors[f"optimizer.{place}.{name}"] = own
        with atomic_path(self.out / STATE) as temporary:
            save_file(
                {name: own.clone() for name, own in tensors.items()},
                temporary,
                {"step": str(step), "options": self._options},
            )

    def _resumed(self) -> int:
        """The number of finished steps, whose weights are loaded."""
        path = self.out / STATE
        if not path.exists():
            return 0
        with safe_open(path, "pt") as file:
            facts = file.metadata()
            if facts["options"] != self._options:
                raise RecipeError(
                    str(self.out),
                    "is a run with other options",
                    "use the same ones to resume it, or another folder (--out)",
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a safetensors file is not a mapping)
        _, parameters = self._state()
        own = {
            name.removeprefix("weights."): one
            for name, one in tensors.items()
            if name.startswith("weights.")
        }
        self.grpo.policy.decoder.module.load_state_dict(own)
        for place, one in enumerate(parameters):
            start = f"optimizer.{place}."
            state = {
                name.removeprefix(start): two
                for name, two in tensors.items()
                if name.startswith(start)
            }
            if state:
                self.grpo.optimizer.state[one] = state
        lines = (self.out / "curve.jsonl").read_text("utf-8").splitlines()
        step = int(facts["step"])
        self.curve += [one for one in map(json.loads, lines) if one["step"] <= step][: step + 1]
        self._spent = self.curve[-1]["cpu_seconds"]
        print(f"resumes after step {step}", file=sys.stderr)
        return step

    @property
    def _options(self) -> str:
        """What must be the same in a resumed run; it may take more steps."""
        known = {
            name: own for name, own in vars(self.options).items() if name not in ("steps", "out")
        }
        return json.dumps(known, sort_keys=True)


def run(options: argparse.Namespace) -> list[dict[str, float]]:
    """Train; return the curve, see `Run`."""
    return Run(options).run()


if __name__ == "__main__":
    try:
        run(parse())
    except CM3Error as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
