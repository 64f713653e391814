"""The one pool of a process: who sizes it, and that nobody believes in threads that are not there."""

from __future__ import annotations

import textwrap

from command import process


def ended(code: str) -> list[str]:
    """What a process wrote to stderr, by lines."""
    done = process(["-c", textwrap.dedent(code)])
    assert done.code == 0, done.err
    return done.err.splitlines()


def test_threads_that_the_pool_does_not_have_are_said_once() -> None:
    (said,) = ended(
        """
        from cleave.threads import session_options, use_one_thread_pool
        use_one_thread_pool(1)
        for threads in (None, 1, 3, 4, 3):
            session_options(threads)
        """
    )
    assert said.startswith("3 threads were asked for, and the one pool of this process has 1: ")
    assert "call use_one_thread_pool(3) before anything else" in said


def test_the_first_session_of_an_own_process_gets_the_threads_that_it_asks_for() -> None:
    lines = ended(
        """
        from cleave.threads import own_process, session_options, use_one_thread_pool
        own_process()
        session_options(3)
        assert use_one_thread_pool() == 3
        session_options()
        """
    )
    assert lines == []


def test_pools_of_their_own_have_the_threads_asked_for() -> None:
    lines = ended(
        """
        from cleave.threads import session_options
        assert [session_options(threads).intra_op_num_threads for threads in (1, 3)] == [1, 3]
        """
    )
    assert lines == []
