"""Several ranks train as one rank with the whole batch, and end together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.numpy

from avtd3.learn.checkpoints import CHECKPOINTS, TENSORS, list_checkpoints, updates_of
from avtd3.store.dataset import Dataset
from avtd3.store.remote.client import open_place
from avtd3.store.remote.transfer import MIRROR_FILE, transfer
from avtd3.store.spec import ImageSpec
from avtd3.tests.learn.ranks_worker import train_case

WORKER = Path(__file__).with_name("ranks_worker.py")
NETWORK = {"hidden": [16, 16], "features": 8}
LEARN = {"updates": 100, "network": NETWORK}
VECTOR = {
    "bc-priorities": {
        "td3": {"bc_alpha": 2.5},
        "network": NETWORK | {"vector_statistics": True},
        "replay": {"prioritised": True},
    },
}
MORE_VECTOR = {
    "td3": {},
    "bc-mask": {"td3": {"bc_alpha": 2.5}, "replay": {"imitate": ["driver=expert"]}},
    "cloning": {"algorithm": "bc"},
    "n-step": {"replay": {"n_step": 3}},
    "target-range": {"td3": {"target_clip_every": 10}},
    "sequences": {"replay": {"sequence_length": 4}},
}
IMAGE = {
    "image": {"image_shift": 2},
    "image-bc-priorities": {"td3": {"bc_alpha": 2.5}, "replay": {"prioritised": True, "n_step": 2}},
    "image-shared": {"network": NETWORK | {"shared_encoder": True}},
}


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _no_process_stays():
    yield
    for process in STARTED:
        if process.poll() is None:
            process.terminate()  # torchrun then ends its ranks
            process.communicate()
    STARTED.clear()


def torchrun(*arguments, ranks=2):
    """Start ranks; return the process of ``torchrun``."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), *map(str, arguments)]
    pipe = subprocess.PIPE
    STARTED.append(subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True))
    return STARTED[-1]


@pytest.fixture
def dataset(tmp_path, publish_episodes, make_spec):
    def make(*, image):
        spec = make_spec(image=ImageSpec(height=36, width=36, stack=2) if image else None)
        drivers = ("random", "expert", "random")
        return publish_episodes(tmp_path / "data", spec, episodes=6, drivers=drivers).path

    return make


def newest(run):
    """Return the tensors of the newest checkpoint of a run."""
    path = list_checkpoints(run / CHECKPOINTS)[-1]
    return path.name, safetensors.numpy.load_file(path / TENSORS)


def check_equal(tmp_path, data, cases, url=None):
    """Raise if two ranks with batches of 8 and one rank with batches of 16 differ.

    With `url`, the two ranks read the same data from there.
    """
    learn = {name: LEARN | case for name, case in cases.items()}
    plan = [
        {
            "data": url or str(data),
            "run": str(tmp_path / "two" / name),
            "learn": case,
            "batch_size": 8,
        }
        for name, case in learn.items()
    ]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    process = torchrun(WORKER, tmp_path / "plan.json")
    for name, case in learn.items():
        train_case(data, tmp_path / "one" / name, case, 16)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    for name in cases:
        (alone, expected), (together, found) = (newest(tmp_path / n / name) for n in ("one", "two"))
        assert alone == together == "update-000000100"
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            difference = abs(found[key].astype(float) - value.astype(float)).max(initial=0.0)
            limit = 1e-6 if key == "sampler/priority" else 1e-9  # stored in float32
            assert difference <= limit, (name, key, difference)


@pytest.mark.parametrize("cases", [pytest.param(VECTOR, id="vector")])
def test_two_ranks_equal_one_with_twice_the_batch(tmp_path, dataset, cases):
    check_equal(tmp_path, dataset(image=False), cases)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "cases"), [(False, MORE_VECTOR), (True, IMAGE)], ids=["vector", "image"]
)
def test_two_ranks_equal_one_with_every_loss_and_replay(tmp_path, dataset, image, cases):
    check_equal(tmp_path, dataset(image=image), cases)


def learn(data, run, *options, ranks=2, **settings):
    """Start ``avtd3 learn`` under ``torchrun``."""
    chosen = {"device": "cpu", "network.hidden": "[16,16]", "replay.batch_size": 16} | settings
    sets = [word for name, value in chosen.items() for word in ("--set", f"learn.{name}={value}")]
    words = ("-m", "--", "avtd3.cli", "learn", data, "--run", run, *options, *sets)
    return torchrun(*words, ranks=ranks)


def wait_for(process, condition):
    """Wait until a condition is true while a process runs."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def has_checkpoint(run):
    return lambda: list_checkpoints(run / CHECKPOINTS)


def pid_of(process, rank):
    """Return the process of a rank that ``torchrun`` has started."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(f"no rank {rank}")


def end_of(process):
    """Return the exit code of ``torchrun``, and all that its ranks printed."""
    output, errors = process.communicate(timeout=600)
    return process.returncode, output + errors


def learn_until_checkpoint(data, run):
    """Start two ranks; return their process once the run has a checkpoint."""
    process = learn(data, run, checkpoint_every=20)
    wait_for(process, has_checkpoint(run))
    return process


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_which_resumes_with_other_numbers_of_ranks(
    tmp_path, dataset, avtd3
):
    data, run = dataset(image=False), tmp_path / "run"
    process = learn_until_checkpoint(data, run)
    os.kill(pid_of(process, 1), signal.SIGKILL)
    code, text = end_of(process)
    assert code == 1
    assert "rank 0 of 2: another rank has ended" in text
    done = updates_of(list_checkpoints(run / CHECKPOINTS)[-1])
    assert f"saved at update {done}: continue with --resume" in text

    code, out, err = avtd3("learn", data, "--run", run, "--resume", "--updates", done + 10)
    assert code == 0, err
    assert "ranks: 2 -> 1" in out + err, out + err
    code, text = end_of(learn(data, run, "--resume", "--updates", done + 20, ranks=3))
    assert code == 0, text
    assert updates_of(list_checkpoints(run / CHECKPOINTS)[-1]) == done + 20


@pytest.mark.slow
def test_the_last_checkpoint_stays_when_rank_0_is_killed(tmp_path, dataset):
    run = tmp_path / "run"
    process = learn_until_checkpoint(dataset(image=False), run)
    os.kill(pid_of(process, 0), signal.SIGKILL)
    code, text = end_of(process)
    assert code == 1
    assert "rank 1 of 2: another rank has ended" in text
    assert has_checkpoint(run)()


@pytest.mark.slow
def test_ctrl_c_ends_all_ranks_with_a_checkpoint_and_a_policy(tmp_path, dataset):
    run = tmp_path / "run"
    process = learn_until_checkpoint(dataset(image=False), run)
    process.send_signal(signal.SIGINT)
    _, text = end_of(process)
    newest = updates_of(list_checkpoints(run / CHECKPOINTS)[-1])
    assert f"stopped: {newest} updates" in text
    assert "another rank" not in text


@pytest.mark.slow
def test_a_stopped_rank_is_lost_after_the_timeout(tmp_path, dataset):
    run = tmp_path / "run"
    process = learn_until_checkpoint(dataset(image=False), run)
    os.kill(pid_of(process, 1), signal.SIGSTOP)
    code, text = end_of(process)
    assert code == 1
    assert "rank 0 of 2: another rank has ended or does not answer" in text
    newest = updates_of(list_checkpoints(run / CHECKPOINTS)[-1])
    assert f"saved at update {newest}" in text


@pytest.mark.slow
def test_ranks_follow_a_dataset_that_grows_and_agree_on_damage(
    tmp_path, publish_episodes, make_spec
):
    data, run, spec = tmp_path / "data", tmp_path / "run", make_spec()
    options = ("--follow", "--updates", "200")
    settings = {"learning_starts": 100, "updates_per_step": 1, "refresh_seconds": 0.2}
    process = learn(data, run, *options, **settings)
    for seed in range(8):
        publish_episodes(data, spec, seed=seed)
        [newest, *_] = sorted((data / "segments").iterdir(), reverse=True)
        if seed == 3:
            (newest / "MANIFEST.json").write_text("{")
    code, text = end_of(process)
    assert code == 0, text
    assert updates_of(list_checkpoints(run / CHECKPOINTS)[-1]) == 200


@pytest.mark.slow
def test_two_ranks_on_a_url_equal_one_on_the_same_directory(tmp_path, dataset, bucket):
    data = dataset(image=False)
    transfer(data, bucket)
    check_equal(tmp_path, data, VECTOR, bucket)
    mirrors = list((tmp_path / "two").rglob(MIRROR_FILE))
    assert len(mirrors) == len(VECTOR), "one mirror for all ranks of a run"


@pytest.mark.slow
def test_ranks_follow_a_url_within_the_size_of_their_mirror(
    tmp_path, publish_episodes, make_spec, bucket
):
    data, run, spec = tmp_path / "data", tmp_path / "run", make_spec()
    publish_episodes(data, spec)
    [segment] = Dataset.open(data).snapshot().segments
    most = round(3.5 * segment.size_bytes)
    settings = {"learning_starts": 100, "updates_per_step": 1, "refresh_seconds": 0.2}
    policies = ("--policies", f"{bucket}/policies", "--updates", "200")
    process = learn(bucket, run, "--follow", *policies, mirror_bytes=most, **settings)
    for seed in range(1, 9):
        transfer(data, bucket)
        wait_for(process, lambda: list(run.glob("mirror/*/segments/*")))
        publish_episodes(data, spec, seed=seed)
    transfer(data, bucket)
    code, text = end_of(process)
    assert code == 0, text
    assert updates_of(list_checkpoints(run / CHECKPOINTS)[-1]) == 200
    [mirror] = run.glob("mirror/*")
    kept = Dataset.open(mirror).snapshot().segments
    assert sum(each.size_bytes for each in kept) <= most
    assert "LATEST.json" in open_place(f"{bucket}/policies").sizes("")
    places = json.loads((run / "config.json").read_bytes())
    assert (places["datasets"], places["ranks"]) == ([bucket], 2)


@pytest.mark.slow
def test_settings_that_need_one_process_are_refused(tmp_path, dataset):
    settings = {"network.conv_norm": "batch"}
    code, text = end_of(learn(dataset(image=True), tmp_path / "run", **settings))
    assert code == 1
    assert "learn.network.conv_norm needs all samples in one process" in text
