import signal

import pytest

from gym_bridge.io.signals import done_unless, interrupts_deferred, noted


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


def test_a_call_is_left_by_the_signal_but_not_what_is_to_be_done_whole_in_it():
    done = []
    before = signal.getsignal(signal.SIGTERM)

    def call():
        with interrupts_deferred():
            signal.raise_signal(signal.SIGTERM)
            done.append("whole")
        done.append("left")

    with noted(signal.SIGTERM) as came:
        noting = signal.getsignal(signal.SIGTERM)
        assert done_unless(signal.SIGTERM, came, lambda: 5) == 5
        assert done_unless(signal.SIGTERM, came, call) is None
        assert (done, came()) == (["whole"], True)
        assert signal.getsignal(signal.SIGTERM) is noting
        assert done_unless(signal.SIGTERM, came, lambda: done.append("called")) is None  # it came before
    assert done == ["whole"]
    assert signal.getsignal(signal.SIGTERM) is before
