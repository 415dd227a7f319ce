"""What a large model costs on a CPU: seconds until it is ready, memory, tokens a second; beside
transformers.

    python examples/large_model/measure.py random-7b --threads 2 --runs theirs int8 int4 bf16
    python examples/large_model/measure.py --products 4096 --threads 2

`random-7b` is a folder of `make_weights.py` with the converted model `own` in it. Runs alternate, each in
a process of its own, so that none has another's memory; `--together` keeps all of them in one process,
for a model that fits so often. Each run reports a line of JSON:

    ready_s               until the first request could be sent: weights opened and arranged
    anonymous_gb          largest memory of its own; pages of mapped files, which the system takes back, are not in it
    text                  tokens a second, one request; of processor time with --threads 1, which
                          other programs on the machine hardly change
    picture               tokens a second of one picture, with guidance (two rows)
    of_floor              the time in which the weights could be copied once, over the time of a picture's token

`theirs` is transformers' Chameleon in bfloat16: its `generate` for text, and for pictures a plain loop
around its model with `StaticCache`, both rows in one batch, its head over the codes alone, `multinomial`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

GUIDANCE, SEED = 3.0, 1
PROMPT = "a red apple on a wooden table, soft light from a window at the left"
#: Bytes of a weight as a run reads it.
BYTES = {"theirs": 2.0, "bf16": 2.0, "stored": 2.0, "int8": 1.0, "int4": 0.625}


def now() -> float:
    """Seconds: of one thread its processor time, which other programs hardly change, else of the
    clock."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def anonymous_gb() -> float:
    """Memory of this process's own, in GB: Linux' RssAnon."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024 / 1e9


def copy_seconds(num_bytes: float) -> float:
    """Seconds that the machine takes to copy this many bytes, by the best of some tries."""
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    times = []
    for _ in range(7):
        begin = now()
        target.copy_(source)
        times.append(now() - begin)
    # read and written
    return num_bytes / (2 * source.numel() * 4 / min(times))


class Ours:
    """The converted model with `Engine`."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        import cm3core
        from cm3run.generation.engine import Engine, EngineOptions
        from cm3run.model.loaded import sampler_of

        model = cm3core.load(folder / "own", device="cpu")
        parts = model.components
        # random weights need not pass the gate, which `Model` would ask for
        self.engine = Engine(
            parts.decoder,
            parts.serializer,
            sampler_of(model),
            parts.vocabulary,
            EngineOptions(num_threads=threads, precision=precision),
        )

    def _rate(self, document: Any, number: int) -> float:
        from cm3run.generation.engine import Request, TokensDrawn

        session = self.engine.open()
        session.submit(Request(document, seed=SEED))
        drawn = 0
        session.step()  # reads the prompt, too
        begin = now()
        while drawn < number and session.busy:
            events = session.step()
            drawn += sum(len(one.tokens) for one in events if isinstance(one, TokensDrawn))
        return drawn / (now() - begin)

    def text(self, number: int) -> float:
        from cm3core.document import Text, TextHole

        return self._rate((Text(PROMPT), TextHole(number + 2)), number)

    def picture(self, number: int) -> float:
        from cm3core.document import ImageHole, Text

        return self._rate((Text(PROMPT), ImageHole()), number)


class Theirs:
    """transformers' Chameleon."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        from tokenizers import Tokenizer
        from transformers import ChameleonForConditionalGeneration

        self.model: Any = ChameleonForConditionalGeneration.from_pretrained(
            folder / "hf", dtype=torch.bfloat16
        )
        self.model.eval()
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "text_tokenizer.json"))
        self.ids = tokenizer.encode(PROMPT).ids

    @torch.inference_mode()
    def text(self, number: int) -> float:
        ids = torch.tensor([self.ids])
        options = {"do_sample": False, "eos_token_id": -1, "attention_mask": torch.ones_like(ids)}
        times = []
        self.model.generate(
            ids, max_new_tokens=1, min_new_tokens=1, **options
        )  # reads the mapped file
        for count in (1, number + 1):
            begin = now()
            out = self.model.generate(ids, max_new_tokens=count, min_new_tokens=count, **options)
            times.append(now() - begin)
            assert out.shape[1] == len(self.ids) + count
        return number / (times[1] - times[0])

    @torch.inference_mode()
    def picture(self, number: int) -> float:
        from transformers import StaticCache

        bare, head = self.model.model, self.model.lm_head.weight[4:8196]
        rows = torch.tensor([self.ids, [0] * len(self.ids)])
        length = len(self.ids) + 1024
        cache = StaticCache(config=self.model.config, max_cache_len=length)
        keywords = {"past_key_values": cache, "use_cache": True}
        hidden_2E = bare(input_ids=rows, **keywords).last_hidden_state[:, -1]
        begin = now()
        for _ in range(number):
            with_text, without = (hidden_2E @ head.T).float()
            mixed = without + GUIDANCE * (with_text - without)
            ordered, order = (mixed / 0.7).softmax(0).sort(descending=True)
            kept = ordered * (ordered.cumsum(0) - ordered < 0.9)
            code = order[torch.multinomial(kept, 1)]
            ids_21 = (4 + code).repeat(2, 1)
            hidden_2E = bare(input_ids=ids_21, **keywords).last_hidden_state[:, -1]
        return number / (now() - begin)


def weights_of(folder: Path) -> int:
    """Weights that every token reads: of the layers, and the head's rows of the codes."""
    config = json.loads((folder / "hf" / "config.json").read_text(encoding="utf-8"))
    width, inner = config["hidden_size"], config["intermediate_size"]
    layers = config["num_hidden_layers"] * (4 * width**2 + 3 * width * inner)
    return int(layers + 8192 * width)


def prepared(folder: Path, run: str, threads: int) -> tuple[Any, dict[str, Any]]:
    """A run's model, and what making it cost."""
    begin = time.perf_counter()
    made: Any = (Theirs if run == "theirs" else Ours)(folder, run, threads)
    return made, {"run": run, "ready_s": round(time.perf_counter() - begin, 1)}


def measured(made: Any, line: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """A line of results."""
    rates: dict[str, Callable[[int], float]] = {"text": made.text, "picture": made.picture}
    line = dict(line) | {name: round(rate(args.tokens), 2) for name, rate in rates.items()}
    floor = copy_seconds(weights_of(args.folder) * BYTES[line["run"]])
    line["of_floor"] = round(floor * line["picture"], 2)
    line["anonymous_gb"] = round(anonymous_gb(), 2)
    return line


def products(width: int) -> None:
    """Print milliseconds of one product [rows, width] x [width, width] in each arrangement; weights
    alternate, so that they come from memory and not from a cache."""
    import torch.nn.functional as F

    from cm3plugins.decoders.products import int4_product, int8_product, packed_product

    weights = [torch.randn(width, width).bfloat16() / width**0.5 for _ in range(4)]
    kinds: dict[str, tuple[list[Callable[[Any], Any]], torch.dtype]] = {
        "plain bf16": ([partial(F.linear, weight=w) for w in weights], torch.bfloat16),
        "packed bf16": ([packed_product(w, None) for w in weights], torch.bfloat16),
        "int8": ([int8_product(w) for w in weights], torch.float32),
        "int4": ([int4_product(w) for w in weights], torch.bfloat16),
    }
    print(
        f"milliseconds of [rows, {width}] x [{width}, {width}], {torch.get_num_threads()} threads"
    )
    for rows in (1, 2, 4, 8):
        line = f"{rows} rows:"
        for name, (made, dtype) in kinds.items():
            x = torch.randn(rows, width, dtype=dtype)
            times = []
            for number in range(24):
                begin = now()
                made[number % len(made)](x)
                times.append(now() - begin)
            line += f"  {name} {1000 * min(times[4:]):.2f}"
        print(line, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--runs", nargs="+", default=["theirs", "bf16", "int8", "int4"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, default=32, help="of a text and of a picture")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--together", action="store_true", help="all runs in one process")
    parser.add_argument("--products", type=int, metavar="WIDTH", help="single products, no model")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    if args.products:
        products(args.products)
        return 0
    if args.folder is None:
        parser.error("give the folder of make_weights.py, or --products")
    if len(args.runs) == 1 or args.together:
        models = [prepared(args.folder, run, args.threads) for run in args.runs]
        for _ in range(args.rounds):
            for made, line in models:
                print(json.dumps(measured(made, line, args)), flush=True)
        return 0
    options = ["--threads", str(args.threads), "--tokens", str(args.tokens), "--rounds", "1"]
    for _ in range(args.rounds):
        for run in args.runs:
            command = [sys.executable, __file__, str(args.folder), "--runs", run, *options]
            subprocess.run(command, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
