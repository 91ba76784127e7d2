"""What is done to a verified reward before advantages are made of it. Plain floats."""


def scaled(reward: float, *, source: tuple[float, float], target: tuple[float, float]) -> float:
    """The reward on a line that takes `source` to `target`; one outside of `source` is moved to its border first.

    t_0 + (t_1 - t_0) (clip(r, s_0, s_1) - s_0) / (s_1 - s_0)
    """
    inside = min(max(reward, source[0]), source[1])
    return target[0] + slope(source=source, target=target) * (inside - source[0])


def slope(*, source: tuple[float, float], target: tuple[float, float]) -> float:
    """By how much the scaled reward grows with the reward: (t_1 - t_0) / (s_1 - s_0)."""
    return (target[1] - target[0]) / (source[1] - source[0])


def overlong_penalty(num_tokens: int, *, limit: int, buffer: int, size: float) -> float:
    """What is added to the reward of a completion y that comes near its limit of tokens: DAPO's soft overlong punishment (Yu et
    al. 2025, arXiv 2503.14476, eq. 13), times `size`; L_max = limit, L_cache = buffer, |y| = num_tokens.

     0                                  |y| <= L_max - L_cache
     ((L_max - L_cache) - |y|)/L_cache  L_max - L_cache < |y| <= L_max
    -1                                  L_max < |y|

    A buffer longer than the limit is taken to be as long.
    """
    buffer = min(buffer, limit)
    return -size * min(max(num_tokens - (limit - buffer), 0) / buffer, 1.0)
