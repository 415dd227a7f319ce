"""Training with torchtitan, for decoders that outgrow a machine: `cm3 titan`.

    settings.py   what can be trained, and torchtitan's own settings; light
    config.py     from a recipe to torchtitan's config
    model.py      the decoder of torchtitan's modules; sharding.py divides it, masks.py says who sees whom
    loss.py       weighted cross entropy, normalised as in `cm3 train`
    data.py       the loader; share.py is its part without torchtitan
    trainer.py    torchtitan's trainer, schedule and metrics
    adapter.py    safetensors into torchtitan and back; names.py maps names, weights.py reads and writes its checkpoints
    run.py        a whole run; command.py is `cm3 titan`
    on_cpu.py     torchtitan on a CPU, to try it out

Everything but the modules called light or without torchtitan needs the extra `torchtitan`.
"""

from __future__ import annotations

from collections.abc import Mapping

from cm3core.hookspecs import hookimpl

CM3_API = 1


@hookimpl
def cm3_commands() -> Mapping[str, str]:
    return {"titan": "cm3titan.command:configure"}
