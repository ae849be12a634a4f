"""Which run a folder of train.py holds, what that starts from, and what is refused at once."""

import json
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import _note
import train
from _build import check_targets
from _errors import ConfigError
from _stages import critics, parts

from optdiff.learning.claim import claimed
from optdiff.learning.interruption import ResumeError
from optdiff.problems.captioned_digits import SHIPPED

ROOT = Path(__file__).parents[2]


def conf(folder, *choices):
    """The configuration of train.py."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [f"folder={folder}", *choices])
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def noted(folder, *choices, learned=True):
    """Write the note of a run that has learned something, and return it."""
    config = conf(folder, *choices)
    place = folder / config["stage"]
    note = _note.begin(place, config, {}, "a device")
    _note.write(place, note)
    if learned:
        (place / "checkpoints/7").mkdir(parents=True)
    return place, note


def test_a_folder_that_has_learned_nothing_is_anybodys(tmp_path):
    place, _ = noted(tmp_path, "stage=judge", learned=False)
    assert _note.begin(place, conf(tmp_path, "stage=judge", "seed=1"), {}, "a device")


def test_another_run_is_named_by_what_differs(tmp_path):
    place, _ = noted(tmp_path, "stage=judge")
    other = conf(tmp_path, "stage=judge", "steps=7", "rate=0.5", "log_every=3")
    said = r"learning_rate\.peak was 0\.002 and is 0\.5; .*; steps was 2000 and is 7\. .*resume=any"
    with pytest.raises(ConfigError, match=said) as caught:
        _note.begin(place, other, {}, "a device")
    assert "log_every" not in str(caught.value)
    assert _note.begin(place, other | {"resume": "any"}, {}, "a device")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("seed=1", "seed was 0 and is 1"),
        ("data._target_=optdiff.data.image_folder.image_folder", "_target_ was .*captioned_digits"),
    ],
)
def test_no_run_goes_on_with_other_random_numbers_or_other_positions(other, said, tmp_path):
    place, _ = noted(tmp_path, "stage=judge")
    with pytest.raises(ConfigError, match=said) as caught:
        _note.begin(place, conf(tmp_path, "stage=judge", other, "resume=any"), {}, "a device")
    assert "resume=any" not in str(caught.value)


def pictures_in(folder, captions):
    folder.mkdir(exist_ok=True)
    rows = [{"file_name": f"{i}.png", "text": caption} for i, caption in enumerate(captions)]
    for i in range(len(rows)):
        Image.new("RGB", (8, 8), (40 * i, 0, len(rows))).save(folder / f"{i}.png")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def shard_in(folder, captions):
    pictures_in(folder.parent / "loose", captions)
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "0.tar", "w") as tar:
        for file in sorted((folder.parent / "loose").iterdir()):
            tar.add(file, file.name)


@pytest.mark.parametrize(
    ("write", "kind", "path"),
    [(pictures_in, "image_folder", "path={}"), (shard_in, "webdataset", "shards={}/*.tar")],
)
def test_data_replaced_under_the_same_path_are_others(write, kind, path, tmp_path):
    """Which no run goes on with: its position counts examples of the old ones."""
    for name in ("mine", "test"):
        write(tmp_path / name, ["a red seven", "a blue one"])
    mine, test = (path.format(tmp_path / name) for name in ("mine", "test"))
    choices = "stage=vae", f"data={kind}", f"data.{mine}", f"held_out.{test}"
    place, _ = noted(tmp_path / "run", *choices)
    (place / "own.png").write_text("lies beside")
    again = conf(tmp_path / "run", *choices)
    assert _note.begin(place, again, {}, "a device")
    write(tmp_path / "test", ["a red six", "a blue one"])
    with pytest.raises(ConfigError, match=r"files of held_out are not .*resume=any"):
        _note.begin(place, again, {}, "a device")
    assert _note.begin(place, again | {"resume": "any"}, {}, "a device")
    write(tmp_path / "mine", ["a red seven"] * 4)
    with pytest.raises(ConfigError, match=r"the files of data are not those of before"):
        _note.begin(place, again | {"resume": "any"}, {}, "a device")


def test_a_note_of_before_or_data_that_are_gone_are_no_other_data(tmp_path):
    pictures_in(tmp_path / "mine", ["a red seven"])
    own = [f"{name}.path={tmp_path}/mine" for name in ("data", "held_out")]
    place, note = noted(tmp_path, "stage=vae", "data=image_folder", *own)
    again = conf(tmp_path, "stage=vae", "data=image_folder", *own)
    (tmp_path / "mine/0.png").unlink()
    assert _note.begin(place, again, {}, "a device")
    pictures_in(tmp_path / "mine", ["a red six"])
    _note.write(place, {name: value for name, value in note.items() if name != "content"})
    assert _note.begin(place, again, {}, "a device")


def test_a_finished_run_is_the_same_however_it_is_asked_for(tmp_path):
    place, note = noted(tmp_path, "stage=judge")
    _note.write(place, note | {"scores": {"digit_accuracy": 1.0}})
    how = "log_every=7", "parameterization=edm", "perceptual=1", "critics=[]", "+data.threads=4"
    other = conf(tmp_path, "stage=judge", *how)
    assert _note.begin(place, other, {}, "a device"), "its network has been taken away"
    (place / "model").mkdir()
    assert _note.begin(place, other, {}, "a device") is None


def test_a_network_that_is_gone_on_with_is_not_finished(tmp_path):
    place, note = noted(tmp_path, "stage=clip")
    (place / "model").mkdir()
    (place / "model/config.json").write_text((SHIPPED / "clip/config.json").read_text())
    with pytest.raises(ConfigError, match="clip is not finished"):
        parts(conf(tmp_path, "stage=unet"))
    with pytest.raises(ConfigError, match="clip is not finished"):
        parts(conf("other", "stage=unet", f"parts_from={tmp_path}"))
    _note.write(place, note | {"scores": {}})
    assert parts(conf(tmp_path, "stage=unet"))["clip"] == place / "model"


def test_half_a_checkpoint_is_nothing_learned(tmp_path):
    place, _ = noted(tmp_path, "stage=judge", learned=False)
    (place / "checkpoints/7.orbax-checkpoint-tmp-1").mkdir(parents=True)
    assert _note.begin(place, conf(tmp_path, "stage=judge", "seed=1"), {}, "a device")


def stubbed(monkeypatch, folder, end):
    """Have a vae learn nothing: returns its notes before and after, if `end` lets it begin."""
    notes = []

    def scores(learned):
        notes.append(_note.read(folder / "vae"))
        return {"psnr": 7.0}

    task = SimpleNamespace(
        loss=None, params=None, stream=None, frozen=None, scores=scores,
        save=lambda learned, path: path.mkdir(),
    )  # fmt: skip
    monkeypatch.setattr(train, "Task", SimpleNamespace)
    monkeypatch.setattr(train, "assemble", lambda *_: task)
    monkeypatch.setattr(train, "whole", lambda ema: ema)

    def loop(*_, begun, **__):
        notes.append(_note.read(folder / "vae"))
        end()
        begun()
        return SimpleNamespace(ema=None)

    monkeypatch.setattr(train, "train", loop)
    return notes


def test_a_run_is_noted_when_it_begins_and_again_when_it_ends(tmp_path, monkeypatch):
    notes = stubbed(monkeypatch, tmp_path, end=lambda: None)
    train.learn(conf(tmp_path, "stage=vae", "rate=0.5"), tmp_path / "vae")
    before, during = notes
    assert before is None and "scores" not in during
    assert during["config"]["optimizer"]["learning_rate"]["peak"] == 0.5
    assert _note.read(tmp_path / "vae")["scores"] == {"psnr": 7.0}
    assert _note.finished(tmp_path / "vae")


def test_a_refused_resumption_leaves_the_note(tmp_path, monkeypatch):
    place, note = noted(tmp_path, "stage=vae")

    def refuse():
        raise ResumeError("no")

    stubbed(monkeypatch, tmp_path, end=refuse)
    with pytest.raises(ResumeError):
        train.learn(conf(tmp_path, "stage=vae", "rate=0.5", "resume=any"), place)
    assert _note.read(place) == json.loads(json.dumps(note))


def test_two_do_not_learn_in_one_folder(tmp_path, monkeypatch):
    notes = stubbed(monkeypatch, tmp_path, end=lambda: None)
    with (
        claimed(tmp_path / "vae/.run.lock"),
        pytest.raises(ResumeError, match="vae is in use by process"),
    ):
        train.learn(conf(tmp_path, "stage=vae"), tmp_path / "vae")
    assert not notes


def test_a_tokenizer_is_begun_before_it_is_learned(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "assemble", lambda *_: seen.append(_note.read(tmp_path / "t")) or 1)
    with pytest.raises(TypeError):  # nobody made one
        train.learn(conf(tmp_path, "stage=tokenizer"), tmp_path / "t")
    assert seen[0]["config"]["stage"] == "tokenizer"


def test_a_tokenizer_is_made_of_its_texts_alone(tmp_path):
    place, note = noted(tmp_path, "stage=tokenizer")
    (place / "model").mkdir()
    _note.write(place, note | {"scores": {"vocabulary": 7}})
    same = conf(tmp_path, "stage=tokenizer", "optimizer=adamw", "batch=7", "steps=20")
    assert _note.begin(place, same, {}, "a device") is None
    with pytest.raises(ConfigError, match=r"texts\.count was 20000 and is 7"):
        _note.begin(place, conf(tmp_path, "stage=tokenizer", "texts.count=7"), {}, "a device")


def test_a_stage_starts_from_its_own_run_or_another_or_what_comes_with_optdiff(tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    for place in (own / "vae/model", other / "vae/model", other / "clip/model"):
        place.mkdir(parents=True)
        part = place.parent.name
        (place / "config.json").write_text((SHIPPED / part / "config.json").read_text())
    shipped = {part: SHIPPED / part for part in ("tokenizer", "clip", "vae")}
    assert parts(conf(own, "stage=unet")) == shipped | {"vae": own / "vae/model"}
    elsewhere = conf(own, "stage=unet", f"parts_from={other}")
    mixed = {"vae": own / "vae/model", "clip": other / "clip/model"}
    assert parts(elsewhere) == shipped | mixed
    with pytest.raises(ConfigError, match=r"parts_from = .*nowhere is no folder"):
        parts(conf(own, "stage=unet", f"parts_from={tmp_path}/nowhere"))
    assert critics(elsewhere) == {"clip": other / "clip/model", "judge": SHIPPED / "judge"}
    assert parts(conf(own, "stage=judge")) == critics(conf(own, "stage=vae")) == {}
    assert set(parts(conf(own, "stage=vae", "perceptual=0.1"))) == {"clip"}


def test_critics_and_parts_are_looked_for_before_anything_is_learned(tmp_path):
    noted(tmp_path, "stage=judge", learned=False)
    with pytest.raises(ConfigError, match="judge is not finished; go on with stage=judge first"):
        train.learn(conf(tmp_path, "stage=unet"), tmp_path / "unet")
    assert not (tmp_path / "unet").exists()
    with pytest.raises(ConfigError, match=r"the clip in .* of 32 pixels, and preset.side is 64"):
        train.learn(conf("run", "preset=gpu", "stage=vae", "perceptual=1"), tmp_path / "vae")


@pytest.mark.parametrize("preset", ["small", "gpu"])
def test_every_network_is_of_the_presets_images(preset):
    of = {stage: conf("run", f"preset={preset}", f"stage={stage}", "preset.side=48")["task"]
          for stage in ("judge", "clip", "vae")}  # fmt: skip
    assert of["judge"]["config"]["side"] == of["vae"]["config"]["sample_size"] == 48
    assert of["clip"]["config"]["vision_config"]["image_size"] == 48


@pytest.mark.parametrize("stage", ["judge", "clip", "vae", "unet"])
def test_counts_that_nothing_is_learned_by_are_refused_at_once(stage):
    choices = "steps=0", "log_every=0", "save_every=null", "watch_every=many", "seed=-1"
    with pytest.raises(ConfigError) as caught:
        train.check_numbers(conf("run", f"stage={stage}", *choices))
    named = [line.split(" = ")[0] for line in str(caught.value).splitlines()]
    assert sorted(named) == ["log_every", "save_every", "seed", "steps", "watch_every"]
    train.check_numbers(conf("run", f"stage={stage}", "watch_every=null"))


def test_a_tokenizer_takes_no_steps():
    train.check_numbers(conf("run", "stage=tokenizer"))


def test_data_that_is_not_there_is_said_in_one_line():
    choices = "data=image_folder", "data.path=nowhere", "held_out.path=nowhere"
    with pytest.raises(ConfigError, match=r"vae: no metadata\.jsonl in nowhere"):
        train.assemble(conf("run", "stage=vae", *choices), {})


def test_a_judge_is_not_learned_from_images_that_nothing_tells_of(tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "red"}')
    own = f"data.path={tmp_path}", f"held_out.path={tmp_path}", "batch=1"
    with pytest.raises(ConfigError, match="judge: a judge learns which digit"):
        train.assemble(conf("run", "stage=judge", "data=image_folder", *own), {})


@pytest.mark.parametrize("stage", ["judge", "clip", "vae", "unet"])
def test_an_option_that_no_task_takes_is_refused(stage):
    config = conf("run", f"stage={stage}", f"+preset.{stage}.task.scord=16")
    with pytest.raises(ConfigError, match="no parameter 'scord'; did you mean 'scored'"):
        check_targets(config["task"], "task")


def test_any_schedule_of_optax_is_a_few_words():
    schedule = "schedule=any", "schedule._target_=optax.constant_schedule", "+schedule.value=0.25"
    rate = conf("run", "stage=vae", *schedule)["optimizer"]["learning_rate"]
    assert rate == {"_target_": "optax.constant_schedule", "value": 0.25}
    usual = conf("run", "stage=vae", "rate=0.5", "steps=7")["optimizer"]["learning_rate"]
    assert (usual["peak"], usual["steps"]) == (0.5, 7)


def test_own_data_are_shown_by_their_own_captions(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    lines = [json.dumps({"file_name": "a.png", "text": f"a zebra, {i}"}) for i in range(9)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    own = conf("run", "stage=unet", "data=image_folder", f"data.path={tmp_path}", "held_out.path=x")
    assert train.previews(own).keywords["prompts"] == [f"a zebra, {i}" for i in range(8)]
    assert train.previews(own | {"prompts": ["mine"]}).keywords["prompts"] == ["mine"]
    assert train.previews(conf("run", "stage=unet")).keywords["prompts"][0].startswith("a red")
