"""`metadata.jsonl` read as Hugging Face's imagefolder writes it, and what is wrong in it told."""

import json

import pytest
from numbered_pictures import numbers, picture, stream, take, write_folder

from optdiff.data.image_folder import folder_captions, image_folder


def test_columns_and_folders_within_are_as_told(tmp_path):
    (tmp_path / "train").mkdir()
    rows = []
    for i in range(4):
        (tmp_path / "train" / f"{i}.png").write_bytes(picture(i))
        rows.append({"image": f"train/{i}.png", "caption": f"picture {i}", "text": None, "n": i})
    (tmp_path / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    source = stream("folder", tmp_path, file="image", text="caption")
    assert sorted(take(source, source.start, 1)[0]) == [0, 1, 2, 3]


def test_lines_that_cannot_be_used_are_left_out_and_told(tmp_path):
    folder = write_folder(tmp_path / "folder", 16)
    lines = folder.joinpath("metadata.jsonl").read_text().splitlines()
    lines[1] = lines[1][:-9]
    lines[3] = json.dumps({"file_name": "3.png"})
    lines[4] = json.dumps({"file_name": "4.png", "text": "  "})
    lines[5] = json.dumps({"file_name": "gone.png", "text": "picture 5"})
    lines[6] = json.dumps({"text": "picture 6"})
    lines[7] = "[]"
    lines[12] = json.dumps({"file_name": 300 * "n", "text": "picture 12"})
    lines[13] = json.dumps({"file_name": "13.png\0", "text": "picture 13"})
    lines[14] = json.dumps({"file_name": "14.png", "text": "\ud83c"})
    lines[15] = '{"text":' * 100_000
    folder.joinpath("metadata.jsonl").write_text("\n".join(lines))
    told = []
    source = stream("folder", folder, batch=6, broken=told.append)
    assert sorted(take(source, source.start, 2)[0]) == sorted(2 * [0, 2, 8, 9, 10, 11])
    (message,) = told
    assert message.startswith(f"{folder}/metadata.jsonl: 10 of 16 examples left out: line 2 (")
    for fault in ("line 4 (no 'text')", "line 6 (there is no 'gone.png')", "and 5 more"):
        assert fault in message
    told.clear()
    known = [f"picture {i}" for i in (0, 2, 8, 9, 10, 11)]
    assert folder_captions(folder, broken=told.append) == known and told == [message]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_in_other_writing_is_read(encoding, tmp_path):
    folder = write_folder(tmp_path / "folder", 1)
    row = {"file_name": "0.png", "text": "picture 0 \u2028\x85 café"}
    folder.joinpath("metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding)
    asked = []
    source = stream("folder", folder, batch=1, tokenize=lambda t: asked.extend(t) or numbers(t))
    source.read(source.start)
    assert asked == ["picture 0 \u2028\x85 café"]


def test_a_folder_without_captions_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no metadata\.jsonl in .*"file_name"'):
        image_folder(tmp_path, size=4, batch=4)
    tmp_path.joinpath("metadata.jsonl").write_text("")
    with pytest.raises(ValueError, match="not one image with a caption"):
        image_folder(tmp_path, size=4, batch=4)
