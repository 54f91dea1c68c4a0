"""Waiting for an end whatever is cancelled meanwhile."""

import asyncio

import pytest

from sshunt.transport.endings import cancelled, to_its_end


def test_a_task_that_swallows_a_cancellation_is_cancelled_again() -> None:
    async def stubborn() -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass
        await asyncio.sleep(60)

    async def run() -> None:
        task = asyncio.ensure_future(stubborn())
        await asyncio.sleep(0)
        await cancelled(task)
        assert task.cancelled()

    asyncio.run(run())


def test_an_error_raised_before_the_cancellation_is_kept() -> None:
    async def failing() -> None:
        raise ValueError("no")

    async def run() -> None:
        task = asyncio.ensure_future(failing())
        await asyncio.sleep(0)
        await cancelled(task)
        with pytest.raises(ValueError, match="no"):
            task.result()

    asyncio.run(run())


def test_several_are_cancelled_at_once_and_all_waited_for_although_we_are_cancelled_too() -> None:
    async def slow(seconds: float) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await to_its_end(asyncio.sleep(seconds))

    async def run() -> None:
        tasks = [asyncio.ensure_future(slow(seconds)) for seconds in (0.05, 0.2, 0.0)]
        await asyncio.sleep(0)
        outer = asyncio.ensure_future(cancelled(*tasks))
        await asyncio.sleep(0.02)
        outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer
        assert all(task.cancelled() for task in tasks)

    asyncio.run(run())


def test_a_task_that_is_cancelled_is_waited_for_although_we_are_cancelled_too() -> None:
    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await to_its_end(asyncio.sleep(0.05))

    async def run() -> None:
        inner = asyncio.ensure_future(slow())
        await asyncio.sleep(0)
        outer = asyncio.ensure_future(cancelled(inner))
        for _ in range(3):
            await asyncio.sleep(0)
            outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer
        assert inner.cancelled()

    asyncio.run(run())


def test_short_work_is_finished_although_we_are_cancelled() -> None:
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        done.append("work")

    async def run() -> None:
        task = asyncio.ensure_future(to_its_end(work()))
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == ["work"]

    asyncio.run(run())
