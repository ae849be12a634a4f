"""Tar shards: members by key, whatever their order; and shards that are torn, foreign or broken."""

import gzip
import json
import tarfile

import pytest
from numbered_pictures import examples, numbers, picture, stream, take, write_shard, write_shards

from optdiff.data.webdataset import shard_captions, webdataset

START = {"epoch": 0, "part": 0, "taken": 0}


def read_all(folder, count, **options):
    """The numbers of one epoch, sorted, and what was told."""
    told = []
    options = {"batch": count, "broken": told.append, **options}
    seen, position = take(stream("shards", folder, **options), START, 1)
    assert position == {"epoch": 1, "part": 0, "taken": 0}
    return sorted(seen), told


def test_members_belong_together_by_key_wherever_they_lie(tmp_path):
    members = {f"./a/{name}": content for name, content in examples(0, 5).items()}
    members = dict(sorted(members.items(), key=lambda item: item[0][::-1]))  # by ending
    members |= {"b/000000.seg.png": b"", "b/000000.JPG": picture(5), "b/000000.txt": b"picture 5"}
    members |= {"000000.jpeg": picture(6), "000000.webp": b"", "000000.txt": b"picture 6"}
    members |= {".hidden": b"", "README": b"", "000000.json": b"null"}
    write_shard(tmp_path / "0.tar", members)
    assert read_all(tmp_path, 7) == (list(range(7)), [])


def test_a_caption_is_the_text_or_else_the_field_of_the_json(tmp_path):
    members = {"0.png": picture(0), "0.json": b'{"caption": "wrong"}', "0.txt": b"picture 0"}
    members |= {"1.png": picture(1), "1.json": b'{"caption": "picture 1"}', "1.txt": b""}
    write_shard(tmp_path / "0.tar", members)
    assert read_all(tmp_path, 2) == ([0, 1], [])
    members = {"0.png": picture(0), "0.json": json.dumps({"alt": "picture 0"}).encode()}
    write_shard(tmp_path / "0.tar", members)
    assert read_all(tmp_path, 1, field="alt") == ([0], [])


def test_examples_that_are_not_whole_are_left_out_and_told_by_shard_and_key(tmp_path):
    members = examples(0, 8)
    del members["000001.txt"], members["000002.png"]
    members["000004.txt"] = b"\xff\xfe"
    members["000006.json"] = b"{"
    write_shard(tmp_path / "0.tar", members)
    seen, told = read_all(tmp_path, 4)
    assert seen == [0, 3, 5, 7]
    (message,) = told
    assert message.startswith(f"{tmp_path}/0.tar: 4 of 8 examples left out: ")
    for key, fault in {1: "no caption", 2: "no image", 4: "no caption", 6: "no caption"}.items():
        assert f"{key:06} ({fault})" in message


def test_captions_alone_are_those_of_the_examples_that_are_read(tmp_path):
    folder = write_shards(tmp_path / "shards", 2, 4)
    told = []
    texts = list(shard_captions(f"{folder}/*.tar", broken=told.append))
    assert sorted(texts) == [f"picture {i}" for i in range(6)] and not told
    with pytest.raises(FileNotFoundError, match="no such shard"):
        shard_captions(f"{tmp_path}/*.zip")
    write_shard(tmp_path / "none.tar", {"0.png": picture(0)})
    with pytest.raises(ValueError, match=r"not one example with a caption in .*none\.tar"):
        list(shard_captions(tmp_path / "none.tar", broken=told.append))


def test_a_key_that_comes_twice_is_not_guessed_at(tmp_path):
    first, second = (write_shard(tmp_path / f"{i}.tar", examples(0, 2 + i)) for i in range(2))
    members = first.read_bytes()[: 2 * 4 * 512]  # headers and contents of one block each
    first.write_bytes(members + second.read_bytes())
    second.unlink()
    seen, told = read_all(tmp_path, 1)
    assert seen == [2] and "000000 (two members .json)" in told[0]


def test_every_cut_of_a_shard_gives_what_is_whole_before_it(tmp_path):
    """Cut at every block, and within one: no example that is whole is lost, none is half there."""
    shard = write_shard(tmp_path / "0.tar", examples(0, 3))
    content, blocks = shard.read_bytes(), 3 * 4
    for cut in [block * 512 + extra for block in range(blocks) for extra in (0, 100)]:
        shard.write_bytes(content[:cut])
        # Picture and caption are four blocks, the content of the caption being in the last of them.
        whole = [i for i in range(3) if cut >= (4 * i + 3) * 512 + (30 if cut % 512 else 512)]
        if not whole:
            with pytest.raises(ValueError, match="not one example"):
                read_all(tmp_path, 1, broken=lambda message: None)
            continue
        seen, told = read_all(tmp_path, len(whole))
        assert seen == whole
        lost = f"of {cut} on; what followed is lost"  # unless it ends as a shard without zeros does
        assert any(said.endswith(lost) for said in told) == bool(cut % 1024), (cut, told)
    shard.write_bytes(content[: blocks * 512 + 512])  # one block of zeros ends it
    assert read_all(tmp_path, 3) == ([0, 1, 2], [])


def test_a_shard_that_is_something_else_is_told_and_the_others_are_read(tmp_path):
    write_shards(tmp_path / "shards", 4, 3)
    packed = gzip.compress((tmp_path / "shards" / "00000.tar").read_bytes())
    for content in (packed, b"", b"<html>not found</html>"):
        (tmp_path / "shards" / "00002.tar").write_bytes(content)
        seen, told = read_all(tmp_path / "shards", 7)
        assert seen == list(range(7))
        (message,) = told
        assert "00002.tar: no plain tar file from byte 0 of" in message


def test_a_damaged_header_is_told_with_what_it_hides(tmp_path):
    shard = write_shard(tmp_path / "0.tar", examples(0, 4))
    content = bytearray(shard.read_bytes())
    content[2 * 4 * 512 + 50] ^= 1  # in the name of the third picture
    shard.write_bytes(content)
    seen, told = read_all(tmp_path, 2)
    assert seen == [0, 1] and f"no plain tar file from byte {2 * 4 * 512} of" in told[0]


def test_an_image_that_does_not_decode_is_told_by_shard_and_key(tmp_path):
    members = examples(0, 4)
    members["000002.png"] = members["000002.png"][:-30]
    write_shard(tmp_path / "0.tar", members)
    told = []
    seen, _ = take(stream("shards", tmp_path, broken=told.append), START, 1)
    assert set(seen) == {0, 1, 3} and len(seen) == 4
    assert len(told) == 1 and told[0].startswith(f"{tmp_path}/0.tar: 000002: ")


def test_more_shards_are_mixed_the_farther_their_examples_travel(tmp_path):
    shards = write_shards(tmp_path / "shards", 20, 20, 20, 20)
    alone, _ = take(stream("shards", shards, batch=20, mixed=1), START, 1)
    assert len({number // 20 for number in alone}) == 1
    together, _ = take(stream("shards", shards, batch=20, mixed=4), START, 1)
    assert len({number // 20 for number in together}) == 4


def test_only_a_few_shards_are_listed_at_a_time(tmp_path, monkeypatch):
    import optdiff.data.webdataset as module

    listed, members = [], module._members
    monkeypatch.setattr(module, "_members", lambda file: listed.append(file.name) or members(file))
    source = stream("shards", write_shards(tmp_path / "shards", *[4] * 6), mixed=2)
    _, position = take(source, source.start, 2)
    assert len(listed) == 2
    take(source, position, 1)
    assert len(listed) == 4


def test_missing_shards_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such shard: .*\*\.tar"):
        webdataset(f"{tmp_path}/*.tar", size=4, batch=4)
    there = write_shard(tmp_path / "0.tar", examples(0, 1))
    with pytest.raises(FileNotFoundError, match=r"no such shard: \S+1\.tar$"):
        webdataset([there, tmp_path / "1.tar"], size=4, batch=4)
    batch, _ = webdataset([there], size=4, batch=1, tokenize=numbers).read(START)
    assert batch["ids"].tolist() == [[0]]


def claiming(size: int, kind: bytes = b"0") -> bytes:
    """A picture's header that claims so many bytes, in the encoding of GNU tar, and its content."""
    header = bytearray(tarfile.TarInfo("000001.txt").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = bytes([0xFF if size < 0 else 0x80]) + size.to_bytes(11, "big", signed=True)
    header[148:157] = b" " * 8 + kind
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"picture 1".ljust(512, b"\0")


@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"S"], ids=["file", "pax", "name", "sparse"])
@pytest.mark.parametrize("size", [2**40, 2**62, 2**63, -512, -1024, -1, 2**20 + 1])
def test_a_header_that_claims_what_is_not_there_ends_the_shard(size, kind, tmp_path):
    shard = write_shard(tmp_path / "0.tar", examples(0, 1))
    whole = shard.read_bytes()[: 4 * 512]
    shard.write_bytes(whole + claiming(size, kind) + whole.replace(b"000000", b"000002") * 2)
    seen, told = read_all(tmp_path, 1)
    assert seen == [0] and "what followed is lost" in told[-1]


def test_captions_are_bounded_in_size_and_depth(tmp_path):
    members = examples(1, 3) | {f"{i}.png": picture(i) for i in range(3, 7)}
    members["3.json"] = b'{"caption":' * 100_000
    members["4.json"] = b'{"caption": "picture 4", "rest": "%s"}' % (b"x" * 2**20)
    members["5.json"] = b'{"caption": "picture \\ud83c 5"}'  # half a character
    members["6.txt"] = b""
    write_shard(tmp_path / "0.tar", members)
    seen, told = read_all(tmp_path, 2)
    assert seen == [1, 2] and "4 of 6 examples left out: 3 (no caption), 4 (no" in told[0]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16-le", "utf-16-be", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_a_caption(encoding, tmp_path):
    mark = "\ufeff" if encoding[-2:] in ("le", "be") else ""
    words = "picture 0 \u2028\u0085 \U0001f3a8"
    members = {"0.png": picture(0), "0.txt": (mark + words).encode(encoding)}
    members |= {"1.png": picture(1), "1.json": f'{mark}{{"caption": "{words}"}}'.encode(encoding)}
    write_shard(tmp_path / "0.tar", members)
    assert list(shard_captions(tmp_path / "0.tar")) == [words, words]


def test_names_are_literal_and_spelt_out_as_a_shell_does_it(tmp_path):
    names = [
        "a[1].tar",
        "b{0..1}.tar",
        "c-08.tar",
        "c-09.tar",
        "c-10.tar",
        "d-x{}.tar",
        "d-y{}.tar",
    ]
    for i, name in enumerate(names):
        write_shard(tmp_path / name, {f"{i}.png": picture(i), f"{i}.txt": b"picture %d" % i})

    def read(pattern):
        return [int(words.split()[1]) for words in shard_captions(f"{tmp_path}/{pattern}")]

    patterns = {"a[1].tar": [0], "b{0..1}.tar": [1], "c-?[89].tar": [2, 3]}
    patterns |= {"c-{08..10}.tar": [2, 3, 4], "c-{10..08}.tar": [4, 3, 2]}
    patterns |= {"d-{x,y}{}.tar": [5, 6], "{c,d}-*": [2, 3, 4, 5, 6]}
    assert {pattern: read(pattern) for pattern in patterns} == patterns
    with pytest.raises(FileNotFoundError, match=r"no such shard: \S+c-11\.tar, \S+c-12\.tar$"):
        read("c-{08..12}.tar")
    with pytest.raises(FileNotFoundError, match=r"e107\.tar and 99 more"):
        read("e{103..206}.tar")
    for endless in ("{0..1000000000}", "{0..9999}{0..9999}"):
        with pytest.raises(ValueError, match=r"at most 1000000|more than 1000000"):
            read(endless)
    with pytest.raises(FileNotFoundError, match="no such shard"):
        read("x" * 300)
