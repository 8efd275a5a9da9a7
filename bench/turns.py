# SPDX-License-Identifier: Apache-2.0
"""Programs measured in turns, so that machine, frequency and neighbours are the same for all. Pure.

Each round takes one sample of each program. A result is the difference of two samples of one round.
"""

from collections.abc import Callable, Sequence

Samples = dict[str, list[float]]
"""Samples by name, in the order of the rounds."""


def take_turns(names: Sequence[str], cost: Callable[[str], float], rounds: int) -> Samples:
    """One sample of each name in each round. The first one of a round is last in the next."""
    samples: Samples = {name: [] for name in names}
    for number in range(rounds):
        at = number % len(names)
        for name in (*names[at:], *names[:at]):
            samples[name].append(cost(name))
    return samples


def over(samples: Samples, name: str, base: str) -> list[float]:
    """How much more ``name`` costs than ``base``, in each round."""
    return [cost - base_cost for cost, base_cost in zip(samples[name], samples[base], strict=True)]
