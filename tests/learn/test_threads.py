"""`ThreadTuner` on a simulated machine: updates take the time that the load gives them."""

import dataclasses

import pytest

from avtd3.learn.threads import CHECK_S, KernelLoad, Load, ThreadTuner

WORK_S = 0.1
"""Time of an update on one idle core."""


@dataclasses.dataclass
class Machine:
    """Cores, and other busy processes; each parallel region waits for its slowest thread."""

    cores: int = 2
    busy: int = 0
    now_s: float = 0.0
    threads: int = 0
    changes: int = 0
    reported: tuple[Load | None, ...] = ()
    """What the kernel reports instead, always."""

    def set_threads(self, threads: int) -> None:
        self.changes += 1
        self.threads = threads

    def clock(self) -> float:
        return self.now_s

    def read(self) -> Load | None:
        if self.reported:
            return self.reported[0]
        lacking = max(0, self.threads + self.busy - self.cores)
        idle = max(0, self.cores - self.threads - self.busy)
        return Load(waiting=float(min(lacking, self.threads)), idle=float(idle))

    def update_s(self) -> float:
        if self.threads + self.busy <= self.cores:
            return WORK_S / self.threads
        return WORK_S * (2.2 if self.threads > 1 else 1.0 + 0.1 * self.busy)


def tuner(machine: Machine) -> ThreadTuner:
    machine.threads = machine.cores
    return ThreadTuner(
        machine.cores, read_load=machine.read, set_threads=machine.set_threads, clock=machine.clock
    )


def run(machine: Machine, tuner: ThreadTuner, seconds: float) -> float:
    """Do updates for some time; return updates per second."""
    end_s, count, begin_s = machine.now_s + seconds, 0, machine.now_s
    while machine.now_s < end_s:
        taken = machine.update_s()
        machine.now_s += taken
        tuner.add(taken)
        count += 1
    return count / (machine.now_s - begin_s)


@pytest.mark.parametrize("cores", [1, 2, 8, 64])
def test_an_idle_machine_keeps_all_threads_and_tries_nothing(cores):
    machine = Machine(cores=cores)
    tuned = tuner(machine)
    run(machine, tuned, 300.0)
    assert (tuned.threads, machine.changes) == (cores, 0)


@pytest.mark.parametrize("busy", [1, 2, 4])
def test_beside_busy_processes_the_faster_number_is_found(busy):
    machine = Machine(busy=busy)
    tuned = tuner(machine)
    run(machine, tuned, 5.0)
    assert tuned.threads == 1
    fixed = 1.0 / (WORK_S * (1.0 + 0.1 * busy))
    assert run(machine, tuned, 120.0) >= 0.97 * fixed


def test_the_number_follows_the_load_both_ways():
    machine = Machine(cores=8)
    tuned = tuner(machine)
    for busy, expected in ((0, 8), (4, 4), (7, 1), (4, 4), (0, 8)):
        machine.busy = busy
        run(machine, tuned, 40.0)
        assert tuned.threads == expected


def test_short_loads_do_not_make_it_flap():
    machine = Machine()
    tuned = tuner(machine)
    for _ in range(60):
        machine.busy = 1 - machine.busy
        run(machine, tuned, 1.0)
    assert machine.changes <= 60


def test_trials_that_bring_nothing_become_rare():
    machine = Machine()
    tuned = tuner(machine)
    machine.reported = (Load(waiting=1.0, idle=0.0),)  # but one thread is not faster
    speed = run(machine, tuned, 600.0)
    assert speed >= 0.97 * machine.cores / WORK_S


def test_slower_updates_beside_busy_processes_do_not_try_more_threads():
    machine = Machine(busy=1)
    tuned = tuner(machine)
    run(machine, tuned, 60.0)
    changes = machine.changes
    machine.busy = 12  # updates take more than 1.3 times as long, but all cores are in use
    run(machine, tuned, 60.0)
    assert (tuned.threads, machine.changes) == (1, changes)


@pytest.mark.parametrize("group", [1, 2, 8])
def test_a_hopeless_trial_ends_before_its_group(group):
    machine = Machine(busy=1)
    tuned = ThreadTuner(
        2, group=group, read_load=machine.read, set_threads=machine.set_threads, clock=machine.clock
    )
    machine.threads = 2
    run(machine, tuned, 60.0)
    assert tuned.threads == 1
    machine.reported = (Load(waiting=0.0, idle=1.0),)  # but one update on two threads takes long
    tried = 0
    for _ in range(2_000):
        taken = machine.update_s() * (20.0 * group if machine.threads == 2 else 1.0)
        machine.now_s += taken
        tried += machine.threads == 2
        tuned.add(taken)
    assert machine.changes > 2
    assert tried == (machine.changes - 1) // 2


def test_without_proc_slower_updates_are_reason_enough():
    machine = Machine()
    machine.reported = (None,)
    tuned = tuner(machine)
    run(machine, tuned, 10.0)
    assert machine.changes == 0
    machine.busy = 1
    run(machine, tuned, 20.0)
    assert tuned.threads == 1


def test_updates_of_a_policy_delay_are_timed_together():
    machine = Machine()
    tuned = ThreadTuner(
        2, group=2, read_load=machine.read, set_threads=machine.set_threads, clock=machine.clock
    )
    machine.threads = 2
    for count in range(400):  # every second update takes twice as long
        taken = machine.update_s() * (1.0 + count % 2)
        machine.now_s += taken
        tuned.add(taken)
    assert machine.changes == 0


def test_the_kernel_reports_waiting_and_idle_cores():
    meter = KernelLoad()
    assert meter.read() is None
    total = sum(number * number for number in range(200_000))
    load = meter.read()
    assert total
    assert load is not None
    assert load.waiting >= 0.0
    assert load.idle >= 0.0
    assert CHECK_S > 0.0
