"""Every entry point ends with a clear line and exit code 2 on bad input, and keeps its traceback on
a fault of ours.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from realsr_r1.core.errors import UserError, is_disk_full, run


def exit_code(main) -> int:
    with pytest.raises(SystemExit) as exit_info:
        run(main, [])
    return exit_info.value.code


@pytest.mark.parametrize("returned, code", [(None, 0), (0, 0), (3, 3)])
def test_the_exit_code_is_what_main_returns(returned, code):
    assert exit_code(lambda argv: returned) == code


def test_main_gets_the_arguments():
    seen = []
    with pytest.raises(SystemExit):
        run(seen.append, ["--flag", "value"])
    assert seen == [["--flag", "value"]]


def test_bad_input_is_one_line_and_exit_code_2(capsys):
    def main(argv):
        raise UserError("no such folder: photos\n   (given by --images)")

    assert exit_code(main) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "realsr-r1: error: no such folder: photos (given by --images)\n"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_exit_code_2(code, capsys):
    def main(argv):
        raise OSError(code, "No space left on device", "outputs/model.safetensors")

    assert exit_code(main) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "disk is full" in err and "outputs/model.safetensors" in err and "Traceback" not in err


@pytest.mark.parametrize("argv", [["--output", ""], [""], ["--output="]])
def test_an_empty_argument_is_refused_for_as_a_path_it_is_the_working_folder(argv, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(lambda given: pytest.fail("it ran"), argv)
    assert exit_info.value.code == 2
    assert "is empty; give a value, or leave it out" in capsys.readouterr().err


def test_a_name_that_no_terminal_can_show_is_printed_escaped():
    code = ("from realsr_r1.core.errors import run\n"
            "run(lambda argv: print(b'\\xff.png'.decode('utf-8', 'surrogateescape')), [])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True,
                          env={**os.environ, "PYTHONUTF8": "1"})
    assert done.stdout == b"\\udcff.png\n" and done.stderr == b""


@pytest.mark.parametrize("make", [
    lambda path: path.write_text("a folder is there"), lambda path: (path / "x").open(), os.rmdir])
def test_a_folder_where_a_file_belongs_is_one_line_that_names_it(make, tmp_path, capsys):
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "x").mkdir()
    assert exit_code(lambda argv: make(folder)) == 2
    assert "there" in capsys.readouterr().err


def test_ctrl_c_is_one_line_and_the_shells_exit_code(capsys):
    def main(argv):
        raise KeyboardInterrupt

    assert exit_code(main) == 130
    assert capsys.readouterr().err == "realsr-r1: error: interrupted\n"


def test_output_that_nobody_reads_is_no_traceback():
    code = ("from realsr_r1.core.errors import run\n"
            "run(lambda argv: [print('x' * 99) for _ in range(9999)] and None)")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (1, b"")


def test_another_broken_pipe_keeps_its_traceback():
    def main(argv):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        run(main, [])


@pytest.mark.parametrize("code", [errno.ENAMETOOLONG, errno.EROFS])
def test_a_path_that_cannot_be_used_is_one_line_and_exit_code_2(code, capsys):
    def main(argv):
        raise OSError(code, os.strerror(code), "somewhere")

    assert exit_code(main) == 2
    assert "somewhere can't be opened or written" in capsys.readouterr().err


def test_a_file_without_the_right_to_it_is_one_line_and_exit_code_2(capsys, monkeypatch):
    def main(argv):
        raise PermissionError(errno.EACCES, "Permission denied", "photos/a.png")

    assert exit_code(main) == 2
    said = ("photos/a.png can't be opened or written (Permission denied); change its rights, or give "
            "another path\n")
    assert capsys.readouterr().err == f"realsr-r1: error: {said}"
    monkeypatch.setenv("RANK", "3")  # whose disk may be another than rank 0's
    assert exit_code(main) == 2
    assert capsys.readouterr().err == f"realsr-r1: error: rank 3: {said}"


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "denied"), ValueError("a bug"),
                                   KeyError("a bug")])
def test_other_errors_keep_their_traceback(error):
    def main(argv):
        raise error

    with pytest.raises(type(error)):
        run(main, [])


@pytest.mark.parametrize("error, expected", [
    (OSError(errno.ENOSPC, "x"), True),
    (RuntimeError("I/O error: No space left on device (os error 28)"), True),
    (OSError(errno.ENOENT, "no such file"), False),
    (ValueError("something else"), False),
])
def test_a_full_disk_is_recognised_however_it_is_wrapped(error, expected):
    assert is_disk_full(error) is expected
