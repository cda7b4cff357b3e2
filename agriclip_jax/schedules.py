"""Numbers that change with the step: learning rate, weight decay, weights of objectives, temperatures, momentum."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from agriclip_jax.errors import UserError

Schedule = Callable[[jax.Array], jax.Array]


def schedule(spec: Any, total_steps: int, where: str = "schedule") -> Schedule:
    """A value as a function of the step.

    Args:
      spec: a number; `("cosine", a, b)`: from a at step 0 to b at the end; `("linear", a, b, f)`: from a to b over the
        first fraction f of the run, then b; `("switch", a, b, f)`: a for the first fraction f, then b.
      total_steps: of the run.
      where: the config key, for the error.

    Raises:
      UserError: for any other form.
    """
    if isinstance(spec, int | float) and not isinstance(spec, bool):
        return lambda step: jnp.float32(spec)
    match tuple(spec) if isinstance(spec, Sequence) and not isinstance(spec, str) else spec:
        case ("cosine", int() | float() as a, int() | float() as b):
            return lambda step: b + (a - b) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / total_steps, 1.0)))
        case ("linear", int() | float() as a, int() | float() as b, int() | float() as fraction):
            return lambda step: a + (b - a) * jnp.minimum(step / max(fraction * total_steps, 1), 1.0)
        case ("switch", int() | float() as a, int() | float() as b, int() | float() as fraction):
            return lambda step: jnp.where(step < round(fraction * total_steps), a, b).astype(jnp.float32)
    raise UserError(
        f"{where}: {spec!r} is no schedule; give a number, ('cosine', a, b), ('linear', a, b, fraction) or "
        "('switch', a, b, fraction)"
    )


def warmup_cosine(peak: float, warmup: float, end: float, total_steps: int) -> Schedule:
    """Linear up to `peak` over the first fraction `warmup` of the run, then half a cosine down to `end * peak`."""
    steps = max(round(warmup * total_steps), 1)
    return lambda step: jnp.where(
        step < steps,
        peak * (step + 1) / steps,
        peak * (end + (1 - end) * 0.5 * (1 + jnp.cos(jnp.pi * (step - steps) / max(total_steps - steps, 1)))),
    )
