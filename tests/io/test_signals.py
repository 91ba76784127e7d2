import signal

import pytest

from gym_bridge.io.signals import interrupts_deferred, noted


def test_ctrl_c_waits_for_the_end_of_the_outermost_block():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with interrupts_deferred():
            with interrupts_deferred():
                signal.raise_signal(signal.SIGINT)
                done.append("inner")
            done.append("outer")
        done.append("after")
    assert done == ["inner", "outer"]


def test_a_signal_is_noted_and_the_handler_of_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with noted(signal.SIGTERM) as came:
        assert not came()
        signal.raise_signal(signal.SIGTERM)
        assert came()
    assert signal.getsignal(signal.SIGTERM) is before
